"""Checks of shapes that several scores share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bliss_jax import _checks


def same_dim(**embeddings: jax.Array) -> None:
    """Raises ValueError unless all arrays have the same last axis; the message contains names and shapes."""
    if len({array.shape[-1] for array in embeddings.values()}) > 1:
        shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in embeddings.items())
        raise ValueError(f"expected embeddings of one dimension, got {shapes}")


def row_mask(name: str, mask: Any, length: int, of_what: str) -> jax.Array | None:
    """Checks a mask of rows and returns it; None stays None.

    Raises:
        ValueError: The mask is not a bool [length] array.
    """
    if mask is None:
        return None
    array = _checks.as_array(name, mask)
    if array.shape != (length,) or array.dtype != jnp.bool_:
        raise ValueError(
            f"{name}: expected a bool [{length}] array, one entry per {of_what}, got {array.dtype} "
            f"{list(array.shape)}"
        )
    return array


def is_traced_shape(size: Any) -> bool:
    """Whether a dimension is symbolic, as in `jax.export` with a batch of any size."""
    return not isinstance(size, int | np.integer)
