"""Scores at CIFAR-10's sizes: compared with plain NumPy, and the time of a changed setting after the fit.

The sizes are 50,000 normal and 10,000 test embeddings of 512 dimensions, 1,860 texts, 10 classes, and all 25
splits of the three CIFAR-10 protocols (one-class, zoc-6, leave-one-out). The AUROC of each split is included.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

import bliss_jax as bj
from benchmarks import peers
from benchmarks.measure import Table, compiled, median, repeat, seconds, spread
from benchmarks.synthetic import Embeddings, embeddings

CLASSES = 10
SIZES = {"train": 50_000, "test": 10_000, "texts": 1_860}
STAGES = ("fit", "score", "auroc")


def splits() -> Bool[np.ndarray, "25 10"]:
    """Returns the normal classes of every split of the three CIFAR-10 protocols."""
    protocols = [
        bj.load_protocol(name, dataset="cifar10", num_classes=CLASSES)
        for name in ("one-class", "zoc-6", "leave-one-out")
    ]
    rows = [split.normal for protocol in protocols for split in protocol.splits]
    return np.stack([np.isin(np.arange(CLASSES), row) for row in rows])


class Library:
    """The library's procedure: a compiled program for each of the three stages."""

    def __init__(self, e: Embeddings, normal: Bool[np.ndarray, "splits classes"]):
        self.arrays = jax.device_put(e)
        self.normal = jnp.asarray(normal)
        self.is_anomaly = ~self.normal[:, self.arrays.test_labels]
        a, compile_seconds = self.arrays, {}
        fit = partial(bj.fit_moments, num_classes=len(e.labels))
        self.fit, compile_seconds["fit"] = compiled(fit, a.train, a.train_labels)
        moments = self.fit(a.train, a.train_labels)
        self.score, compile_seconds["score"] = compiled(
            _score_splits, a.test, a.labels, a.dictionary, moments, self.normal
        )
        scores = self.score(a.test, a.labels, a.dictionary, moments, self.normal)
        self.auroc, compile_seconds["auroc"] = compiled(jax.vmap(bj.auroc), scores, self.is_anomaly)
        self.compile_seconds = compile_seconds

    def run(self) -> peers.Run:
        """Computes fit, scores and AUROCs of all splits, and waits after each stage."""
        a, watch = self.arrays, peers.Stopwatch()
        with watch.stage("fit"):
            moments = jax.block_until_ready(self.fit(a.train, a.train_labels))
        with watch.stage("score"):
            scores = self.score(a.test, a.labels, a.dictionary, moments, self.normal)
            jax.block_until_ready(scores)
        with watch.stage("auroc"):
            aurocs = jax.block_until_ready(self.auroc(scores, self.is_anomaly))
        return peers.Run(np.asarray(scores), np.asarray(aurocs), dict(watch))


def _score_splits(test, labels, dictionary, moments, normal):
    return jax.vmap(lambda n: bj.bliss_score(test, labels, dictionary, moments, normal=n))(normal)


class Agreement(NamedTuple):
    """Largest differences between two runs, over all splits."""

    score: float
    """Largest difference of a score, over the images whose k nearest texts are certain."""
    doubtful: int
    """Number of images whose k-th and next cosine are so close that rounding decides between two texts."""
    doubtful_score: float
    """Largest difference of a score, over these images."""
    auroc: float
    """Largest difference of an AUROC."""


def agreement(e: Embeddings, first: peers.Run, second: peers.Run, k: int = 10) -> Agreement:
    """Compares two runs. An image is doubtful if two cosines in float64 differ by less than 1e-6."""
    cosines = e.test.astype(np.float64) @ e.dictionary.astype(np.float64).T
    largest = np.sort(
        np.partition(cosines, (-k - 1, -k), axis=1)[:, -k - 1 : -k + 1 or None], axis=1
    )
    doubtful = largest[:, 1] - largest[:, 0] < 1e-6
    apart = np.abs(first.scores - second.scores).max(axis=0)
    return Agreement(
        float(apart[~doubtful].max(initial=0)),
        int(doubtful.sum()),
        float(apart[doubtful].max(initial=0)),
        float(np.abs(first.aurocs - second.aurocs).max()),
    )


def cifar10(quick: bool) -> Table:
    """Measures the two forms of the NumPy procedure and the library, in turn in every round."""
    rounds, slow_rounds = (3, 1) if quick else (9, 3)
    e, normal = embeddings(**SIZES, classes=CLASSES), splits()
    library = Library(e, normal)
    library.run()
    slow: list[peers.Run] = []
    fast: list[peers.Run] = []
    ours: list[peers.Run] = []
    for i in range(rounds):
        if i < slow_rounds:
            slow.append(peers.split_by_split(e, normal))
        fast.append(peers.shared(e, normal))
        ours.append(library.run())

    runs = {"NumPy, split by split": slow, "NumPy, shared": fast, "bliss_jax": ours}
    agreed = {name: agreement(e, of[-1], ours[-1]) for name, of in list(runs.items())[:2]}
    for name, found in agreed.items():
        # Times are compared only if the results agree.
        assert found.score < 1e-3, f"{name}: {found}"
        assert found.auroc < 1e-5, f"{name}: {found}"
    headings = ("fit, s", "score, s", "AUROC, s", "total, s", "smallest to largest", "runs")
    last, compiling = ours[-1], library.compile_seconds
    return Table(
        "CIFAR-10's sizes, 25 splits: plain NumPy and the library",
        ("", *headings, "ratio to bliss_jax"),
        tuple(_row(name, of, ours) for name, of in runs.items()),
        (
            "medians of runs in turn; the ratio is that of the medians of the totals",
            "compilation, which is needed once and is not in the table: "
            + ", ".join(f"{stage} {compiling[stage]:.2f} s" for stage in STAGES)
            + f", together {sum(compiling.values()):.2f} s",
            *(
                f"{name}, and bliss_jax: scores differ by at most {a.score:.1e}, except for {a.doubtful} of "
                f"{len(e.test)} images for which rounding decides the last of the k texts (at most "
                f"{a.doubtful_score:.1e}); the AUROC of a split differs by at most {a.auroc:.1e}"
                for name, a in agreed.items()
            ),
            f"mean AUROC of these synthetic embeddings: {last.aurocs.mean():.3f}; scores: "
            f"{last.scores.min():.1f} to {last.scores.max():.1f}",
        ),
        {
            "seconds": {name: [run.seconds for run in of] for name, of in runs.items()},
            "compile_seconds": compiling,
            "agreement": {name: a._asdict() for name, a in agreed.items()},
        },
    )


def _row(name: str, runs: list[peers.Run], ours: list[peers.Run]) -> tuple[str, ...]:
    totals = [sum(run.seconds.values()) for run in runs]
    ratio = median(totals) / median([sum(run.seconds.values()) for run in ours])
    stages = [median([run.seconds[stage] for run in runs]) for stage in STAGES]
    cells = (*(f"{value:.3f}" for value in (*stages, median(totals))), spread(totals))
    return (name, *cells, str(len(runs)), f"{ratio:.1f}")


def ask(quick: bool) -> Table:
    """Measures the seconds to score 10,000 images, or one image, with a changed setting after one fit."""
    times = 5 if quick else 15
    e = jax.device_put(embeddings(**SIZES, classes=CLASSES))
    other = embeddings(train=1, test=1, texts=SIZES["texts"], classes=CLASSES, seed=1)
    fit, _ = compiled(partial(bj.fit_moments, num_classes=CLASSES), e.train, e.train_labels)
    moments = fit(e.train, e.train_labels)
    fit_seconds = repeat(lambda: fit(e.train, e.train_labels), times)
    refit = median(fit_seconds)
    programs = []

    @partial(jax.jit, static_argnames="k")
    def score(*args, **kwargs):
        programs.append(kwargs)  # runs while tracing, i.e. once for each compiled program
        return bj.bliss_score(*args, **kwargs)

    # Without shrinkage the pooled variances are not computed: 0 is static, and n0 > 0 is traced.
    settings = {"label_embeddings": e.labels, "dictionary_embeddings": e.dictionary}
    changes: dict[str, dict] = {
        "nothing": {},
        "lambda": {"weight": 0.7},
        "k": {"k": 20},
        "shrinkage": {"shrinkage": 20.0},
        "labels": {"label_embeddings": jnp.asarray(other.labels)},
        "dictionary": {"dictionary_embeddings": jnp.asarray(other.dictionary)},
        "dictionary's size": {"dictionary_embeddings": e.dictionary[: SIZES["texts"] // 2]},
    }
    from_kept = _from_kept_parts(e, moments, changes)
    rows, data = [], {}
    for name, change in changes.items():
        given = {"weight": 0.5, **settings, **change, "moments": moments}
        with_images = [partial(score, images, **given) for images in (e.test, e.test[:1])]
        before = len(programs)
        first = [seconds(function) for function in with_images]
        compiles = len(programs) > before
        many, one = (repeat(function, times) for function in with_images)
        kept = repeat(from_kept[name], times) if name in from_kept else []
        data[name] = {
            "kept": kept,
            "first": first[0],
            "many": many,
            "one": one,
            "compiles": compiles,
        }
        rows.append(
            (
                name,
                f"{1e3 * median(many):.0f}",
                f"{1e3 * median(kept):.1f}" if kept else "full score",
                f"{1e3 * (refit + median(many)):.0f}",
                f"{1 + refit / median(many):.1f}",
                f"{1e3 * median(one):.2f}",
                f"{1 + refit / median(one):.0f}",
                f"{first[0]:.2f} s" if compiles else "none",
            )
        )
    grid, values = _weights_of_kept_parts(e, moments)
    kept_seconds = repeat(grid, times)
    headings = (
        "changed",
        "10,000 images, ms",
        "from kept parts, ms",
        "with a refit, ms",
        "ratio",
    )
    return Table(
        "One fit, many questions: milliseconds to score with a changed setting",
        (*headings, "one image, ms", "ratio to a refit", "compilation"),
        tuple(rows),
        (
            f"a refit is another `fit_moments` of 50,000 embeddings, {1e3 * refit:.0f} ms "
            f"({spread([1e3 * s for s in fit_seconds])}); none of these changes needs a refit",
            "a time is that of scoring the images, including their product with the dictionary",
            "kept parts, for the same images and texts: the two parts of the score (lambda, labels), or the "
            "nearest texts with their cosines (k, shrinkage); the scores agree within 1e-3, which every run "
            "checks",
            f"with the internal and external parts of 10,000 images kept, {values} values of lambda "
            f"together take {1e3 * median(kept_seconds):.1f} ms",
        ),
        {"fit": fit_seconds, "changes": data, "weights_of_kept_parts": kept_seconds},
    )


def _from_kept_parts(
    e: Embeddings, moments: bj.ClassMoments, changes: dict[str, dict]
) -> dict[str, Callable[[], jax.Array]]:
    """Returns functions that score with a changed setting from kept parts or kept nearest texts."""
    nearest = jax.jit(bj.top_k_similar, static_argnums=2)(e.test, e.dictionary, changes["k"]["k"])
    internal = jax.jit(bj.internal_class_score)(e.test, e.labels, moments)
    external = jax.jit(bj.external_text_score)(e.test, e.dictionary, moments)
    prepared = jax.jit(bj.prepare_bliss)(e.labels, e.dictionary, moments)

    @jax.jit
    def of_parts(internal, external, weight):
        return jnp.min(internal + weight * external, axis=1)

    @jax.jit
    def of_labels(x, labels, external, moments, weight):
        internal = bj.internal_class_score(x, labels, moments)
        return jnp.min(internal + weight * external, axis=1)

    @partial(jax.jit, static_argnames="k")
    def of_nearest(x, prepared, nearest, k):
        return bj.bliss_score_prepared(x, prepared, k, nearest=nearest)

    @jax.jit
    def of_shrinkage(x, labels, texts, moments, shrinkage, nearest):
        prepared = bj.prepare_bliss(labels, texts, moments, shrinkage=shrinkage)
        return bj.bliss_score_prepared(x, prepared, nearest=nearest)

    labels, n0 = changes["labels"]["label_embeddings"], changes["shrinkage"]["shrinkage"]
    found = {
        "lambda": partial(of_parts, internal, external, changes["lambda"]["weight"]),
        "k": partial(of_nearest, e.test, prepared, nearest, k=changes["k"]["k"]),
        "shrinkage": partial(of_shrinkage, e.test, e.labels, e.dictionary, moments, n0, nearest),
        "labels": partial(of_labels, e.test, labels, external, moments, 0.5),
    }
    for name, score in found.items():
        given = {"label_embeddings": e.labels, **changes[name]}
        anew = bj.bliss_score(e.test, given.pop("label_embeddings"), e.dictionary, moments, **given)
        # Times are compared only if the results agree.
        assert np.abs(score() - anew).max() < 1e-3, name
    return found


def _weights_of_kept_parts(
    e: Embeddings, moments: bj.ClassMoments
) -> tuple[Callable[[], jax.Array], int]:
    """Returns a function that scores with a grid of lambda from kept parts, and the size of the grid."""
    internal = bj.internal_class_score(e.test, e.labels, moments)
    external = bj.external_text_score(e.test, e.dictionary, moments)
    weights = jnp.linspace(0, 2, 21)

    @jax.jit
    def of_weights(internal, external, weights):
        return jax.vmap(lambda weight: jnp.min(internal + weight * external, axis=1))(weights)

    return lambda: of_weights(internal, external, weights), len(weights)
