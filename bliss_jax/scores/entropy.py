"""Entropy of the softmax over the normal labels: -sum_c p_c log p_c, p = softmax(s(x, t) / T), T = 1/100.

An uncertain zero-shot classifier is evidence of an anomaly. With one normal class the score is constant.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, check_labels, label_logits


def entropy_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -sum_c p_c log p_c with p = softmax(s(x, t) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in nats. 0 images give an
        empty array. Under tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    a = check_labels(embeddings, label_embeddings, normal, temperature)
    return _entropy(*a, precision=precision)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _entropy(
    x: jax.Array, labels: jax.Array, mask: jax.Array, temperature: Any, *, precision: Precision
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, precision)
    log_p = jnp.where(mask[None, :], jax.nn.log_softmax(logits, axis=1), 0)
    # A class that is not normal has p = 0, and its term of the sum is 0 (and not 0 times -inf, which is NaN).
    shares = jnp.where(mask[None, :], jnp.exp(log_p) * log_p, 0)
    return nan_unless_finite(-jnp.sum(shares, axis=1), x)


SCORE = Score("entropy", entropy_score, default=True, order=8)
