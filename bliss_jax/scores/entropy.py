"""Entropy of the softmax over the normal labels: -sum_c p_c log p_c, p = softmax(s(x, t) / T), T = 1/100.

An uncertain zero-shot classifier speaks for an anomaly. With one normal class the score is constant.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def entropy_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-sum_c p_c log p_c with p = softmax(s(x, t) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        temperature: T > 0; may be traced.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous, in nats.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    logits = label_logits(embeddings, label_embeddings, temperature, normal)
    log_p = jax.nn.log_softmax(logits, axis=1)
    # A class that is not normal has p = 0, whose share of the entropy is 0 (and not 0 times -inf).
    finite = jnp.isfinite(log_p)
    return -jnp.sum(jnp.where(finite, jnp.exp(log_p) * jnp.where(finite, log_p, 0), 0), axis=1)
