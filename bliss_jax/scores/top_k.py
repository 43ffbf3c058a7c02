"""The k texts nearest to each image, exactly, without the images-by-texts matrix.

The dictionary goes by in chunks with a running top-k, so that memory is bounded by
images x (chunk_size + 2 k) similarities whatever the dictionary's size, and the result is the same for
every chunk size. Ties go to the text that comes first.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array

CHUNK_SIZE = 4096
"""Texts per chunk by default: 160 MB of similarities for 10,000 images."""


def similarity(
    embeddings: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"]
) -> Float[jax.Array, "images texts"]:
    """s(x, t) = x . t, the cosine of unit-norm embeddings, in full precision on every backend."""
    return jnp.matmul(embeddings, texts.T, precision=lax.Precision.HIGHEST)


def split_into_chunks(
    texts: Float[jax.Array, "texts dim"], chunk_size: int
) -> tuple[Float[jax.Array, "chunks chunk dim"], Int[jax.Array, " chunks"]]:
    """Cuts texts into equal chunks, the last padded with zeros; returns them with their first index."""
    chunk_size = max(1, min(chunk_size, len(texts)))
    num_chunks = -(-len(texts) // chunk_size)
    padded = jnp.pad(texts, ((0, num_chunks * chunk_size - len(texts)), (0, 0)))
    starts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk_size
    return padded.reshape(num_chunks, chunk_size, texts.shape[1]), starts


def top_k_similar(
    embeddings: Float[Array, "images dim"],
    texts: Float[Array, "texts dim"],
    k: int,
    *,
    chunk_size: int = CHUNK_SIZE,
    where: Bool[Array, " texts"] | None = None,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """The k largest cosines of each image to the texts, and which texts they are.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        texts: Unit-norm embeddings [texts, dim] (of texts, or of anything else to be searched).
        k: How many, 1 <= k <= texts; static.
        chunk_size: Texts per chunk; static.
        where: Texts that may be chosen [texts]; all by default. Where fewer than k may be, the rest of
            the values are -inf.

    Returns:
        Cosines [images, k] in descending order, and their indices [images, k].

    Raises:
        ValueError: k outside 1..texts.
    """
    _checks.top_k_size(k, len(texts), "the texts")
    embeddings, texts = jnp.asarray(embeddings), jnp.asarray(texts)
    allowed = jnp.ones(len(texts), bool) if where is None else jnp.asarray(where)
    # A chunk must be able to fill the k places by itself.
    chunks, starts = split_into_chunks(texts, max(chunk_size, k))
    chunk_size = chunks.shape[1]
    allowed = jnp.pad(allowed, (0, chunks.shape[0] * chunk_size - len(texts)))

    def best_of_chunk(texts, allowed, start):
        values, position = lax.top_k(jnp.where(allowed, similarity(embeddings, texts), -jnp.inf), k)
        return values, start + position

    def merge_chunk(best, chunk):
        values, indices = best_of_chunk(*chunk)
        # Earlier texts stand first, and top_k keeps the first of equals.
        values = jnp.concatenate([best[0], values], axis=1)
        indices = jnp.concatenate([best[1], indices], axis=1)
        values, position = lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, position, axis=1)), None

    chunked = (chunks, allowed.reshape(-1, chunk_size), starts)
    first = best_of_chunk(*(leaf[0] for leaf in chunked))
    rest = jax.tree.map(lambda leaf: leaf[1:], chunked)
    return lax.scan(merge_chunk, first, rest)[0] if len(starts) > 1 else first
