"""Energy: -T logsumexp over normal classes c of s(x, t_c) / T.

Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 3, with CLIP's
similarities; at T = 1/100 this is their energy of the logits 100 s, divided by 100.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, check_labels, label_logits


def energy_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -T log sum_c exp(s(x, t_c) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Under tracing,
        an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    a = check_labels(embeddings, label_embeddings, normal, temperature)
    return _energy(*a, precision=precision)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _energy(
    x: jax.Array, labels: jax.Array, mask: jax.Array, temperature: Any, *, precision: Precision
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, precision)
    energy = -jax.nn.logsumexp(logits, axis=1) * jnp.asarray(temperature).astype(logits.dtype)
    return nan_unless_finite(energy, x)


SCORE = Score("energy", energy_score, source="Liu et al., NeurIPS 2020", default=True, order=7)
