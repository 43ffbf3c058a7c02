"""Mahalanobis distance to the nearest normal class, with one covariance shared by all classes.

    score(x) = min over normal classes c of sqrt( (x - m_c)^T S^-1 (x - m_c) ),
    S = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I

Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", NeurIPS 2018, section 2.1, applied to CLIP's image embeddings. No text is used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, rows
from bliss_jax.scores.blocks import block_map
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.parts import nan_if_normal_is_empty
from bliss_jax.scores.record import Facts, Score
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.shapes import is_traced_shape
from bliss_jax.scores.statistics import in_dtype
from bliss_jax.scores.within_class import normal_centre, whiten, whitening_within_classes

RIDGE = 1e-3
"""Default relative ridge. With fewer images than dimensions, the covariance alone is singular."""
_BLOCK = 2**26
"""Number of differences of images and means computed at once. They are not stored if XLA fuses their squared sum."""


def mahalanobis_score(
    embeddings: Float[Array, "images dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    ridge: float | Float[Array, ""] = RIDGE,
) -> Float[jax.Array, " images"]:
    """Computes min_c sqrt((x - m_c)^T S^-1 (x - m_c)) over the normal classes c.

    S is the within-class covariance pooled over the normal classes, see the docstring of this module.

    Args:
        embeddings: Image embeddings [images, dim], of any norm.
        moments: Fitted on normal images.
        normal: Mask of the normal classes [classes]; all by default.
        ridge: Term added to the diagonal of S, as a share of its mean eigenvalue. 0 gives the plain distance, which
            is infinite or NaN if S is singular.

    Returns:
        Scores [images], at least float32, higher = more anomalous; NaN if S is zero (one image per class). 0 images
        give an empty array. Under tracing, an image that is not finite has the score NaN, and all images have NaN if
        a normal class has no images.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite, the ridge is negative, no class is
            normal, or no image of a normal class was fitted.
    """
    return _mahalanobis(*check_distance(embeddings, moments, normal, ridge), ridge)


def check_distance(
    embeddings: Any, moments: Any, normal: Any, ridge: Any
) -> tuple[Array, ClassMoments, Array]:
    """Checks the arguments of a distance to the normal images, and returns its arrays: images, moments and mask.

    Raises:
        ValueError: One of the reasons listed in `mahalanobis_score`.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings, unit_norm=False)
    moments = check_moments(checks, moments, embeddings=x, unit_norm=False)
    _checks.scalar("ridge", ridge, minimum=0.0)
    mask = checks.normal_mask(normal, len(moments.count), moments.count)
    checks.run()
    return x, moments, mask


@compiled(static=(), out=lambda x, *_: rows(x))
def _mahalanobis(x: jax.Array, moments: ClassMoments, mask: jax.Array, ridge: Any) -> jax.Array:
    return _distance(x, _statistics(in_dtype(moments, x), mask, ridge))


class WhitenedMeans(NamedTuple):
    """Everything in the distance that does not depend on images; a pytree."""

    inverse: Float[jax.Array, "*mapped dim dim"]
    """L^-1 with S = L L^T."""
    centre: Float[jax.Array, "*mapped 1 dim"]
    """Mean of the means of the normal classes, which is subtracted from images and means."""
    means: Float[jax.Array, "*mapped classes dim"]
    """Whitened mean of each class."""
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes."""
    count: Float[jax.Array, "*mapped classes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of fitted images of each class."""


def _statistics(moments: ClassMoments, mask: jax.Array, ridge: Any) -> WhitenedMeans:
    inverse = whitening_within_classes(moments, mask, ridge)
    centre = normal_centre(moments, mask)
    means = whiten(moments.mean - centre, inverse)
    return WhitenedMeans(inverse, centre, means, mask, moments.count)


def _distance(x: jax.Array, s: WhitenedMeans) -> jax.Array:
    # Differences of whitened embeddings are squared one by one: |z|^2 - 2 z.w + |w|^2 would cancel.
    z = whiten(x.astype(s.means.dtype) - s.centre, s.inverse)
    symbolic = is_traced_shape(x.shape[0])
    squared = block_map(
        lambda mean: jnp.sum((z - mean[None, :]) ** 2, axis=1),
        s.means,
        size=_BLOCK if symbolic else z.size,
        block=_BLOCK,
    ).T
    nearest = min_over_classes(squared, normal=s.normal)
    # The gradient of the root is infinite at 0, where an image equals a class mean.
    distance = jnp.where(nearest > 0, jnp.sqrt(jnp.where(nearest > 0, nearest, 1)), nearest)
    return nan_unless_finite(nan_if_normal_is_empty(distance, s.normal, s.count), x)


def one_image_per_class(facts: Facts) -> str | None:
    """Returns the reason why a score with a covariance is unavailable, or None."""
    if facts.images_per_class > 1:
        return None
    return "a covariance needs more than one image per class"


def _prepare(moments, normal) -> WhitenedMeans:
    return _statistics(in_dtype(moments), normal, RIDGE)


def _from_prepared(embeddings, prepared) -> jax.Array:
    return _distance(embeddings, prepared)


SCORE = Score(
    "mahalanobis",
    mahalanobis_score,
    source="Lee et al., NeurIPS 2018",
    default=True,
    order=10,
    one_split_at_a_time=True,
    unavailable=one_image_per_class,
    prepare=_prepare,
    from_prepared=_from_prepared,
)
