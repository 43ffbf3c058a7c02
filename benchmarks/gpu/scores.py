"""Cases: top-k and BLISS on embeddings that are on the device, beside the similarity product alone."""

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bliss_jax as bj
from benchmarks.gpu.measuring import Context, clock, first_call
from bliss_jax.scores import top_k

DIM, K, CLASSES = 512, 10, 10
_GROUP = 64
_EXACT = "lax.top_k, library's blocks"


def scores(texts: int, context: Context) -> Iterator[dict[str, Any]]:
    """Measures the similarity product, the top k and the BLISS score of 10,000 images.

    The product writes all similarities in one call per block of texts and keeps one column of each, which
    is the least that a method can do that compares every image with every text in float32.
    """
    images, dictionary, labels, moments = inputs(texts, context.quick)
    chunk = min(len(dictionary), 16_384)
    programs: dict[str, tuple[Callable, tuple]] = {
        "product": (functools.partial(product_alone, chunk=chunk), (images, dictionary)),
        "top k": (functools.partial(bj.top_k_similar, k=K), (images, dictionary)),
        "bliss": (bj.bliss_score, (images, labels, dictionary, moments)),
    }
    yield {"images": len(images), "texts": len(dictionary)}
    for kind, (function, given) in programs.items():
        program = jax.jit(function)
        _, seconds = first_call(lambda program=program, given=given: program(*given))
        timing = clock(lambda program=program, given=given: program(*given), context.quick)
        yield {
            kind: {
                "seconds": timing.median,
                "first_call_s": seconds,
                "images_per_s": len(images) / timing.median,
            }
        }


def selectors(texts: int, context: Context) -> Iterator[dict[str, Any]]:
    """Measures ways to find the k nearest texts: other blocks of the library, and other selections.

    The recall is the share of the exact texts that a way finds.
    """
    images, dictionary, _, _ = inputs(texts, context.quick)
    exact: list[np.ndarray] = []
    for way, (block, chunk, select) in ways(context.quick).items():
        if select is None:
            find = functools.partial(bj.top_k_similar, k=K, chunk_size=chunk)
        else:
            find = functools.partial(nearest, select, chunk=chunk)
        jax.clear_caches()  # programs of other blocks have the same arguments
        sizes = (chunk, block)
        with mock.patch.object(top_k, "default_sizes", lambda sizes=sizes: sizes):
            program = jax.jit(lambda x, d, find=find: find(x, d))
            (_, index), seconds = first_call(lambda program=program: program(images, dictionary))
        timing = clock(lambda program=program: program(images, dictionary), context.quick)
        exact.append(np.asarray(index))
        yield {
            way: {
                "seconds": timing.median,
                "first_call_s": seconds,
                "recall": recall_of(exact[-1], exact[0]),
            }
        }


def ways(quick: bool) -> dict[str, tuple[int, int, Callable | None]]:
    """Returns the ways to find the nearest texts: images in a block, texts in a chunk, and a selection.

    The selection is None for the library's own function. The other selections handle all images at once.
    """
    large = 1_280 if quick else 16_384
    chunk, block = top_k.default_sizes()
    everything = 1 << 30
    return {
        _EXACT: (block, chunk, None),
        "lax.top_k, blocks of 4,096 images": (4_096, chunk, None),
        "lax.top_k, all images, chunks of 16,384": (everything, large, None),
        "two stages, all images, chunks of 16,384": (everything, large, select_groups),
        "lax.approx_max_k, all images, chunks of 16,384": (everything, large, SELECTORS["approx"]),
    }


def inputs(texts: int, quick: bool) -> tuple[jax.Array, jax.Array, jax.Array, bj.ClassMoments]:
    """Returns unit-norm images, dictionary and labels, and moments of the classes, all on the device."""
    n, texts = (64, min(texts, 4_000)) if quick else (10_000, texts)
    return _draw(n, texts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(n: int, texts: int) -> tuple[jax.Array, jax.Array, jax.Array, bj.ClassMoments]:
    classes = jnp.arange(50 * CLASSES, dtype=jnp.int32) % CLASSES
    moments = bj.fit_moments(_unit(1, 50 * CLASSES), classes, num_classes=CLASSES)
    return _unit(0, n), _unit(2, texts), _unit(3, CLASSES), moments


def _unit(seed: int, n: int) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (n, DIM)).at[:, 0].add(DIM**0.5)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def select_sort(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest of each row by sorting the row."""
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
    values, order = lax.sort((-x, index), dimension=1, num_keys=1, is_stable=True)
    return -values[:, :k], order[:, :k]


def select_groups(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest of each row in two exact stages.

    They are all in the k groups with the largest maxima. Therefore the first stage selects k groups by
    their maxima, and the second stage selects among the members of these groups.
    """
    n, width = x.shape
    if width % _GROUP or width < 2 * k * _GROUP:
        return lax.top_k(x, k)  # pyright: ignore[reportReturnType]
    grouped = x.reshape(n, width // _GROUP, _GROUP)
    _, group = lax.top_k(grouped.max(axis=2), k)
    candidates = jnp.take_along_axis(grouped, group[:, :, None], axis=1).reshape(n, k * _GROUP)
    values, place = lax.top_k(candidates, k)
    chosen = jnp.take_along_axis(group, place // _GROUP, axis=1)
    return values, chosen * _GROUP + place % _GROUP


SELECTORS: dict[str, Callable[[jax.Array, int], Any]] = {
    "lax.top_k": lax.top_k,
    "sort": select_sort,
    "two stages": select_groups,
    "approx": functools.partial(lax.approx_max_k, recall_target=0.95),
}
"""Functions that return the k largest values of each row, and their positions."""


def nearest(
    select: Callable, images: jax.Array, dictionary: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the K nearest texts of each image: `select` on every chunk, then the best of all chunks.

    Raises:
        ValueError: If the last chunk has fewer than K texts.
    """

    def step(best, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        values, index = select(_similarity(images, some), K)
        values = jnp.concatenate([best[0], values], axis=1)
        index = jnp.concatenate([best[1], index.astype(jnp.int32) + start], axis=1)
        values, place = lax.top_k(values, K)
        return values, jnp.take_along_axis(index, place, axis=1)

    start = jnp.full((len(images), K), -jnp.inf), jnp.zeros((len(images), K), jnp.int32)
    return _fold(step, start, len(dictionary), chunk, least=K)


def product_alone(images: jax.Array, dictionary: jax.Array, chunk: int) -> jax.Array:
    """Computes the similarities of every chunk of texts, and keeps one column of each chunk."""

    def step(total, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        # Without the barrier XLA would compute the one column alone.
        return total + lax.optimization_barrier(_similarity(images, some))[:, 0]

    return _fold(step, jnp.zeros(len(images)), len(dictionary), chunk)


def _similarity(images: jax.Array, some: jax.Array) -> jax.Array:
    return jnp.matmul(images, some.T, precision=lax.Precision.HIGHEST)


def _fold(step: Callable, carry: Any, length: int, chunk: int, least: int = 1) -> Any:
    full, rest = divmod(length, chunk)
    if 0 < rest < least:
        raise ValueError(
            f"chunk={chunk}: expected chunks of at least k = {least} texts, but the last of {length} "
            f"texts has {rest}; use another chunk"
        )
    starts = jnp.arange(full, dtype=jnp.int32) * chunk
    carry, _ = lax.scan(lambda c, start: (step(c, start, chunk), None), carry, starts)
    return step(carry, jnp.int32(full * chunk), rest) if rest else carry


def recall_of(index: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of the exact texts that are among the texts found, over all images."""
    return float((index[:, :, None] == exact[:, None, :]).any(axis=1).mean())
