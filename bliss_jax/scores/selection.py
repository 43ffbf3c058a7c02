"""Exact selection of the k largest similarities of each image, from the maxima of groups of texts.

The rows of a chunk of similarities [texts, images] are divided into groups of about sqrt(texts / 2) consecutive
texts, and the maximum of each group is computed once. Each of the k steps then takes the largest maximum, reads the
group to which it belongs, and lowers the group's maximum to its next value. The chunk is therefore read once, and a
step reads 2 sqrt(2 texts) numbers per image. No similarities are sorted.

Every operation is elementwise over the images, a reduction over texts, or a gather within one image. The compiler can
therefore vectorise over images, and it divides the work over devices that hold different images without moving any
similarity. A sort or `lax.top_k` would gather all of them.

Larger values come first, and among equal values the text that comes first in the dictionary. NaN and +inf are never
chosen.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int


class TopK(NamedTuple):
    """The k largest values of each image so far, in descending order."""

    values: Float[jax.Array, "k images"]
    """-inf in places that no text has filled."""
    texts: Int[jax.Array, "k images"]
    """Positions of the texts, 0 in places that no text has filled."""


def no_texts(k: int, images: Any, dtype: Any, zero: jax.Array) -> TopK:
    """Returns the result for 0 texts, as the carry of a loop; it varies over the same mesh axes as `zero`."""
    values = jnp.full((k, images), -jnp.inf, dtype) + zero.astype(dtype)
    return TopK(values, jnp.zeros((k, images), jnp.int32) + zero.astype(jnp.int32))


def merge_chunk(
    best: TopK,
    similarities: Float[jax.Array, "texts images"],
    first: Int[jax.Array, ""],
    counted: Bool[jax.Array, " texts"] | None = None,
) -> TopK:
    """Returns the k largest values of `best` and of one more chunk, whose texts all come after those of `best`.

    Args:
        best: Result of the earlier chunks.
        similarities: Similarities of the chunk's texts to the images.
        first: Position of the chunk's first text.
        counted: Mask of the chunk's texts that count; all if None.
    """
    texts, images = similarities.shape
    size = _group_size(texts)
    groups = -(-texts // size)
    missing = groups * size - texts
    if counted is not None or missing:
        mask = jnp.ones(texts, bool) if counted is None else counted
        similarities = jnp.where(mask[:, None], similarities, -jnp.inf)
        similarities = jnp.pad(similarities, ((0, missing), (0, 0)), constant_values=-jnp.inf)
    grouped = similarities.reshape(groups, size, images)
    maxima = jnp.full((groups, images), -jnp.inf, similarities.dtype)
    for member in range(size):  # one fused loop; comparisons with NaN are false, so NaN is ignored
        value = grouped[:, member]
        maxima = jnp.where((value > maxima) & (value < jnp.inf), value, maxima)
    group_number = jnp.arange(groups, dtype=jnp.int32)[:, None]
    place = jnp.arange(len(best.values), dtype=jnp.int32)[:, None]

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        best, maxima, last_value, last_text = carry
        value = jnp.max(maxima, axis=0)
        # Groups hold consecutive texts, so the first group with this maximum holds the first text with it.
        group = jnp.min(jnp.where(maxima == value[None], group_number, groups), axis=0)
        group = jnp.minimum(group, groups - 1)
        members = jnp.take_along_axis(grouped, group[None, None, :], axis=0)[0]
        text = group[None] * size + jnp.arange(size, dtype=jnp.int32)[:, None]
        # Values are taken in order, so a text remains if it comes after the last one that was taken.
        left = _comes_after(members, text, last_value[None], last_text[None])
        chosen = jnp.where((members == value[None]) & left, text, groups * size).min(axis=0)
        rest = _comes_after(members, text, value[None], chosen[None])
        following = jnp.max(jnp.where(rest, members, -jnp.inf), axis=0)
        maxima = jnp.where(group_number == group[None], following[None], maxima)
        return (_insert(best, value, first + chosen, place), maxima, value, chosen), None

    start = jnp.full_like(maxima[0], jnp.inf), jnp.full_like(maxima[0], -1, jnp.int32)
    (best, *_), _ = lax.scan(step, (best, maxima, *start), None, length=min(len(place), texts))
    return best


def _comes_after(
    values: Float[jax.Array, "members images"],
    texts: Int[jax.Array, "members images"],
    last_value: Float[jax.Array, "1 images"],
    last_text: Int[jax.Array, "1 images"],
) -> Bool[jax.Array, "members images"]:
    """Returns whether (value, text) comes after (last_value, last_text): a smaller value, or a later equal one."""
    return (values < last_value) | ((values == last_value) & (texts > last_text))


def _insert(
    best: TopK,
    value: Float[jax.Array, " images"],
    text: Int[jax.Array, " images"],
    place: Int[jax.Array, "k 1"],
) -> TopK:
    """Inserts a value after all values that are at least as large, and drops the smallest one."""
    position = jnp.sum(best.values >= value[None], axis=0, dtype=jnp.int32)[None]

    def inserted(old: jax.Array, new: jax.Array) -> jax.Array:
        shifted = jnp.concatenate([old[:1], old[:-1]])
        return jnp.where(place < position, old, jnp.where(place == position, new[None], shifted))

    return TopK(inserted(best.values, value), inserted(best.texts, text))


def _group_size(texts: int) -> int:
    """Returns a size near sqrt(texts / 2) that divides the number of texts, if there is one nearby."""
    wanted = max(1, math.isqrt(texts // 2))
    near = (s for s in range(max(1, wanted // 2), min(48, 2 * wanted) + 1) if texts % s == 0)
    return min(near, key=lambda s: abs(s - wanted), default=min(32, wanted))
