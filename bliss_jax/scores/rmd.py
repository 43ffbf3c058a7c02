"""Relative Mahalanobis distance: the distance to the nearest normal class, less that to all normal images together.

    score(x) = min over normal classes c of d_c(x)^2 - d_0(x)^2
    d_c(x)^2 = (x - m_c)^T S^-1 (x - m_c)          S, the covariance within the normal classes
    d_0(x)^2 = (x - m_0)^T S_0^-1 (x - m_0)        m_0 and S_0, mean and covariance of all normal images

Directions in which all images vary contribute to both distances and cancel. Both covariances have the ridge of
`mahalanobis_score`. Higher is more anomalous. With one normal class the score is 0. No text is used.

Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021, arXiv 2106.09022,
applied to CLIP's image embeddings.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array, compiled, rows
from bliss_jax.scores.mahalanobis import RIDGE, check_distance, one_image_per_class
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.parts import nan_if_normal_is_empty
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.statistics import in_dtype, pooled_covariance, pooling_weights
from bliss_jax.scores.within_class import inverse_factor, whiten


def rmd_score(
    embeddings: Float[Array, "images dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    ridge: float | Float[Array, ""] = RIDGE,
) -> Float[jax.Array, " images"]:
    """Computes min_c d_c(x)^2 - d_0(x)^2 over the normal classes c.

    Args:
        embeddings: Image embeddings [images, dim], of any norm.
        moments: Fitted on normal images.
        normal: Mask of the normal classes [classes]; all by default.
        ridge: Term added to the diagonals of S and S_0, as a share of their mean eigenvalues.

    Returns:
        Scores [images], at least float32, higher = more anomalous; NaN if S is singular. 0 images give an empty
        array. Under tracing, an image that is not finite has the score NaN, and all images have NaN if a normal class
        has no images.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite, the ridge is negative, no class is
            normal, or no image of a normal class was fitted.
    """
    return _rmd(*check_distance(embeddings, moments, normal, ridge), ridge)


@compiled(static=(), out=lambda x, *_: rows(x))
def _rmd(x: jax.Array, moments: ClassMoments, mask: jax.Array, ridge: Any) -> jax.Array:
    moments = in_dtype(moments, x)
    share = pooling_weights(moments.count, mask)
    centre = jnp.sum(share[:, None] * moments.mean, axis=0)[None, :]
    means = moments.mean - centre
    within = pooled_covariance(moments, mask)
    between = jnp.matmul((share[:, None] * means).T, means, precision=lax.Precision.HIGHEST)
    x_centred = x.astype(moments.mean.dtype) - centre

    inverse = inverse_factor(within, ridge)
    z, z_means = whiten(x_centred, inverse), whiten(means, inverse)
    to_all = jnp.sum(whiten(x_centred, inverse_factor(within + between, ridge)) ** 2, axis=1)
    # |z - w|^2 without |z|^2, which all classes share and which would cancel.
    product = jnp.matmul(z, z_means.T, precision=lax.Precision.HIGHEST)
    to_class = jnp.sum(z_means**2, axis=1)[None, :] - 2 * product
    nearest = min_over_classes(to_class, normal=mask) + jnp.sum(z**2, axis=1)
    return nan_unless_finite(nan_if_normal_is_empty(nearest - to_all, mask, moments.count), x)


SCORE = Score(
    "rmd",
    rmd_score,
    source="Ren et al., 2021",
    order=25,
    one_split_at_a_time=True,
    unavailable=one_image_per_class,
)
