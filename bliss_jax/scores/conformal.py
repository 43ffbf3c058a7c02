"""Thresholds with a meaning: split-conformal p-values of scores, and false-discovery control over a batch.

    p(x) = (1 + #{i : s_i >= s(x)}) / (m + 1)          s_1, ..., s_m: scores of held-out normal images

Assumption: x, were it normal, and the m calibration images are exchangeable (drawn alike, in any order), and
none of them was used to fit the score. Then, for whatever score and distribution and every m,

    P(p(x) <= alpha) <= alpha        for a normal image x,

on average over calibration sets and images (marginally: not for one class, nor for one calibration set).
Over a batch, the Benjamini-Hochberg procedure on these p-values keeps the expected share of normal images
among those it flags at most alpha: they share one calibration set, but depend positively, which is enough.

Higher scores are more anomalous, as everywhere here. Pure functions; nothing is jitted.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (the p-value); Bates, Candes,
Lei, Romano, Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023 (theorem 2: the
dependence); Benjamini, Hochberg, "Controlling the false discovery rate", JRSS B 1995.
"""

import math
from fractions import Fraction

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array

_ROUNDING = 1e-6
"""Relative error of a bound in float32, by which an equality would be missed."""


def conformal_p_values(
    scores: Float[Array, " images"], calibration_scores: Float[Array, " calibration"]
) -> Float[jax.Array, " images"]:
    """p(x) = (1 + #{i : s_i >= s(x)}) / (m + 1): the share of normal images at least as anomalous as x.

    Args:
        scores: Of the images in question [images], higher = more anomalous.
        calibration_scores: Of m normal images that the score was not fitted on [m], in any order.

    Returns:
        p-values [images], in 1 / (m + 1), ..., 1; NaN where a score is NaN.

    Raises:
        ValueError: not floating vectors, no calibration scores, or one that is NaN.
    """
    s, calibration = _vector("scores", scores), _calibration(calibration_scores)
    m = len(calibration)
    at_least = m - jnp.searchsorted(jnp.sort(calibration), s.astype(calibration.dtype))
    # From a table: a compiled division may be a product with the reciprocal, and miss alpha by a bit.
    p = jnp.asarray((np.arange(1, m + 2) / (m + 1)).astype(np.float32))[at_least]
    return jnp.where(jnp.isnan(s), jnp.nan, p)


def conformal_threshold(
    calibration_scores: Float[Array, " calibration"], alpha: float
) -> Float[jax.Array, ""]:
    """The score above which p(x) <= alpha: the j-th largest of m, j = floor(alpha (m + 1)).

    p(x) <= alpha exactly where s(x) is larger than this.

    Args:
        calibration_scores: As `conformal_p_values`.
        alpha: False-alarm rate, 0 < alpha < 1; static.

    Raises:
        ValueError: alpha out of range, or fewer than `images_needed(alpha)` calibration scores.
    """
    calibration = _calibration(calibration_scores)
    check_calibration_size(len(calibration), alpha)
    rank = largest_rank(len(calibration), alpha)
    return jnp.sort(calibration)[len(calibration) - rank]


def benjamini_hochberg(
    p_values: Float[Array, " images"], alpha: float | Float[Array, ""]
) -> Bool[jax.Array, " images"]:
    """Flags the images with the j smallest p-values, j the largest with p_(j) <= alpha j / n.

    With p-values of `conformal_p_values` the expected share of normal images among those flagged, the false
    discovery rate, is at most alpha times the share of normal images in the batch.

    Args:
        p_values: Of one batch [images]; which images are flagged depends on all of them.
        alpha: False discovery rate, between 0 and 1.

    Returns:
        Whether an image is flagged [images]. An image whose p-value is NaN is not, and counts as one.

    Raises:
        ValueError: not a floating vector, alpha out of range.
    """
    p = _vector("p_values", p_values)
    check_alpha(alpha)
    n = len(p)
    if not n:
        return jnp.zeros(0, bool)
    p = jnp.where(jnp.isnan(p), 1, p)
    ordered = jnp.sort(p)
    bound = jnp.arange(1, n + 1, dtype=p.dtype) * (jnp.asarray(alpha, p.dtype) / n)
    below = ordered <= bound * (1 + _ROUNDING)
    largest = jnp.max(jnp.where(below, ordered, -1))
    return p <= largest


def images_needed(alpha: float) -> int:
    """The fewest calibration images with which a p-value can be as small as alpha: m + 1 >= 1 / alpha.

    >>> images_needed(0.05), images_needed(0.001)
    (19, 999)
    """
    check_alpha(alpha)
    return math.ceil(1 / _fraction(float(alpha))) - 1


def largest_rank(m: int, alpha: float) -> int:
    """The rank floor(alpha (m + 1)): so many of m + 1 exchangeable scores are flagged at most."""
    return math.floor(_fraction(float(alpha)) * (m + 1))


def check_alpha(alpha: float | Array) -> None:
    """Raises ValueError unless 0 < alpha < 1; tracers pass."""
    if isinstance(alpha, jax.core.Tracer):
        return
    if not 0 < float(alpha) < 1:
        raise ValueError(f"alpha: expected a rate above 0 and below 1, got {float(alpha):g}")


def check_calibration_size(m: int, alpha: float) -> None:
    """Raises ValueError where m calibration images are too few for alpha; says how many are needed."""
    needed = images_needed(alpha)
    if m < needed:
        raise ValueError(
            f"alpha {float(alpha):g} needs at least {needed} calibration images, got {m}: the smallest "
            f"p-value they can give is {1 / (m + 1):.3g}"
        )


def _fraction(alpha: float) -> Fraction:
    """The decimal that was meant: 0.05 is 1/20, not the binary number just above it."""
    return Fraction(repr(alpha))


def _vector(name: str, values: Array) -> jax.Array:
    array = jnp.asarray(values)
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a floating [n] array, got {array.dtype} {list(array.shape)}"
        )
    return array


def _calibration(scores: Array) -> jax.Array:
    array = _vector("calibration_scores", scores)
    if not len(array):
        raise ValueError("calibration_scores: expected at least one, got none")
    unknown = _checks.look_at(lambda a: jnp.isnan(a), array)
    if unknown is not None and unknown.any():
        raise ValueError(f"calibration_scores: entry {int(unknown.argmax())} is NaN")
    return array
