"""The k texts nearest to each image, exactly, without the images-by-texts matrix.

The dictionary goes by in chunks with a running top-k, so that memory is bounded by
images x (chunk_size + 4 k) numbers beside the inputs, whatever the dictionary's size, and the result is the
same for every chunk size. Ties go to the text that comes first.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.reductions import zero_like_inputs

CHUNK_SIZE = 4096
"""Texts per chunk by default: 160 MB of similarities for 10,000 images."""

Carry = TypeVar("Carry")


def similarity(
    embeddings: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"]
) -> Float[jax.Array, "images texts"]:
    """s(x, t) = x . t, the cosine of unit-norm embeddings, in full precision on every backend."""
    return jnp.matmul(embeddings, texts.T, precision=lax.Precision.HIGHEST)


def fold_chunks(
    step: Callable[[Carry, Int[jax.Array, ""], int], Carry],
    carry: Carry,
    length: int,
    chunk_size: int,
) -> Carry:
    """Folds `carry = step(carry, start, size)` over the chunks [start, start + size) of 0..length-1.

    A loop over the full chunks and one step for the rest, so that nothing is padded and `size` is static.

    Raises:
        ValueError: a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    full, rest = divmod(length, chunk_size)
    if full:
        starts = jnp.arange(full, dtype=jnp.int32) * chunk_size
        carry, _ = lax.scan(
            lambda carry, start: (step(carry, start, chunk_size), None), carry, starts
        )
    return step(carry, jnp.int32(full * chunk_size), rest) if rest else carry


def top_k_similar(
    embeddings: Float[Array, "images dim"],
    texts: Float[Array, "texts dim"],
    k: int,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """The k largest cosines of each image to the texts, and which texts they are.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        texts: Unit-norm embeddings [texts, dim] (of texts, or of anything else to be searched).
        k: How many, 1 <= k <= texts; static.
        chunk_size: Texts per chunk; static.

    Returns:
        Cosines [images, k] in descending order, and their indices [images, k].

    Raises:
        ValueError: k outside 1..texts, or a chunk size below 1.
    """
    _checks.top_k_size(k, len(texts), "the texts")
    x, texts = jnp.asarray(embeddings), jnp.asarray(texts)

    def add_chunk(best, start, size):
        chunk = lax.dynamic_slice_in_dim(texts, start, size)
        values, position = lax.top_k(similarity(x, chunk), min(k, size))
        # Earlier texts stand first, and top_k keeps the first of equals.
        values = jnp.concatenate([best[0], values], axis=1)
        indices = jnp.concatenate([best[1], start + position], axis=1)
        values, position = lax.top_k(values, k)
        return values, jnp.take_along_axis(indices, position, axis=1)

    zero = zero_like_inputs(x, texts)
    nothing = (
        jnp.full((len(x), k), -jnp.inf, x.dtype) + zero,
        jnp.zeros((len(x), k), jnp.int32) + zero.astype(jnp.int32),
    )
    return fold_chunks(add_chunk, nothing, len(texts), min(chunk_size, len(texts)))
