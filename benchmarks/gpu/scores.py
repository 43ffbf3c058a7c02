"""The nearest texts by several means, and the whole score, beside the similarity product alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bliss_jax as bj
from benchmarks.gpu.measuring import BLANK, Found, Settings, Sheet, clock
from benchmarks.measure import Table

DIM, K, CLASSES = 512, 10, 10
_GROUP = 64


def select_sort(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row by sorting it whole."""
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
    values, order = lax.sort((-x, index), dimension=1, num_keys=1, is_stable=True)
    return -values[:, :k], order[:, :k]


def select_groups(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row in two stages, exactly: they lie in the k groups of the largest maxima."""
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
    "lax.approx_max_k": functools.partial(lax.approx_max_k, recall_target=0.95),
}


def nearest(
    select: Callable, images: jax.Array, dictionary: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """The K nearest texts of each image: `select` on every chunk, then the best of all chunks."""

    def step(best, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        values, index = select(_similarity(images, some), K)
        values = jnp.concatenate([best[0], values], axis=1)
        index = jnp.concatenate([best[1], index.astype(jnp.int32) + start], axis=1)
        values, place = lax.top_k(values, K)
        return values, jnp.take_along_axis(index, place, axis=1)

    start = jnp.full((len(images), K), -jnp.inf), jnp.zeros((len(images), K), jnp.int32)
    return _fold(step, start, len(dictionary), chunk)


def product_alone(images: jax.Array, dictionary: jax.Array, chunk: int) -> jax.Array:
    """The similarities of every chunk of texts, of which all but one column each is thrown away."""

    def step(total, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        # Without the barrier XLA would compute the one column alone.
        return total + lax.optimization_barrier(_similarity(images, some))[:, 0]

    return _fold(step, jnp.zeros(len(images)), len(dictionary), chunk)


def _similarity(images: jax.Array, some: jax.Array) -> jax.Array:
    return jnp.matmul(images, some.T, precision=lax.Precision.HIGHEST)


def _fold(step: Callable, carry: Any, length: int, chunk: int) -> Any:
    full, rest = divmod(length, chunk)
    if 0 < rest < K:
        raise ValueError(f"a chunk of {chunk} leaves {rest} of {length} texts, fewer than k = {K}")
    starts = jnp.arange(full, dtype=jnp.int32) * chunk
    carry, _ = lax.scan(lambda c, start: (step(c, start, chunk), None), carry, starts)
    return step(carry, jnp.int32(full * chunk), rest) if rest else carry


def scores(settings: Settings, found: Found) -> Table:
    """Top-k by several means, and the whole score, beside the similarity product alone."""
    n = 64 if settings.quick else 10_000
    sizes: dict[int, tuple[int, ...]] = {1_860: (1_860,), 80_000: (4_096, 16_384, 40_000)}
    sizes[1_000_000] = (4_096, 16_384, 65_536)
    if settings.quick:
        sizes = {2_000: (512,), 4_000: (2_560,)}
    headings = "texts | chunk | what | ms | ratio to product | recall"
    sheet = Sheet(settings, f"Scores of {n:,} images", headings)
    images, labels = _unit(0, n), _unit(3, CLASSES)
    classes = jnp.arange(50 * CLASSES, dtype=jnp.int32) % CLASSES
    moments = bj.fit_moments(_unit(1, 50 * CLASSES), classes, num_classes=CLASSES)
    for number, chunks in sizes.items():
        dictionary = _unit(2, number)
        exact: list[np.ndarray] = []
        for chunk in chunks:

            def whole(images, dictionary, chunk=chunk):
                return bj.bliss_score(images, labels, dictionary, moments, K, chunk_size=chunk)

            programs: dict[str, Callable] = {
                "product alone": functools.partial(product_alone, chunk=chunk)
            }
            for kind, select in SELECTORS.items():
                # A sort gains nothing from other chunks, and takes longest.
                if kind != "sort" or chunk == chunks[0]:
                    programs[kind] = functools.partial(nearest, select, chunk=chunk)
            programs["bliss_score"] = whole
            alone = []
            for kind, function in programs.items():

                def run(function=function, dictionary=dictionary):
                    program = jax.jit(function)
                    timing = clock(lambda: program(images, dictionary), settings.quick)
                    return timing, program(images, dictionary)

                def cells(
                    measured, kind=kind, number=number, chunk=chunk, exact=exact, alone=alone
                ):
                    timing, result = measured
                    seconds, recall = timing.median, BLANK
                    if kind == "product alone":
                        alone.append(seconds)
                    if kind in SELECTORS:
                        exact.append(np.asarray(result[1]))
                        recall = f"{recall_of(exact[-1], exact[0]):.5f}"
                    sheet.data[f"{number}, {chunk}, {kind}"] = {
                        "texts": number, "chunk": chunk, "what": kind, "seconds": seconds,
                        "recall": recall, "images_per_s": n / seconds,
                    }  # fmt: skip
                    return (
                        f"{1e3 * seconds:.4g}",
                        f"{seconds / alone[0]:.2f}" if alone else BLANK,
                        recall,
                    )

                sheet.add((number, chunk, kind), run, cells)
    sheet.notes.append(
        f"{DIM} dimensions, k = {K}, {CLASSES} classes, float32 at highest precision, fit not included; "
        "recall against the first `lax.top_k` of as many texts"
    )
    return sheet.table()


def _unit(seed: int, n: int) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (n, DIM)).at[:, 0].add(DIM**0.5)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def recall_of(index: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact texts that are among those found, over all images."""
    return float((index[:, :, None] == exact[:, None, :]).any(axis=1).mean())
