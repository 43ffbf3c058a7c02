"""Two things that a score needs of its reductions and loops, and that JAX does not give by itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num, Shaped


def min_over_classes(
    per_class: Float[jax.Array, "images classes"],
) -> Float[jax.Array, " images"]:
    """The minimum over the classes, NaN where any of them is NaN.

    XLA's own minimum may skip NaN when it is vectorised (seen on CPU), and an unknown score must not
    pass for a high or a low one. Classes that do not count hold +inf.
    """
    unknown = jnp.any(jnp.isnan(per_class), axis=1)
    return jnp.where(unknown, jnp.nan, jnp.min(per_class, axis=1))


def zero_like_inputs(*arrays: Shaped[jax.Array, "..."]) -> Num[jax.Array, ""]:
    """A zero that varies over the mesh axes that the arrays vary over, in the first array's dtype.

    Added to the start of a loop it gives the carry the type that the loop's body returns, as
    `shard_map` asks with its `check_vma`. It is a sum of nothing: no value takes part in it.
    """
    zero = arrays[0][:0].sum()
    for array in arrays[1:]:
        zero = zero + array[:0].sum().astype(zero.dtype)
    return zero
