"""Settings of the scores that adapt to the test images, and the effect of a stream.

    python -m experiments.methods.validation_set glyphs-validation.npz
    python -m experiments.methods.test_time --embeddings glyphs-validation.npz     # to choose the settings
    python -m experiments.methods.test_time                                        # glyphs, test renders
    python -m experiments.methods.test_time --embeddings FILE.npz

The table contains AUROC x 100 of BLISS and of whitened BLISS with proxies (`proxies.py`) and with a queue
(`ood_queue.py`) for several settings, as the mean over splits and halves. The test images of a split are one batch,
except in the rows that name a batch size, where they are a stream in random order. `compare.py` contains the scores
with the defaults of the library, with paired differences to BLISS.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bliss_jax import metrics
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import class_masks
from bliss_jax.scores import bliss_score, fit_moments, scan_stream, update_proxies
from bliss_jax.scores.adapted_bliss import (
    BLISS_PROXIES,
    QUEUE_SHARE,
    QUEUE_WEIGHT,
    WHITENED_PROXIES,
    Proxies,
    cosine_deviation,
    memory_of_fit,
    whitened_static,
)
from bliss_jax.scores.ood_queue import queue_of_batch
from bliss_jax.scores.proxies import BETA, ProxyMemory
from experiments.common import (
    CASE,
    Case,
    Options,
    Stopwatch,
    cases,
    experiment,
    markdown,
    percent,
    said_once,
    write,
)

LAMBDA = 0.5
DEFAULTS = {"bliss": BLISS_PROXIES, "whitened": WHITENED_PROXIES}
HIGHS, WEIGHTS = (1.5, 2.5, 4.0), (0.2, 0.4, 0.8, 1.6)
"""Bounds `high` and weights of the margin that are compared."""
QUEUES = tuple(product((0.02, 0.05, 0.1), (0.05, 0.1, 0.2, 0.4)))
"""Shares of the queue and weights of the cosine that are compared."""
BATCHES = (32, 256)


class Split(NamedTuple):
    """Arrays of one split."""

    x: jax.Array
    static: jax.Array
    memory: ProxyMemory
    normal: jax.Array
    counted: jax.Array
    unit: jax.Array
    """Standard deviation of a cosine, by which the weights are divided."""


@partial(jax.jit, static_argnames=("k", "kind"))
def split_of(x, labels, texts, moments, normal, counted, *, k: int, kind: str) -> Split:
    """Returns the static scores and the memory of a split."""
    if kind == "bliss":
        static = bliss_score(x, labels, texts, moments, k, weight=LAMBDA, normal=normal)
    else:
        static = whitened_static(x, labels, texts, moments, k, LAMBDA, normal)
    memory = memory_of_fit(texts, moments, normal)
    return Split(x, static, memory, normal, counted, cosine_deviation(moments, normal))


@partial(jax.jit, static_argnames="attention")
def with_proxies(s: Split, p: Proxies, *, attention: bool = False) -> jax.Array:
    """Computes the scores of a whole batch with proxies."""
    return update_proxies(
        s.memory, s.x, s.static, low=p.low, high=p.high, weight=p.weight / s.unit,
        normal=s.normal, where=s.counted, beta=BETA if attention else None,
    )[1]  # fmt: skip


@partial(jax.jit, static_argnames="batch")
def streamed(s: Split, p: Proxies, *, batch: int) -> jax.Array:
    """Computes the scores of a stream in random order with proxies."""
    order = jax.random.permutation(jax.random.key(0), len(s.x))

    def update(memory, x, static, in_test, *, where):
        return update_proxies(
            memory, x, static, low=p.low, high=p.high, weight=p.weight / s.unit,
            normal=s.normal, where=where & in_test,
        )  # fmt: skip

    arrays = s.x[order], s.static[order], s.counted[order]
    found = scan_stream(update, s.memory, *arrays, batch_size=batch)[1]
    return jnp.zeros_like(found).at[order].set(found)


@partial(jax.jit, static_argnames="share")
def with_queue(s: Split, weight: Any, *, share: float) -> jax.Array:
    """Computes the scores of a whole batch with a queue."""
    return queue_of_batch(s.x, s.static, s.counted, weight / s.unit, share=share)


area = jax.jit(lambda scores, is_anomaly, counted: metrics.auroc(scores, is_anomaly, where=counted))


def scores_of(kind: str, s: Split) -> Iterator[tuple[str, jax.Array]]:
    """Yields the name and the scores of each row of the table."""
    yield kind, s.static
    default = DEFAULTS[kind]
    for high, weight in product(HIGHS, WEIGHTS):
        name = f"{kind}, proxies, high {high:g}, weight {weight:g}"
        yield name, with_proxies(s, default._replace(high=high, weight=weight))
    yield f"{kind}, proxies, no normal images stored", with_proxies(s, default._replace(low=-99.0))
    yield f"{kind}, proxies, attention", with_proxies(s, default, attention=True)
    for batch in BATCHES:
        yield f"{kind}, proxies, batches of {batch}", streamed(s, default, batch=batch)
    for share, weight in QUEUES:
        name = f"{kind}, queue of {100 * share:g} %, weight {weight:g}"
        yield name, with_queue(s, weight, share=share)


def measure(case: Case) -> dict[str, list[float]]:
    """Returns the mean AUROC of each row for each protocol."""
    areas: dict[str, list[float]] = {}
    for protocol in case.protocols:
        found: dict[str, list[float]] = {}
        for e in case.sets:
            normal, anomalous = class_masks(protocol, e)
            arrays = _arrays(e)
            for own, other in zip(normal, anomalous, strict=True):
                is_anomaly = jnp.asarray(other[e.test_labels])
                counted = jnp.asarray((own | other)[e.test_labels])
                for kind in DEFAULTS:
                    s = split_of(*arrays, jnp.asarray(own), counted, k=case.k, kind=kind)
                    for name, scores in scores_of(kind, s):
                        found.setdefault(name, []).append(float(area(scores, is_anomaly, counted)))
        for name, values in found.items():
            areas.setdefault(name, []).append(float(np.mean(values)))
    return areas


def _arrays(e: EmbeddingSet) -> tuple[Any, ...]:
    moments = fit_moments(
        e.train_embeddings, e.train_labels.astype(np.int32), num_classes=e.num_classes
    )
    texts = map(jnp.asarray, (e.test_embeddings, e.label_embeddings, e.dictionary_embeddings))
    return *texts, moments


@experiment()
def main(options: Options) -> None:
    """Measure settings of the scores that adapt to the test images."""
    for case in cases(options):
        watch = Stopwatch()
        areas = measure(case)
        headings = ["score", *(protocol.name for protocol in case.protocols), "mean"]
        table = [
            [name, *map(percent, found), f"{100 * np.mean(found):.2f}"]
            for name, found in areas.items()
        ]
        said = said_once([f"{what} {value}" for what, value in zip(CASE, case[:2], strict=True)])
        defaults = "".join(
            f"{kind}: proxies with low {p.low:g}, high {p.high:g} and weight {p.weight:g}. "
            for kind, p in DEFAULTS.items()
        )
        defaults += f"Queue: {100 * QUEUE_SHARE:g} %, weight {QUEUE_WEIGHT:g}.\n"
        text = f"{said}{markdown(headings, table)}\nDefaults: {defaults}\n{watch}\n"
        write(options, f"test_time-{case.dataset}", text, {"areas": areas})


if __name__ == "__main__":
    main()
