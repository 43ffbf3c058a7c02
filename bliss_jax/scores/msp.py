"""Maximum softmax probability: -max over normal classes c of softmax(s(x, t) / T)_c, T = 1/100.

Source: Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
Neural Networks", ICLR 2017, with CLIP's zero-shot classifier over the normal labels. With one normal
class the score is constant.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.reductions import min_over_classes
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def msp_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-max_c softmax(s(x, t) / T)_c over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        temperature: T > 0; may be traced.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous, in [-1, 0].

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    logits = label_logits(embeddings, label_embeddings, temperature, normal)
    return min_over_classes(-jax.nn.softmax(logits, axis=1))
