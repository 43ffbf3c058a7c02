"""Reductions with defined results for NaN and infinity, and zeros for loops inside `shard_map`."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num, Shaped

from bliss_jax._checks import Array


def min_over_classes(
    per_class: Float[Array, "images classes"], *, normal: Bool[Array, " classes"] | None = None
) -> Float[jax.Array, " images"]:
    """Returns the minimum of a score over the normal classes c; NaN if the score of one of them is NaN.

    The gradient is that of the first class with the smallest score. Scores of classes that are not normal are
    ignored, also if they are NaN or infinite.

    Args:
        per_class: Score of each image for each class [images, classes].
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images]; +inf if no class is normal.
    """
    per_class = jnp.asarray(per_class)
    mask = jnp.ones(per_class.shape[1], bool) if normal is None else jnp.asarray(normal)
    best = smallest_class(per_class, mask)
    smallest = jnp.take_along_axis(per_class, best[:, None], axis=1)[:, 0]
    return jnp.where(jnp.any(mask), smallest, jnp.inf)


def smallest_class(
    per_class: Float[jax.Array, "images classes"], mask: Bool[jax.Array, " classes"]
) -> jax.Array:
    """Returns the first normal class with the smallest score, or the first whose score is NaN."""
    # XLA's minimum may skip NaN if it is vectorised on CPUs, but an unknown score must stay unknown. Infinite values
    # are only compared, so no gradient passes through them.
    order = jnp.where(jnp.isnan(per_class), -jnp.inf, per_class)
    return jnp.argmin(jnp.where(mask[None, :], order, jnp.inf), axis=1).astype(jnp.int32)


def finite_rows(x: Float[jax.Array, "images dim"]) -> Bool[jax.Array, " images"]:
    """Returns whether all numbers of each row are finite."""
    return jnp.all(jnp.isfinite(x), axis=1)


def nan_unless_finite(
    scores: Float[jax.Array, "images *more"], x: Float[jax.Array, "images dim"]
) -> Float[jax.Array, "images *more"]:
    """Returns the scores, with NaN for images whose embedding is not finite."""
    known = finite_rows(x).reshape(-1, *(1,) * (scores.ndim - 1))
    return jnp.where(known, scores, jnp.nan)


def zero_like_inputs(*arrays: Shaped[jax.Array, "..."]) -> Num[jax.Array, ""]:
    """Returns a zero that varies over the same mesh axes as the arrays, in the first array's dtype.

    Adding it to the initial carry of a loop gives the carry the type that the loop's body returns, as `shard_map`
    with `check_vma` requires. It is a sum over 0 elements, so it does not depend on any value.
    """
    zero = arrays[0][:0].sum()
    for array in arrays[1:]:
        zero = zero + array[:0].sum().astype(zero.dtype)
    return zero
