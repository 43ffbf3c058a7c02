"""Scores that the library and pytorch-ood share, on the same embeddings, and the cost that no procedure can avoid.

    python -m benchmarks.run --only pytorch-ood

The sizes are 50,000 normal images of 10 classes, 10,000 test images and 512 dimensions. Both libraries get the
embeddings in memory; pytorch-ood gets them as features, and the scores of logits get the product of its own
normalised features with the labels inside the measured call. kNN uses 50 neighbours. Before times are compared, the
scores must agree: equal up to rounding, or up to the monotone function that `Pair.to_ours` states.

Two products bound the library's own time from below:

    X^T X per class      the product of a fit, on embeddings that are already sorted by class
    similarity product   the cosines of all test images to all normal images, of which only the maximum of each
                         image is kept

pytorch-ood is measured if it is installed (`pip install pytorch-ood`), and named in a note if it is not. It is measured
with one thread and with all threads, and the faster time counts. PyTorch's threads wait for each other after every
operation: on a machine with other work, MCM of 1,000 images took 48 ms with two threads and 0.7 ms with one.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bliss_jax as bj
from benchmarks.measure import Table, cpus, median, seconds, spread
from benchmarks.synthetic import Embeddings, embeddings

CLASSES, NEIGHBOURS = 10, 50
FULL = {"train": 50_000, "test": 10_000, "texts": 1}
QUICK = {"train": 5_000, "test": 1_000, "texts": 1}
TEMPERATURE = 0.01
_AT_ONCE = 1_000
"""Test images per block of the similarity product."""

Call = Callable[[], Any]


class Pair(NamedTuple):
    """A task that both libraries do."""

    ours: Call
    theirs: Call | None
    bound: str | None
    """Name of the product that bounds the time from below."""
    to_ours: Callable[[np.ndarray], np.ndarray] | None
    """Function from the scores of pytorch-ood to ours; None if the task returns no scores."""
    tolerance: float
    """Largest difference of a score, relative to the standard deviation of the scores."""


def pytorch_ood(quick: bool) -> Table:
    """Measures fit and score of both libraries, in turn in every round."""
    rounds = 2 if quick else 7
    e = embeddings(**(QUICK if quick else FULL), classes=CLASSES)
    bounds = _bounds(e)
    tasks = _tasks(e, installed=find_spec("pytorch_ood") is not None)
    calls: dict[tuple[str, str], Call] = {("bound", name): call for name, call in bounds.items()}
    for name, task in tasks.items():
        calls["bliss_jax", name] = task.ours
        if task.theirs is not None:
            for threads in _threads():
                calls[_peer(threads), name] = _with_threads(threads, task.theirs)
    apart = {
        name: _apart(name, task.ours(), task.to_ours(task.theirs()), task.tolerance)
        for name, task in tasks.items()
        if task.theirs is not None and task.to_ours is not None
    }
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for measured in range(-1, rounds):
        for key, call in calls.items():
            took = seconds(call)
            if measured >= 0:  # the first round compiles
                taken[key].append(took)
    middle = {key: median(values) for key, values in taken.items()}
    rows = []
    for name, task in tasks.items():
        ours = middle["bliss_jax", name]
        peers = [
            middle[who, what]
            for who, what in calls
            if what == name and who in map(_peer, _threads())
        ]
        theirs = min(peers, default=None)
        bound = None if task.bound is None else middle["bound", task.bound]
        rows.append(
            (
                name,
                _milliseconds(ours),
                spread([1e3 * s for s in taken["bliss_jax", name]]),
                "" if theirs is None else _milliseconds(theirs),
                "" if theirs is None else f"{theirs / ours:.2f}",
                "" if bound is None else f"{task.bound}: {_milliseconds(bound)}",
                "" if bound is None else f"{ours / bound:.2f}",
            )
        )
    return Table(
        f"Scores of pytorch-ood: {len(e.train):,} normal and {len(e.test):,} test images of {CLASSES} classes",
        (
            "task",
            "bliss_jax, ms",
            "smallest to largest",
            "pytorch-ood, ms",
            "times as fast",
            "lower bound, ms",
            "ratio to it",
        ),
        tuple(rows),
        _notes(rounds, apart),
        {
            "seconds": {f"{who}: {what}": values for (who, what), values in taken.items()},
            "apart": apart,
            "pytorch_ood": _version(),
        },
    )


def _notes(rounds: int, apart: dict[str, float]) -> tuple[str, ...]:
    notes = [
        f"medians of {rounds} rounds, in which all tasks are measured in turn; compilation is not included",
        "the library's fit of Mahalanobis and RMD is `fit_moments`; the inverse covariances are part of the score, and "
        "part of the fit in pytorch-ood",
        "pytorch-ood: the faster of one thread and all threads, because small tasks take longer with all",
        f"kNN: {NEIGHBOURS} neighbours; pytorch-ood searches with scikit-learn, on all CPUs",
        "Detector: `fit_embeddings` without held-out images, with all its checks and the search of near-duplicates;"
        " `update` adds as many images again",
    ]
    if find_spec("pytorch_ood") is None:
        return (*notes, "pytorch-ood is not installed and was not measured")
    largest = max(apart.values())
    return (
        *notes,
        f"pytorch-ood {_version()}; scores differ by at most {largest:.1e} of their standard deviation",
    )


def _threads() -> tuple[int, ...]:
    """Returns the numbers of threads with which pytorch-ood is measured."""
    return tuple(sorted({1, cpus()}))


def _peer(threads: int) -> str:
    return f"pytorch-ood, threads: {threads}"


def _with_threads(threads: int, call: Call) -> Call:
    def run() -> Any:
        import torch

        torch.set_num_threads(threads)
        return call()

    return run


def _version() -> str | None:
    return None if find_spec("pytorch_ood") is None else version("pytorch-ood")


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.3g}"


def _bounds(e: Embeddings) -> dict[str, Call]:
    """Returns the products that bound the times from below, as calls."""
    by_class = e.train[np.argsort(e.train_labels, kind="stable")]
    x = jnp.asarray(by_class.reshape(CLASSES, -1, e.train.shape[1]))
    test = jnp.asarray(e.test.reshape(-1, min(_AT_ONCE, len(e.test)), e.test.shape[1]))
    bank = jnp.asarray(e.train)
    highest = lax.Precision.HIGHEST

    @jax.jit
    def squares(x):
        return jnp.einsum("cnd,cne->cde", x, x, precision=highest)

    @jax.jit
    def products(test, bank):
        return lax.map(lambda block: jnp.matmul(block, bank.T, precision=highest).max(axis=1), test)

    return {
        "X^T X per class": partial(squares, x),
        "similarity product": partial(products, test, bank),
    }


def _tasks(e: Embeddings, *, installed: bool) -> dict[str, Pair]:
    """Returns the tasks of both libraries; without those of pytorch-ood if it is not installed."""
    ours, theirs = _ours(e), _theirs(e) if installed else {}
    logit = 1 / TEMPERATURE
    to_ours: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
        "MCM": (lambda s: s, 1e-3),
        "max softmax": (lambda s: s, 1e-3),
        "max logit": (lambda s: s / logit, 1e-4),
        "energy": (lambda s: s / logit, 1e-3),
        "entropy": (lambda s: s, 1e-3),
        # pytorch-ood divides neither the scatter matrix by the number of images nor the square by 2.
        "Mahalanobis: score": (lambda s: np.sqrt(2 * len(e.train) * s), 1e-2),
        "RMD: score": (lambda s: len(e.train) * s, 1e-2),
        "kNN: score": (lambda s: s**2 / 2 - 1, 1e-3),
    }
    bounds = dict.fromkeys(
        ("Mahalanobis: fit", "RMD: fit", "Detector: fit", "Detector: update", "moments: update"),
        "X^T X per class",
    ) | {"kNN: score": "similarity product"}
    return {
        name: Pair(call, theirs.get(name), bounds.get(name), *to_ours.get(name, (None, 0.0)))
        for name, call in ours.items()
    }


def _ours(e: Embeddings) -> dict[str, Call]:
    a = jax.device_put(e)
    fit = jax.block_until_ready(bj.fit_moments(a.train, a.train_labels, num_classes=CLASSES))
    names = tuple(f"class {c}" for c in range(CLASSES))
    given = e.train, e.train_labels, names, e.labels, ("a text",), e.dictionary
    detector = bj.Detector.fit_embeddings(*given, k=1, calibration=0.0)
    return {
        "MCM": lambda: bj.mcm_score(a.test, a.labels),
        "max softmax": lambda: bj.msp_score(a.test, a.labels, temperature=TEMPERATURE),
        "max logit": lambda: bj.max_logit_score(a.test, a.labels, temperature=1.0),
        "energy": lambda: bj.energy_score(a.test, a.labels, temperature=TEMPERATURE),
        "entropy": lambda: bj.entropy_score(a.test, a.labels, temperature=TEMPERATURE),
        "Mahalanobis: fit": lambda: bj.fit_moments(a.train, a.train_labels, num_classes=CLASSES),
        "Mahalanobis: score": lambda: bj.mahalanobis_score(a.test, fit, ridge=0.0),
        "RMD: fit": lambda: bj.fit_moments(a.train, a.train_labels, num_classes=CLASSES),
        "RMD: score": lambda: bj.rmd_score(a.test, fit, ridge=0.0),
        "kNN: score": lambda: bj.knn_score(a.test, a.train, NEIGHBOURS, kth=True),
        "moments: update": lambda: bj.update_moments(fit, a.train, a.train_labels),
        "Detector: fit": lambda: (
            bj.Detector.fit_embeddings(*given, k=1, calibration=0.0).moments.cov
        ),
        "Detector: update": lambda: detector.update(e.train, e.train_labels).moments.cov,
    }


def _theirs(e: Embeddings) -> dict[str, Call]:
    import torch
    from pytorch_ood.detector import (  # pyright: ignore[reportMissingImports]
        KNN,
        MCM,
        RMD,
        EnergyBased,
        Entropy,
        Mahalanobis,
        MaxLogit,
        MaxSoftmax,
    )

    train, test, labels = (torch.from_numpy(x) for x in (e.train, e.test, e.labels))
    classes = torch.from_numpy(e.train_labels.astype(np.int64))

    def logits() -> Any:
        normalised = torch.nn.functional.normalize(test, dim=-1)
        return normalised @ torch.nn.functional.normalize(labels, dim=-1).T / TEMPERATURE

    fitted = {kind: kind(None).fit_features(train, classes) for kind in (Mahalanobis, RMD)}
    neighbours = KNN(None, k=NEIGHBOURS).fit_features(train, classes)
    calls: dict[str, Callable[[], Any]] = {
        "MCM": lambda: MCM(None, labels, temperature=1.0).predict_features(test),
        "max softmax": lambda: MaxSoftmax.score(logits()),
        "max logit": lambda: MaxLogit.score(logits()),
        "energy": lambda: EnergyBased.score(logits()),
        "entropy": lambda: Entropy.score(logits()),
        "Mahalanobis: fit": lambda: Mahalanobis(None).fit_features(train, classes),
        "Mahalanobis: score": lambda: fitted[Mahalanobis].predict_features(test),
        "RMD: fit": lambda: RMD(None).fit_features(train, classes),
        "RMD: score": lambda: fitted[RMD].predict_features(test),
        "kNN: score": lambda: neighbours.predict_features(test),
    }

    def without_gradients(call: Callable[[], Any]) -> Call:
        def run() -> Any:
            with torch.inference_mode():
                found = call()
            return found.numpy() if isinstance(found, torch.Tensor) else None

        return run

    return {name: without_gradients(call) for name, call in calls.items()}


def _apart(name: str, ours: Any, theirs: Any, tolerance: float) -> float:
    """Returns the largest difference of two arrays of scores, relative to their standard deviation.

    Raises:
        AssertionError: The scores differ, so their times must not be compared.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    apart = float(np.abs(ours - theirs).max() / ours.std())
    assert apart < tolerance, f"{name}: {apart}"
    return apart
