"""Rates of false alarms and of false discoveries at alpha, on real CLIP embeddings and on simulated ones.

    python -m experiments.thresholds.calibration --embeddings FILE.npz --output docs/calibration-table.md

False alarms. The normal images are put in random order. The first ones are fitted, the next m are the
calibration images, and the rest are tested: the rate is the share of them that is flagged. By split-conformal
theory, the expected rate is floor(alpha (m + 1)) / (m + 1) for any score and any data, which is at most
alpha. The table contains the mean over the draws with its 95 % interval (2 standard errors) and the standard
deviation over the draws, because the theory is about the mean. On real data, the draws are orders of the same
images, so the interval describes the mean over orders and not the rate on other images.

False discoveries. The tested normal images and all anomalies form one batch, in which the Benjamini-Hochberg
procedure flags images. The table contains the mean share of normal images among the flagged images, and the
share of the anomalies that are flagged.

A second table (`dependent_images.py`) measures the rate if scores are tied or images are near-duplicates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from bliss_jax.storage import replacing
from experiments.clip_file import halves
from experiments.thresholds import dependent_images

ALPHAS = (0.01, 0.05, 0.1, 0.2)
NORMAL = ((3,), (0, 1, 9, 7, 3, 2), tuple(range(9)))
"""Sets of classes of CIFAR-10 that are normal, one set after the other."""


class Data(NamedTuple):
    """Embeddings of normal images, anomalies and texts, and the classes of the normal images."""

    normal: np.ndarray
    labels: np.ndarray
    anomalies: np.ndarray
    label_embeddings: np.ndarray
    dictionary_embeddings: np.ndarray
    k: int


class Outcome(NamedTuple):
    """Rates of one draw for each alpha."""

    false_alarms: Any
    """Share of the tested normal images that is flagged."""
    false_discoveries: Any
    """Share of normal images among the images flagged by the Benjamini-Hochberg procedure."""
    found: Any
    """Share of the anomalies flagged by the Benjamini-Hochberg procedure."""


def one_draw(data: Data, fitted: int, m: int, order: jax.Array) -> Outcome:
    """Fits the first images of an order, calibrates on the next m, and measures the rates on the rest."""
    x, y = jnp.asarray(data.normal)[order], jnp.asarray(data.labels)[order]
    classes = len(data.label_embeddings)
    moments = bj.fit_moments(x[:fitted], y[:fitted], num_classes=classes)
    scored = jnp.concatenate([x[fitted:], jnp.asarray(data.anomalies)])
    scores = bj.bliss_score(
        scored, data.label_embeddings, data.dictionary_embeddings, moments, k=data.k
    )
    p = bj.conformal_p_values(scores[m:], scores[:m])
    rest = len(x) - fitted - m
    alarms, discoveries, found = [], [], []
    for alpha in ALPHAS:
        alarms.append(jnp.mean(p[:rest] <= alpha))
        flagged = bj.benjamini_hochberg(p, alpha)
        wrong = jnp.sum(flagged[:rest]) / jnp.maximum(jnp.sum(flagged), 1)
        discoveries.append(wrong)
        found.append(jnp.mean(flagged[rest:]))
    return Outcome(*(jnp.stack(values) for values in (alarms, discoveries, found)))


def outcomes(data: Data, fitted: int, m: int, draws: int, seed: int) -> Outcome:
    """Computes the rates [draws, alphas] of random draws. Each draw fits images of every class."""
    rng = np.random.default_rng(seed)
    orders = []
    while len(orders) < draws:
        order = rng.permutation(len(data.normal))
        if len(np.unique(data.labels[order[:fitted]])) == len(data.label_embeddings):
            orders.append(order)
    compute = jax.jit(
        lambda some: jax.lax.map(lambda order: one_draw(data, fitted, m, order), some)
    )
    return jax.tree.map(np.asarray, compute(jnp.asarray(np.stack(orders))))


def unit(x: np.ndarray) -> np.ndarray:
    """Normalises each row."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def simulated(classes: int, normals: int, anomalies: int, seed: int, dim: int = 32) -> Data:
    """Draws classes as clusters on the sphere, with images and texts in separate cones as in CLIP."""
    rng = np.random.default_rng(seed)
    images, texts = unit(rng.normal(size=(2, dim)))
    centres = unit(images + 1.0 * rng.normal(size=(classes + 4, dim)) / np.sqrt(dim))
    words = unit(
        texts + 0.6 * rng.normal(size=(200, dim)) / np.sqrt(dim) + 0.3 * rng.choice(centres, 200)
    )

    def near(c: np.ndarray) -> np.ndarray:
        return unit(centres[c] + 0.25 * rng.normal(size=(len(c), dim)) / np.sqrt(dim))

    labels = rng.integers(0, classes, normals).astype(np.int32)
    others = classes + rng.integers(0, 4, anomalies)
    labelled = unit(texts + 0.3 * centres[:classes])
    return Data(near(labels), labels, near(others), labelled, words, 10)


def real(file: Path, normal: tuple[int, ...]) -> Data:
    """Reads real embeddings. Images of the classes in `normal` are normal, all others are anomalies."""
    [some] = halves(file, 1, 0)
    images = np.concatenate([some.train_embeddings, some.test_embeddings])
    labels = np.concatenate([some.train_labels, some.test_labels])
    own = np.isin(labels, normal)
    position = {c: i for i, c in enumerate(normal)}
    return Data(
        images[own],
        np.array([position[c] for c in labels[own]], np.int32),
        images[~own],
        some.label_embeddings[list(normal)],
        some.dictionary_embeddings,
        10,
    )


def rows(name: str, data: Data, fitted: int, m: int, draws: int) -> list[list[str]]:
    """Returns a row of the table for each alpha."""
    found = outcomes(data, fitted, m, draws, seed=0)
    table = []
    for i, alpha in enumerate(ALPHAS):
        if m < bj.images_needed(alpha):
            continue
        alarms, discoveries = found.false_alarms[:, i], found.false_discoveries[:, i]
        error = 2 * alarms.std() / np.sqrt(draws)
        theory = np.floor(round(alpha * (m + 1), 6)) / (m + 1)
        table.append(
            [
                name, str(fitted), str(m), str(len(data.normal) - fitted - m), f"{alpha:g}",
                f"{theory:.4f}", f"{alarms.mean():.4f} ± {error:.4f}", f"{alarms.std():.3f}",
                f"{discoveries.mean():.3f}", f"{found.found[:, i].mean():.3f}",
            ]
        )  # fmt: skip
    return table


HEAD = [
    "normal images", "fitted", "m", "tested", "alpha", "expected rate", "measured rate ± 2 s.e.",
    "std of the draws", "BH: false discoveries", "BH: anomalies flagged",
]  # fmt: skip


def markdown(head: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in table])


@click.command()
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="File described in clip_file.py.",
)
@click.option(
    "--draws",
    type=int,
    default=400,
    show_default=True,
    help="Number of random orders of the images.",
)
@click.option(
    "--simulations",
    type=int,
    default=200,
    show_default=True,
    help="Number of simulated data sets in each row of the second table.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the documentation's section to this file.",
)
def main(embeddings: Path, draws: int, simulations: int, output: Path | None) -> None:
    """Print the rates of false alarms and of false discoveries."""
    table = []
    for classes, normals in ((1, 1200), (6, 1200)):
        for m in (19, 99, 499):
            data = simulated(classes, normals, 200, seed=classes)
            name = f"simulated, {classes} class{'es' if classes > 1 else ''}"
            table += rows(name, data, 300, m, draws)
    for normal in NORMAL:
        data = real(embeddings, normal)
        for m in (19, 49, 99):
            fitted = max(len(data.normal) // 2 - m // 2, 20)
            if len(data.normal) - fitted - m >= 8:
                table += rows(f"CLIP, {len(normal)} of 10 classes", data, fitted, m, draws)
    printed = markdown(HEAD, table)
    click.echo(printed)
    dependent = markdown(dependent_images.HEAD, dependent_images.rows(simulations))
    click.echo(f"\n{dependent}")
    if output is not None:
        text = SECTION.format(
            table=printed, dependent=dependent, draws=draws, simulations=simulations
        )
        with replacing(output) as file:
            file.write(text.encode())


SECTION = """## Measured

The table contains the share of normal images that are flagged at alpha, on real CLIP ViT-B/32 embeddings of
the first 500 test images of CIFAR-10 (made by others) and on simulated clusters on a sphere. Each row is a
mean over {draws} random orders of the normal images: the first images are fitted, the next m are the
calibration images, and the rest are tested. The expected rate is floor(alpha (m + 1)) / (m + 1). On real
data, all orders are of the same images, so the interval describes the mean over orders. The standard
deviation shows how much the rate varies between calibration sets. The last two columns are for the
Benjamini-Hochberg procedure (BH) on one batch of the tested normal images and all anomalies (on the real
embeddings, the images of the other classes). If m is small, no p-value is small enough for this procedure and
no image is flagged.

{table}

## Ties and near-duplicates

The guarantee holds for tied scores: pictures that repeat at random are flagged at most at alpha. It does
not hold if calibration images are near-duplicates of fitted images, e.g. frames of one video: then more
than alpha of the images of new scenes are flagged. `Detector.fit` counts such images ("near-duplicates",
the share of the calibration images) and warns. With `groups=` (`--group-by`), whole groups are held out and
one image of each calibrates, so that the calibration images are exchangeable with an image of a new group.
Calibrating with all images of the held-out groups does not keep the rate, because the images of a group are
not independent. Each row is a mean over {simulations} simulated data sets, each with 500 tested images. In
the rows with groups, each tested image is of a new group.

{dependent}

The tables were printed by
`python -m experiments.thresholds.calibration --embeddings FILE.npz --output docs/calibration-table.md`.
"""


if __name__ == "__main__":
    main()
