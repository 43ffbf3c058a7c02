"""Comparison of variants of BLISS with BLISS. Settings are chosen on some splits and reported on others.

    python -m experiments.score_variants.compare --clip CLIP.npz --json variants.json --markdown variants.md
    python -m experiments.score_variants.compare --embeddings SET.npz --dataset glyphs \
        --protocol glyphs-family

CLIP.npz is the file described in `clip_file.py`. Its 500 images are divided ten times at random into a half
for training and a half for testing. SET.npz is any file written by `bliss-jax embed`.

Protocol. The variants and their settings (`variants.VARIANTS`) were fixed before any of them was run, except
for those marked "second look". For every half, the splits of each protocol are divided at random into two
groups. The setting of a variant is chosen on one group of splits with training images only: two thirds of
each class are used for fitting and the rest for testing, and the setting with the largest AUROC, averaged
over protocols, shots and inner divisions, is chosen. The reported AUROC is that of this setting on the other
group of splits, on test images. The groups are then exchanged. Therefore, neither the images on which a
setting is reported nor their division into normal and anomalous took part in its choice. All columns use the
same setting.

Differences to BLISS are paired: both scores use the same images, splits and few-shot draws. The 95 %
intervals are from a bootstrap over test images and splits, of the AUROC linearised in the images' weights by
its placement values. Halves and draws are averaged. The intervals of the last column are simultaneous for all
rows of the table (from the largest studentised deviation over the rows).
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from bliss_jax.datasets import Protocol, load_protocol
from bliss_jax.embedding import EmbeddingSet, load_embeddings
from bliss_jax.storage import package_versions
from experiments.clip_file import halves
from experiments.score_variants.paired_differences import (
    Differences,
    Measured,
    columns_of,
    differences,
    table,
)
from experiments.score_variants.parts import NEAREST, Images, Task
from experiments.score_variants.variants import VARIANTS, area, score_settings

CLIP_PROTOCOLS = ("one-class", "zoc-6", "leave-one-out")
SHOTS = (5, 10, None)
DRAWS = 2
INNER = 2
N0 = 20.0
"""Shrinkage. Every variant is compared with the paper's variances and with variances shrunk by this n0."""
SECOND_LOOK = "second look: "
OWN_VARIANCES = ("shrinkage, n0 = 20", "shrinkage", "no variances at all", "whitened texts")
"""Variants that choose the variances themselves, so that N0 does not change them.

This also holds for the variants of the second look.
"""
BEST = "the best of all above, chosen"


class Data(NamedTuple):
    """An embedding set on the device."""

    train: Images
    train_labels: Int[jax.Array, " train"]
    test: Images
    test_labels: Int[jax.Array, " test"]
    labels: Float[jax.Array, "classes dim"]
    words: Float[jax.Array, "words dim"]


class Splits(NamedTuple):
    """Splits of a protocol, padded to the same shapes."""

    classes: Int[jax.Array, "splits normal_classes"]
    normal: Bool[jax.Array, "splits normal_classes"]
    """Whether an entry of `classes` is a normal class and not padding."""
    anomalous: Bool[jax.Array, "splits classes"]
    rows: Int[jax.Array, "splits rows"]
    """Rows of the training images of the normal classes. -1 is padding."""


class Fits(NamedTuple):
    """Images to fit and images to score, for several fits."""

    fitted: Bool[np.ndarray, "fits train"]
    """Whether each training image is fitted."""
    scored: Int[np.ndarray, "fits scored"]
    """Rows of the images to score. -1 is padding."""


def _data(e: EmbeddingSet) -> Data:
    labels, words = jnp.asarray(e.label_embeddings), jnp.asarray(e.dictionary_embeddings)

    def images(embeddings) -> Images:
        x = jnp.asarray(embeddings)
        to_words = x @ words.T
        return Images(x, x @ labels.T, to_words, lax.top_k(to_words, NEAREST)[1])

    return Data(
        images(e.train_embeddings), jnp.asarray(e.train_labels.astype(np.int32)),
        images(e.test_embeddings), jnp.asarray(e.test_labels.astype(np.int32)), labels, words,
    )  # fmt: skip


def _splits(protocol: Protocol, labels: np.ndarray, num_classes: int, num_rows: int) -> Splits:
    most = max(len(split.normal) for split in protocol.splits)
    classes = np.zeros((len(protocol.splits), most), np.int32)
    rows = np.full((len(protocol.splits), num_rows), -1, np.int32)
    normal = np.zeros(classes.shape, bool)
    for i, split in enumerate(protocol.splits):
        classes[i] = np.resize(split.normal, most)
        normal[i, : len(split.normal)] = True
        own = np.flatnonzero(np.isin(labels, split.normal))
        rows[i, : len(own)] = own
    anomalous = np.stack([np.isin(range(num_classes), s.anomalous) for s in protocol.splits])
    return Splits(*map(jnp.asarray, (classes, normal, anomalous, rows)))


def _draw(labels: np.ndarray, pool: np.ndarray, shots: int | None, rng) -> np.ndarray:
    """Draws up to `shots` images of each class from the pool (all if it is None). Returns bool [images]."""
    chosen = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(pool & (labels == c)))
        chosen[rows[:shots]] = True
    return chosen


def _inner_fits(labels: np.ndarray, rng) -> Fits:
    """Returns fits on training images only, by shots: two thirds of each class to fit, the rest to score."""
    fitted, scored = [], []
    for _ in range(INNER):
        order = rng.permutation(len(labels))
        pool = np.zeros(len(labels), bool)
        for c in np.unique(labels):
            own = order[labels[order] == c]
            pool[own[: -(-2 * len(own) // 3)]] = True
        for shots in SHOTS:
            fitted.append(_draw(labels, pool, shots, rng))
            rows = np.flatnonzero(~pool)
            scored.append(np.pad(rows, (0, len(labels) // 3 - len(rows)), constant_values=-1))
    return Fits(np.stack(fitted), np.stack(scored))


def _outer_fits(labels: np.ndarray, num_test: int, rng) -> tuple[Fits, list[int]]:
    """Returns fits on all training images and on few-shot draws, and the position in SHOTS of each fit."""
    shots = [i for i, n in enumerate(SHOTS) for _ in range(DRAWS if n else 1)]
    everything = np.ones(len(labels), bool)
    fitted = np.stack([_draw(labels, everything, SHOTS[i], rng) for i in shots])
    return Fits(fitted, np.tile(np.arange(num_test), (len(shots), 1))), shots


def _task(d: Data, split: Splits, test: Images, fit: Fits, n0) -> Task:
    rows = jnp.maximum(split.rows, 0)
    train = Images(*(array[rows] for array in d.train))
    train = train._replace(to_labels=train.to_labels[:, split.classes])
    inside = fit.fitted[rows] & (split.rows >= 0)
    member = (d.train_labels[rows][None, :] == split.classes[:, None]) & inside[None, :]
    member = (member & split.normal[:, None]).astype(jnp.float32)
    test = Images(*(array[jnp.maximum(fit.scored, 0)] for array in test))
    test = test._replace(to_labels=test.to_labels[:, split.classes])
    return Task(test, train, member, split.normal, d.labels[split.classes], d.words, n0)


def _sides(split: Splits, labels, scored):
    """Returns masks of the scored images that are anomalous, and of those that are normal."""
    labels, real = labels[jnp.maximum(scored, 0)], scored >= 0
    normal = ((labels[:, None] == split.classes[None, :]) & split.normal[None, :]).any(axis=1)
    return split.anomalous[labels] & real, normal & real


@partial(jax.jit, static_argnames="names")
def _inner_areas(d: Data, splits: Splits, fits: Fits, n0, names) -> jax.Array:
    """Computes the AUROC [fits, splits, settings] on training images that were not fitted."""

    def of_split(fit, split):
        task = _task(d, split, d.train, fit, n0)
        anomaly, normal = _sides(split, d.train_labels, fit.scored)
        return jax.vmap(lambda s: area(s, anomaly, normal))(score_settings(task, names))

    return lax.map(lambda fit: lax.map(lambda split: of_split(fit, split), splits), fits)


@partial(jax.jit, static_argnames="names")
def _outer_areas(d: Data, splits: Splits, fits: Fits, chosen, n0, names):
    """Computes the AUROC [fits, splits, chosen] on test images, and its derivative by each image's weight."""

    def of_split(fit, split, chosen):
        task = _task(d, split, d.test, fit, n0)
        anomaly, normal = _sides(split, d.test_labels, fit.scored)
        scores = score_settings(task, names)[chosen]
        return jax.vmap(lambda s: _area_and_influence(s, anomaly, normal))(scores)

    return lax.map(lambda fit: lax.map(lambda s: of_split(fit, *s), (splits, chosen)), fits)


def _area_and_influence(scores, anomaly, normal):
    """Computes the AUROC and its derivative by the weight of each image.

    The derivative is (placement value - AUROC) / number of images of the same kind (normal or anomalous).
    """

    def share_below(others):
        ordered = jnp.sort(jnp.where(others, scores, jnp.inf))
        below = jnp.searchsorted(ordered, scores, side="left")
        upto = jnp.minimum(jnp.searchsorted(ordered, scores, side="right"), others.sum())
        return (below + upto).astype(scores.dtype) / (2 * others.sum().astype(scores.dtype))

    placement = jnp.where(anomaly, share_below(normal), 1 - share_below(anomaly))
    mean = jnp.mean(placement, where=anomaly)
    size = jnp.where(anomaly, anomaly.sum(), normal.sum()).astype(scores.dtype)
    return mean, jnp.where(anomaly | normal, (placement - mean) / size, 0)


def row_names(names: Sequence[str], n0: float) -> list[str]:
    """Returns the names of the rows with shrinkage n0: the variants, and the best of them."""
    prefix = f"shrinkage {n0:g} + " if n0 else ""
    return [*(prefix + name for name in names), f"{prefix}{BEST}"]


def _settings(names: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " settings"]]:
    """Returns a label for each setting, and the row to which it belongs."""
    labels, rows = [], []
    for row, name in enumerate(names):
        _, parameters, settings = VARIANTS[name]
        for setting in settings:
            pairs = zip(parameters, setting, strict=True)
            labels.append(", ".join(f"{p} = {v:g}" for p, v in pairs))
            rows.append(row)
    return labels, np.array(rows)


def choose(
    areas: Sequence[Float[np.ndarray, "fits splits settings"]],
    used: Sequence[Bool[np.ndarray, " splits"]],
    rows: Int[np.ndarray, " settings"],
    compared: Bool[np.ndarray, " rows"],
) -> Int[np.ndarray, " rows"]:
    """Returns the setting with the largest AUROC for each row.

    The AUROC is averaged over the `used` splits and the fits, and then over the protocols. The last entry is
    the best of all settings of the `compared` rows.
    """
    mean = np.mean([a[:, u].mean(axis=(0, 1)) for a, u in zip(areas, used, strict=True)], axis=0)
    best = [np.argmax(np.where(rows == row, mean, -1)) for row in range(rows.max() + 1)]
    return np.array([*best, np.argmax(np.where(compared[rows], mean, -1))])


def measure(
    sets: Sequence[EmbeddingSet],
    protocols: Sequence[Protocol],
    n0: float = 0.0,
    names: Sequence[str] = tuple(VARIANTS),
    seed: int = 0,
) -> Measured:
    """Chooses settings on training images and measures them on test images, for each set.

    Args:
        sets: Embedding sets, e.g. random halves.
        protocols: Protocols with splits of their classes.
        n0: Shrinkage of all variances.
        names: Names of the variants.
        seed: Seed of the groups of splits and of the draws.
    """
    names, (labels, rows) = tuple(names), _settings(names)
    compared = np.array([not name.startswith(SECOND_LOOK) for name in names])
    num_rows, ids = len(names) + 1, image_ids(sets)
    num_images = 1 + max(int(i.max()) for i in ids)
    shape = [(len(SHOTS), len(p.splits), num_rows) for p in protocols]
    result = Measured(
        [np.zeros(s) for s in shape],
        [np.zeros((*s, num_images), np.float32) for s in shape],
        [Counter() for _ in range(num_rows)],
    )
    most = [_most_rows(sets, protocol) for protocol in protocols]
    for number, e in enumerate(sets):
        rng = np.random.default_rng([seed, number])
        data, base = _data(e), jnp.float32(n0)
        inner = _inner_fits(e.train_labels, rng)
        outer, shots = _outer_fits(e.train_labels, len(e.test_labels), rng)
        # The settings chosen on one of these two groups of splits are reported on the other.
        groups = [rng.permutation(np.arange(len(p.splits)) % 2) for p in protocols]
        padded = [
            _splits(protocol, e.train_labels, e.num_classes, size)
            for protocol, size in zip(protocols, most, strict=True)
        ]
        found = [np.asarray(_inner_areas(data, s, inner, base, names)) for s in padded]
        used = [[g == group for g in groups] for group in (0, 1)]
        chosen = np.stack([choose(found, u, rows, compared) for u in used])
        for row, settings in enumerate(chosen.T):
            whose = [f"{names[rows[i]]}: " if row == len(names) else "" for i in settings]
            result.choices[row].update(w + labels[i] for w, i in zip(whose, settings, strict=True))
        for p, (split, group) in enumerate(zip(padded, groups, strict=True)):
            area, influence = _outer_areas(data, split, outer, chosen[1 - group], base, names)
            for fit, s in enumerate(shots):
                among = len(sets) * shots.count(s)
                result.areas[p][s] += np.asarray(area[fit]) / among
                result.influences[p][s][..., ids[number]] += np.asarray(influence[fit]) / among
    return result


def image_ids(sets: Sequence[EmbeddingSet]) -> list[Int[np.ndarray, " test"]]:
    """Numbers the test images of each set, such that the same image has the same number in all sets."""
    together = np.concatenate([e.test_embeddings for e in sets])
    ids = np.unique(together, axis=0, return_inverse=True)[1].reshape(-1)
    return np.split(ids, np.cumsum([len(e.test_labels) for e in sets])[:-1])


def _most_rows(sets: Sequence[EmbeddingSet], protocol: Protocol) -> int:
    return max(
        int(np.isin(e.train_labels, split.normal).sum()) for e in sets for split in protocol.splits
    )


def joined(bases: Sequence[Measured], kept: Int[np.ndarray, " kept"]) -> Measured:
    """Concatenates the rows of several measurements, and returns the kept ones."""
    areas, influences, choices = zip(*bases, strict=True)
    counters = [counter for of_base in choices for counter in of_base]
    return Measured(
        [np.concatenate(a, axis=2)[:, :, kept] for a in zip(*areas, strict=True)],
        [np.concatenate(i, axis=2)[:, :, kept] for i in zip(*influences, strict=True)],
        [counters[i] for i in kept],
    )


def headings(protocols: Sequence[Protocol]) -> list[str]:
    """Returns the headings of the columns of `differences`."""
    shots = [f"{n} shots" if n else "all images" for n in SHOTS]
    return [*shots, *(protocol.name for protocol in protocols), "mean of all"]


def _read(
    clip: Path | None, embeddings: Path | None, dataset: str | None, protocols: Sequence[str],
    repeats: int, seed: int,
) -> tuple[list[EmbeddingSet], list[Protocol]]:  # fmt: skip
    if (clip is None) == (embeddings is None):
        raise click.UsageError("expected exactly one of --clip and --embeddings")
    if clip is not None:
        sets, dataset = halves(clip, repeats, seed), "cifar10"
    else:
        assert embeddings is not None
        sets, dataset = [load_embeddings(embeddings)], dataset or embeddings.stem
    protocols = protocols or (CLIP_PROTOCOLS if dataset == "cifar10" else CLIP_PROTOCOLS[::2])
    classes = sets[0].num_classes
    return sets, [load_protocol(p, dataset=dataset, num_classes=classes) for p in protocols]


@click.command()
@click.option(
    "--clip",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File described in clip_file.py.",
)
@click.option(
    "--embeddings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File written by `bliss-jax embed`.",
)
@click.option("--dataset", help="Data set of --embeddings, for its protocols.")
@click.option("--protocol", "protocols", multiple=True, help="Protocol. May be repeated.")
@click.option(
    "--only",
    type=click.Choice(list(VARIANTS)),
    multiple=True,
    help="Variant to compare (default: all of them). May be repeated.",
)
@click.option("--repeats", default=10, show_default=True, help="Number of random halves of --clip.")
@click.option("--samples", default=4000, show_default=True, help="Number of bootstrap samples.")
@click.option("--seed", default=0, show_default=True, help="Seed of halves, groups and draws.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers to this file."
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path),
    help="Write the tables to this file.",
)
def main(
    clip: Path | None, embeddings: Path | None, dataset: str | None, protocols: tuple[str, ...],
    only: tuple[str, ...], repeats: int, samples: int, seed: int, json_file: Path | None,
    markdown_file: Path | None,
) -> None:  # fmt: skip
    """Compare variants of BLISS with BLISS."""
    start = time.perf_counter()
    sets, splits = _read(clip, embeddings, dataset, protocols, repeats, seed)
    first, *others = VARIANTS
    names = [first, *(name for name in others if not only or name in only)]
    # With many threads and other work on the machine, LAPACK waits longer for its threads than it computes.
    with threadpool_limits(limits=1, user_api="blas"):
        bases = [measure(sets, splits, n0, names, seed) for n0 in (0.0, N0)]
    own = [name in OWN_VARIANCES or name.startswith(SECOND_LOOK) for name in names]
    kept = np.flatnonzero([True] * (len(names) + 1) + [not o for o in own] + [True])
    measured = joined(bases, kept)
    all_rows = row_names(names, 0.0) + row_names(names, N0)
    rows = [all_rows[i] for i in kept]
    columns = headings(splits)
    parts, numbers = [], {}
    for title, against in (("BLISS", 0), (f"BLISS with shrinkage {N0:g}", len(names) + 1)):
        found = differences(measured, against, samples, seed)
        parts.append(f"Against {title}, AUROC x 100, with 95 % intervals:\n")
        parts.append(table(measured, found, rows, against, columns) + "\n")
        numbers[rows[against]] = _numbers(measured, found, rows, columns)
    took = (
        f"{time.perf_counter() - start:.0f} s on {jax.devices()[0].device_kind}, with compilation"
    )
    text = "\n".join([*parts, took])
    print(text)
    if markdown_file is not None:
        markdown_file.write_text(text + "\n")
    if json_file is not None:
        settings = {"repeats": len(sets), "draws": DRAWS, "inner": INNER, "seed": seed}
        settings |= {
            "samples": samples,
            "protocols": [s.name for s in splits],
            "versions": package_versions(),
        }
        json_file.write_text(
            json.dumps({"settings": settings, "against": numbers}, indent=2) + "\n"
        )


def _numbers(
    measured: Measured, found: Differences, names: Sequence[str], columns: Sequence[str]
) -> dict[str, Any]:
    areas = np.stack([a.mean(axis=1) for a in measured.areas], axis=1)
    auroc = 100 * columns_of(areas[None])[0]
    return {
        name: {
            "auroc": dict(zip(columns, auroc[:, row].tolist(), strict=True)),
            "auroc_by_shots_and_protocol": (100 * areas[:, :, row]).tolist(),
            "difference": dict(zip(columns, found.mean[:, row].tolist(), strict=True)),
            "interval": dict(zip(columns, found.interval[:, :, row].T.tolist(), strict=True)),
            "interval_of_mean_for_all_rows": found.together[:, row].tolist(),
            "chosen": dict(measured.choices[row]),
        }
        for row, name in enumerate(names)
    }


if __name__ == "__main__":
    main()
