"""What the label-based baselines share: cosines to the labels, restricted to the normal classes.

A class that is not normal takes no part: its logit is -inf, so that `vmap` over masks of normal classes
works as for `bliss_score`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.top_k import similarity

CLIP_TEMPERATURE = 0.01
"""1 / 100: CLIP's learned logit scale, at which its similarities are trained."""


def label_logits(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""],
    normal: Bool[Array, " classes"] | None,
) -> Float[jax.Array, "images classes"]:
    """s(x, t_c) / T, and -inf for classes that are not normal.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    x = _checks.embeddings_as_float("embeddings", embeddings)
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    _checks.same_dim(embeddings=x, label_embeddings=labels)
    mask = _checks.normal_mask(normal, len(labels))
    return jnp.where(mask[None, :], similarity(x, labels) / temperature, -jnp.inf)
