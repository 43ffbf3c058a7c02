"""Maximum softmax probability: -max over normal classes c of softmax(s(x, t) / T)_c, T = 1/100.

Source: Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
Neural Networks", ICLR 2017, with CLIP's zero-shot classifier over the normal labels. With one normal
class the score is constant.
"""

from typing import Any

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, check_labels, label_logits


def msp_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -max_c softmax(s(x, t) / T)_c over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-1, 0]. 0 images give an
        empty array. Under tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    a = check_labels(embeddings, label_embeddings, normal, temperature)
    return _msp(*a, precision=precision)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _msp(
    x: jax.Array, labels: jax.Array, mask: jax.Array, temperature: Any, *, precision: Precision
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, precision)
    probabilities = jax.nn.softmax(logits, axis=1)
    return nan_unless_finite(min_over_classes(-probabilities, normal=mask), x)


SCORE = Score("msp", msp_score, source="Hendrycks, Gimpel, ICLR 2017", default=True, order=4)
