"""Mahalanobis distance to the nearest normal class, with one covariance shared by all.

    score(x) = min over normal classes c of sqrt( (x - m_c)^T S^-1 (x - m_c) ),
    S = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I

Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", NeurIPS 2018, section 2.1, on CLIP's image embeddings. No text is used.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.blocks import block_map
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.reductions import min_over_classes
from bliss_jax.scores.within_class import cholesky_within_classes, whiten

RIDGE = 1e-3
"""Relative ridge by default. With fewer images than dimensions the covariance alone is singular."""
_BLOCK = 2**26
"""Differences of images and means at once; where sum and square are fused they are never stored."""


def mahalanobis_score(
    embeddings: Float[Array, "images dim"],
    moments: ClassMoments,
    normal: Bool[Array, " classes"] | None = None,
    *,
    ridge: float | Float[Array, ""] = RIDGE,
) -> Float[jax.Array, " images"]:
    """min_c sqrt((x - m_c)^T S^-1 (x - m_c)), S the within-class covariance pooled over normal classes.

    Args:
        embeddings: Image embeddings [images, dim], of any norm.
        moments: Fitted on normal images.
        normal: Mask of the normal classes [classes]; all by default.
        ridge: Added to S, as a share of its mean eigenvalue; 0 is the plain distance, which is
            infinite or NaN where S is singular.

    Returns:
        Scores [images], higher = more anomalous. NaN where S is zero (one image per class) and, while
        tracing, where a normal class has no images.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite, a negative ridge,
            no normal class, or a normal class of which no image was fitted.
    """
    _checks.scalar("ridge", ridge, minimum=0.0)
    x = _checks.embeddings_as_float("embeddings", embeddings, unit_norm=False)
    _checks.same_dim(**{"embeddings": x, "moments.mean": moments.mean})
    mask = _checks.normal_mask(normal, len(moments.count), moments.count)

    # Differences of whitened embeddings are squared one by one: |z|^2 - 2 z.w + |w|^2 would cancel.
    # Centring first keeps z short.
    factor = cholesky_within_classes(moments, mask, ridge)
    centre = jnp.mean(moments.mean, axis=0, where=mask[:, None])[None, :]
    z, means = whiten(x - centre, factor), whiten(moments.mean - centre, factor)
    squared = block_map(
        lambda mean: jnp.sum((z - mean[None, :]) ** 2, axis=1), means, size=z.size, block=_BLOCK
    ).T
    squared = jnp.where((moments.count > 0)[None, :], squared, jnp.nan)
    nearest = min_over_classes(jnp.where(mask[None, :], squared, jnp.inf))
    # The gradient of the root is infinite at 0, where an image lies on a class mean.
    return jnp.where(nearest > 0, jnp.sqrt(jnp.where(nearest > 0, nearest, 1)), nearest)
