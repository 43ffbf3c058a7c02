"""The softmax mass of a dictionary, computed chunk by chunk without the images-by-texts matrix.

    log sum_d exp(s(x, d) / T)

Memory besides inputs and result is at most min(images, block) x min(texts, chunk_size) numbers, forward and in reverse
mode, with the block of `bliss_jax.scores.top_k`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from bliss_jax import _checks
from bliss_jax._checks import Precision
from bliss_jax.scores.blocks import fold_chunks, map_images
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.top_k import block_size, similarity


def log_mass(
    x: Float[jax.Array, "images dim"],
    texts: Float[jax.Array, "texts dim"],
    temperature: Any,
    *,
    chunk_size: int,
    precision: Precision,
) -> Float[jax.Array, " images"]:
    """Computes log sum_d exp(s(x, d) / T) over all texts; -inf for 0 texts."""
    dtype = _checks.accumulation_dtype(x, texts)
    scale = jnp.asarray(temperature).astype(dtype)
    chunk = max(1, min(chunk_size, len(texts)))

    def of_images(x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def of_chunk(chunk: jax.Array) -> jax.Array:
            cosines = similarity(x, chunk, precision=precision)
            return jax.nn.logsumexp(cosines / scale, axis=1)

        def add_chunk(total: jax.Array, start: jax.Array, size: int) -> jax.Array:
            return jnp.logaddexp(total, of_chunk(lax.dynamic_slice_in_dim(texts, start, size)))

        # A finite start, because the gradient of logaddexp(-inf, -inf) is NaN.
        lowest = jnp.full(x.shape[0], jnp.finfo(dtype).min, dtype)
        lowest = lowest + zero_like_inputs(x, texts, scale[None]).astype(dtype)
        return fold_chunks(add_chunk, lowest, len(texts), chunk)

    return map_images(of_images, x, block_size(chunk, 0))
