"""The cost of composing scores: eager calls, images sharded under `jit`, and the memory of gradients.

eager       compares an eager call with the jitted one, and counts the compilations of a second eager call
gradients   lists the temporary memory that XLA allocates for a score, its gradients and many masks; nothing is run
shards      compares plain `jit` of images sharded over eight simulated devices with `shard_map`
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bliss_jax as bj
from benchmarks.measure import Table, in_fresh_process, median, repeat

DIM = 512
_MB = 1e6


def problem(images: int, texts: int, classes: int) -> tuple[Any, ...]:
    """Returns unit-norm images, labels and texts, and moments of random training images."""
    rng = np.random.default_rng(0)

    def unit(number: int) -> jax.Array:
        x = rng.normal(size=(number, DIM)).astype(np.float32)
        return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    train = unit(max(400, 4 * classes))
    moments = bj.fit_moments(train, jnp.arange(len(train)) % classes, num_classes=classes)
    return unit(images), unit(classes), unit(texts), moments


def _compilations(function: Callable[[], Any]) -> int:
    number = 0

    def listen(event: str, *_: Any, **__: Any) -> None:
        nonlocal number
        number += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.block_until_ready(function())
    return number


def _eager(images: int, times: int) -> list[tuple[str, ...]]:
    x, labels, texts, moments = problem(images, 1_860, 10)
    prepared = jax.jit(bj.prepare_bliss)(labels, texts, moments)
    train, own = x[: images // 2], jnp.arange(images // 2) % 10
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "bliss_score": (lambda *a: bj.bliss_score(*a), (x, labels, texts, moments)),
        "bliss_score_prepared": (lambda *a: bj.bliss_score_prepared(*a), (x, prepared)),
        "explain_bliss": (lambda *a: bj.explain_bliss(*a), (x, labels, texts, moments)),
        "top_k_similar": (lambda *a: bj.top_k_similar(*a, k=10), (x, texts)),
        "knn_score": (lambda *a: bj.knn_score(*a), (x, texts)),
        "update_moments": (lambda *a: bj.update_moments(*a), (moments, train, own)),
        "msp_score": (lambda *a: bj.msp_score(*a), (x, labels)),
    }
    rows = []
    for name, (function, arrays) in calls.items():
        jitted = jax.jit(function)
        jax.block_until_ready((function(*arrays), jitted(*arrays)))
        again = _compilations(lambda f=function, a=arrays: f(*a))
        eager = repeat(lambda f=function, a=arrays: f(*a), times)
        compiled = repeat(lambda f=jitted, a=arrays: f(*a), times)
        milliseconds = 1e3 * median(eager), 1e3 * median(compiled)
        rows.append(
            (
                f"{name}, {images} images",
                f"{milliseconds[0]:.2f}",
                f"{milliseconds[1]:.2f}",
                f"{milliseconds[0] - milliseconds[1]:.2f}",
                f"{milliseconds[0] / milliseconds[1]:.2f}",
                str(again),
            )
        )
    return rows


def eager(quick: bool) -> Table:
    """Compares eager calls with jitted ones."""
    rows = []
    for images, times in ((16, 30), (1_000, 10)) if quick else ((16, 200), (1_000, 40)):
        rows += in_fresh_process(_eager, images, times)
    return Table(
        "Eager calls",
        ("call", "eager, ms", "jitted, ms", "difference, ms", "ratio", "compilations"),
        tuple(rows),
        (
            "1,860 texts, 10 classes, 512 dimensions; medians. An eager call also checks the values of its arguments.",
            "The compilations are those of a second eager call with the same shapes.",
        ),
    )


def _temporary(function: Callable[..., Any], *arrays: Any) -> float:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return memory.temp_size_in_bytes / _MB  # pyright: ignore[reportOptionalMemberAccess]


def _gradients(images: int, texts: int, classes: int) -> list[tuple[str, ...]]:
    arrays = problem(images, texts, classes)

    def total(x: Any, labels: Any, dictionary: Any, moments: Any) -> Any:
        return bj.bliss_score(x, labels, dictionary, moments).sum()

    def masked(x: Any, labels: Any, dictionary: Any, moments: Any, masks: Any, n0: float) -> Any:
        return jax.vmap(
            lambda mask: bj.bliss_score(x, labels, dictionary, moments, normal=mask, shrinkage=n0)
        )(masks)

    masks = jnp.ones((20, classes), bool)
    output = {"images": 4 * images * DIM, "dictionary": 4 * texts * DIM}
    output["moments"] = 4 * classes * (1 + DIM + DIM**2)
    forward = _temporary(total, *arrays)
    found: dict[str, float] = {"score": forward}
    for number, name in ((0, "images"), (2, "dictionary"), (3, "moments")):
        slope = jax.grad(total, argnums=number, allow_int=True)
        found[f"gradient by {name}"] = _temporary(slope, *arrays)
    for n0 in (0.0, 20.0):
        found[f"20 masks, shrinkage {n0:g}"] = _temporary(
            lambda *a, n0=n0: masked(*a, n0=n0), *arrays, masks
        )
    size = f"{images} images, {texts:,} texts, {classes:,} classes"
    return [
        (
            f"{size}: {name}",
            f"{memory:,.0f}",
            f"{memory / forward:.1f}",
            f"{output.get(name.removeprefix('gradient by '), 0) / _MB:,.0f}",
        )
        for name, memory in found.items()
    ]


def gradients(quick: bool) -> Table:
    """Measures the temporary memory of scores and gradients."""
    sizes = ((256, 1_860, 10), (256, 20_000, 1_000))
    rows: list[tuple[str, ...]] = []
    for size in sizes[:1] if quick else sizes:
        rows += in_fresh_process(_gradients, *size)
    return Table(
        "Memory of gradients",
        ("computation", "temporaries, MB", "ratio to the score's", "output, MB"),
        tuple(rows),
        (
            "Temporaries are allocated by XLA besides inputs and outputs; from its analysis of the compiled program.",
        ),
    )


def _shards(images: int, times: int) -> list[tuple[str, ...]]:
    x, labels, texts, moments = problem(images, 1_860, 10)
    mesh = Mesh(np.array(jax.devices()), ("i",))
    prepared = jax.device_put(bj.prepare_bliss(labels, texts, moments), NamedSharding(mesh, P()))
    sharded = jax.device_put(x, NamedSharding(mesh, P("i")))
    programs = {
        "jit, automatic axes": jax.jit(bj.bliss_score_prepared),
        "jit of shard_map": jax.jit(
            jax.shard_map(
                bj.bliss_score_prepared, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i")
            )
        ),
    }
    rows = []
    for name, program in programs.items():
        text = program.lower(sharded, prepared).compile().as_text() or ""
        gathered = [line for line in text.splitlines() if " all-gather(" in line]
        program(sharded, prepared).block_until_ready()
        spent = median(repeat(lambda f=program: f(sharded, prepared), times))
        rows.append((f"{name}, {images:,} images", f"{1e3 * spent:.0f}", str(len(gathered))))
    return rows


def shards(quick: bool) -> Table:
    """Compares plain jit of sharded images with shard_map."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    rows = in_fresh_process(_shards, 1_024 if quick else 4_096, 3 if quick else 10)
    return Table(
        "Images sharded over eight simulated devices",
        ("program", "ms", "all-gathers"),
        tuple(rows),
        (
            "`bliss_score_prepared` with 1,860 texts and 10 classes. The devices share the process's CPUs.",
        ),
    )
