"""Thresholds with a guarantee: split-conformal p-values of scores, and false-discovery control over a batch.

    p(x) = (1 + #{i : s_i >= s(x)}) / (m + 1)          s_1, ..., s_m: scores of held-out normal images

Assumption: if x is normal, x and the m calibration images are exchangeable (their joint distribution does not depend
on their order), and none of them was used to fit the score. Then, for any score, any distribution and every m,

    P(p(x) <= alpha) <= alpha        for a normal image x,

on average over calibration sets and images (marginally: not for one class, nor for one calibration set).
Over a batch, the Benjamini-Hochberg procedure on these p-values keeps the expected share of normal images
among the flagged ones at most alpha. The p-values share one calibration set and depend on each other positively,
which is sufficient.

Higher scores are more anomalous, as everywhere in this library.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (the p-value); Bates, Candes,
Lei, Romano, Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023 (theorem 2: the
dependence); Benjamini, Hochberg, "Controlling the false discovery rate", JRSS B 1995.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated, rows

_ROUNDING = 1e-6
"""Relative tolerance for a bound in float32; its rounding error would otherwise hide an equality."""


def conformal_p_values(
    scores: Float[Array, " images"], calibration_scores: Float[Array, " calibration"]
) -> Float[jax.Array, " images"]:
    """Computes p(x) = (1 + #{i : s_i >= s(x)}) / (m + 1), the share of normal images at least as anomalous as x.

    Args:
        scores: Scores of the images to judge [images], higher = more anomalous.
        calibration_scores: Scores of m normal images that the score was not fitted on [m], in any order.

    Returns:
        p-values [images], float32, one of 1 / (m + 1), 2 / (m + 1), ..., 1; NaN if the score is NaN. 0 images give
        an empty array.

    Raises:
        ValueError: The arguments are not floating vectors, or there are no calibration scores or one is NaN.
    """
    s = _vector("scores", scores)
    return _p_values(s, _calibration(calibration_scores))


@compiled(static=(), out=lambda s, *_: rows(s))
def _p_values(s: jax.Array, calibration: jax.Array) -> jax.Array:
    m = len(calibration)
    dtype = _checks.accumulation_dtype(s, calibration)
    ordered = jnp.sort(calibration.astype(dtype))
    at_least = m - jnp.searchsorted(ordered, s.astype(dtype))
    # The values come from a table, because compiled code may multiply by the reciprocal instead of dividing, and the
    # result may then differ from alpha in the last bit.
    p = jnp.asarray((np.arange(1, m + 2) / (m + 1)).astype(np.float32))[at_least]
    return jnp.where(jnp.isnan(s), jnp.nan, p)


def conformal_threshold(
    calibration_scores: Float[Array, " calibration"], alpha: float
) -> Float[jax.Array, ""]:
    """Returns the score above which p(x) <= alpha: the j-th largest of m, j = floor(alpha (m + 1)).

    p(x) <= alpha if and only if s(x) is larger than this score.

    Args:
        calibration_scores: Scores of m normal images, as for `conformal_p_values`.
        alpha: False-alarm rate, 0 < alpha < 1; static.

    Raises:
        ValueError: alpha is traced or out of range, or there are fewer than `images_needed(alpha)` calibration
            scores.
    """
    calibration = _calibration(calibration_scores)
    if not _checks.is_concrete(alpha):
        raise ValueError(
            "alpha: expected a Python number, got a traced value; alpha is static, because it selects a rank"
        )
    check_calibration_size(len(calibration), alpha)
    return _ranked(calibration, rank=largest_rank(len(calibration), alpha))


@compiled(static=("rank",), out=replicated)
def _ranked(calibration: jax.Array, *, rank: int) -> jax.Array:
    return jnp.sort(calibration)[len(calibration) - rank]


def benjamini_hochberg(
    p_values: Float[Array, " images"], alpha: float | Float[Array, ""]
) -> Bool[jax.Array, " images"]:
    """Flags the images with the j smallest p-values; j is the largest rank with p_(j) <= alpha j / n.

    With the p-values of `conformal_p_values`, the expected share of normal images among the flagged ones, the false
    discovery rate, is at most alpha times the share of normal images in the batch.

    Args:
        p_values: p-values of one batch [images]. Whether an image is flagged depends on the whole batch.
        alpha: False discovery rate, between 0 and 1.

    Returns:
        Whether each image is flagged [images]. A p-value of NaN counts as 1, so its image is not flagged. 0 images
        give an empty array.

    Raises:
        ValueError: The p-values are not a floating vector, or alpha is not one number between 0 and 1.
    """
    p = _vector("p_values", p_values)
    check_alpha(alpha)
    return _flagged(p, alpha)


@compiled(static=(), out=lambda p, *_: PartitionSpec())
def _flagged(p: jax.Array, alpha: Any) -> jax.Array:
    n = len(p)
    if not n:
        return jnp.zeros(0, bool)
    p = jnp.where(jnp.isnan(p), 1, p)
    ordered = jnp.sort(p)
    bound = jnp.arange(1, n + 1, dtype=p.dtype) * (jnp.asarray(alpha).astype(p.dtype) / n)
    below = ordered <= bound * (1 + _ROUNDING)
    largest = jnp.max(jnp.where(below, ordered, -1))
    return p <= largest


def images_needed(alpha: float) -> int:
    """Returns the smallest number m of calibration images with which p-values can be <= alpha: m + 1 >= 1 / alpha.

    >>> images_needed(0.05), images_needed(0.001)
    (19, 999)
    """
    check_alpha(alpha)
    return math.ceil(1 / _fraction(float(alpha))) - 1


def largest_rank(m: int, alpha: float) -> int:
    """Returns the rank floor(alpha (m + 1)), the number of m + 1 exchangeable scores that may be flagged."""
    return math.floor(_fraction(float(alpha)) * (m + 1))


def check_alpha(alpha: float | Array) -> None:
    """Raises ValueError unless alpha is one number with 0 < alpha < 1; traced numbers pass."""
    if not _checks.is_concrete(alpha):
        _checks.scalar("alpha", alpha)
        return
    if not 0 < float(alpha) < 1:
        raise ValueError(f"alpha: expected a rate above 0 and below 1, got {float(alpha):g}")


def check_calibration_size(m: int, alpha: float) -> None:
    """Raises ValueError if m calibration images are too few for alpha; the message says how many are needed."""
    needed = images_needed(alpha)
    if m < needed:
        raise ValueError(
            f"alpha {float(alpha):g} needs at least {needed} calibration images, got {m}: the smallest "
            f"p-value they can give is {1 / (m + 1):.3g}"
        )


def _fraction(alpha: float) -> Fraction:
    """Returns the decimal number that is printed for alpha: 1/20 for 0.05, not the binary number just above it."""
    return Fraction(repr(alpha))


def _vector(name: str, values: Array) -> jax.Array:
    if not hasattr(values, "dtype"):
        raise ValueError(f"{name}: expected an array, got a {type(values).__name__}")
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
    checks = _checks.ValueChecks()
    checks.add(
        "no NaN",
        0,
        lambda a, _: f"calibration_scores: entry {int(np.isnan(a).argmax())} is NaN",
        array,
        jnp.ones(array.shape, bool),
    )
    checks.run()
    return array
