"""Relative Mahalanobis distance: the distance to the nearest normal class, less that to all normal images together.

    score(x) = min over normal classes c of d_c(x)^2 - d_0(x)^2
    d_c(x)^2 = (x - m_c)^T S^-1 (x - m_c)          S, the covariance within the normal classes
    d_0(x)^2 = (x - m_0)^T S_0^-1 (x - m_0)        m_0 and S_0, mean and covariance of all normal images

Directions in which all images vary contribute to both distances and cancel. Both covariances have the ridge of
`mahalanobis_score`. Higher is more anomalous. With one normal class the score is 0. No text is used.

Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021, arXiv 2106.09022,
applied to CLIP's image embeddings.
"""

from typing import Any, NamedTuple

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
    return _difference(x, _statistics(in_dtype(moments, x), mask, ridge))


class RelativeStatistics(NamedTuple):
    """Everything in the two distances that does not depend on images; a pytree."""

    within: Float[jax.Array, "*mapped dim dim"]
    """L^-1 with S = L L^T."""
    of_all: Float[jax.Array, "*mapped dim dim"]
    """L_0^-1 with S_0 = L_0 L_0^T."""
    centre: Float[jax.Array, "*mapped 1 dim"]
    """m_0."""
    means: Float[jax.Array, "*mapped classes dim"]
    """L^-1 (m_c - m_0) of each class."""
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes."""
    count: Float[jax.Array, "*mapped classes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of fitted images of each class."""


def _statistics(moments: ClassMoments, mask: jax.Array, ridge: Any) -> RelativeStatistics:
    share = pooling_weights(moments.count, mask)
    centre = jnp.sum(share[:, None] * moments.mean, axis=0)[None, :]
    means = moments.mean - centre
    within = pooled_covariance(moments, mask)
    between = jnp.matmul((share[:, None] * means).T, means, precision=lax.Precision.HIGHEST)
    inverse = inverse_factor(within, ridge)
    of_all = inverse_factor(within + between, ridge)
    return RelativeStatistics(inverse, of_all, centre, whiten(means, inverse), mask, moments.count)


def _difference(x: jax.Array, s: RelativeStatistics) -> jax.Array:
    x_centred = x.astype(s.means.dtype) - s.centre
    z = whiten(x_centred, s.within)
    to_all = jnp.sum(whiten(x_centred, s.of_all) ** 2, axis=1)
    # |z - w|^2 without |z|^2, which all classes share and which would cancel.
    product = jnp.matmul(z, s.means.T, precision=lax.Precision.HIGHEST)
    to_class = jnp.sum(s.means**2, axis=1)[None, :] - 2 * product
    nearest = min_over_classes(to_class, normal=s.normal) + jnp.sum(z**2, axis=1)
    return nan_unless_finite(nan_if_normal_is_empty(nearest - to_all, s.normal, s.count), x)


def _prepare(moments, normal) -> RelativeStatistics:
    return _statistics(in_dtype(moments), normal, RIDGE)


def _from_prepared(embeddings, prepared) -> jax.Array:
    return _difference(embeddings, prepared)


SCORE = Score(
    "rmd",
    rmd_score,
    source="Ren et al., 2021",
    order=25,
    one_split_at_a_time=True,
    unavailable=one_image_per_class,
    prepare=_prepare,
    from_prepared=_from_prepared,
)
