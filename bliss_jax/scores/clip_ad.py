"""CLIP-AD: the probability of "something" among the normal labels, softmax(s / T), T = 1/100.

Source: Liznerski et al., "Exposing Outlier Exposure: What Can Be Learned From Few, One, and Zero Outlier
Images", TMLR 2022, section 3 (zero-shot CLIP), with the generic text `a photo of something` against the
prompts of the normal classes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def clip_ad_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    something_embedding: Float[Array, " dim"],
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """exp(s(x, t_0) / T) / sum over t_0 and the normal labels of exp(s(x, t) / T), t_0 = "something".

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        something_embedding: Unit-norm embedding of `a photo of something` [dim].
        temperature: T > 0; may be traced.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images] in [0, 1], higher = more anomalous.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    if jnp.ndim(something_embedding) != 1:
        raise ValueError(
            f"something_embedding: expected one [dim] vector, got {list(jnp.shape(something_embedding))}"
        )
    something = _checks.embeddings_as_float("something_embedding", something_embedding[None, :])
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    _checks.same_dim(label_embeddings=labels, something_embedding=something)
    mask = _checks.normal_mask(normal, len(labels))
    texts = jnp.concatenate([something.astype(labels.dtype), labels])
    mask = jnp.concatenate([jnp.ones(1, bool), mask])
    return jax.nn.softmax(label_logits(embeddings, texts, temperature, mask), axis=1)[:, 0]
