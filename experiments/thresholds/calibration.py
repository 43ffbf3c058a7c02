"""How often normal images are flagged at alpha: on real CLIP embeddings, and by simulation.

    python -m experiments.thresholds.calibration --embeddings FILE.npz --output docs/calibration-table.md

False alarms. Normal images are put in random order; the first are fitted, m more calibrate, and of the rest
it is counted how many are flagged. Split-conformal theory says: whatever the score and the data, the expected
rate is floor(alpha (m + 1)) / (m + 1), which is at most alpha. The table has the mean over the draws with its
95 % interval (2 standard errors; on real data the draws are orders of the same images, so the interval says
how well that average over orders is known, not how other images would do), and the standard deviation of the
rate from one draw to the next: the promise is about the mean.

False discoveries. The rest of the normal images and all anomalies stand together in one batch;
Benjamini-Hochberg flags some. The table has the mean share of normal images among those flagged, and the
share of the anomalies that are found.
"""

from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from bliss_jax.storage import replacing
from experiments.clip_file import halves

ALPHAS = (0.01, 0.05, 0.1, 0.2)
NORMAL = ((3,), (0, 1, 9, 7, 3, 2), tuple(range(9)))
"""Classes of CIFAR-10 that are normal in turn."""


class Data(NamedTuple):
    """Embeddings of normal images with their classes, of anomalies, and of texts."""

    normal: np.ndarray
    labels: np.ndarray
    anomalies: np.ndarray
    label_embeddings: np.ndarray
    dictionary_embeddings: np.ndarray
    k: int


class Outcome(NamedTuple):
    """What one draw gave, for each alpha."""

    false_alarms: Any
    false_discoveries: Any
    found: Any


def one_draw(data: Data, fitted: int, m: int, order: jax.Array) -> Outcome:
    """Fits the first images of an order, calibrates on the next m, and counts on the rest."""
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
    """Every draw's counts [draws, alphas]; each draw has images of every class to fit."""
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
    """Rows of unit norm."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def simulated(classes: int, normals: int, anomalies: int, seed: int, dim: int = 32) -> Data:
    """Classes as clusters on the sphere, in a cone of images apart from a cone of texts, as CLIP's are."""
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
    """The images of some classes, and as anomalies those of all others."""
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
    """A row of the table for each alpha."""
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
    "normal images", "fitted", "m", "tested", "alpha", "expected", "realised, mean ± 2 s.e.",
    "s.d. of draws", "BH: false discoveries", "BH: found",
]  # fmt: skip


@click.command()
@click.option("--embeddings", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--draws", type=int, default=400, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the page's section.")
def main(embeddings: Path, draws: int, output: Path | None) -> None:
    """Print the calibration table."""
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
    lines = ["| " + " | ".join(HEAD) + " |", "| --- " + "| ---: " * (len(HEAD) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    click.echo("\n".join(lines))
    if output is not None:
        text = SECTION.format(table="\n".join(lines), draws=draws)
        with replacing(output) as file:
            file.write(text.encode())


SECTION = """## Measured

Real CLIP ViT-B/32 embeddings of the first 500 test images of CIFAR-10 (made by others), and clusters on a
sphere; {draws} random orders each: the first images are fitted, m calibrate, the rest are tested.
"Expected" is floor(alpha (m + 1)) / (m + 1). On real data the orders are of the same images: the interval is
that of the mean over orders. The standard deviation is what one calibration set may be off by. With
Benjamini-Hochberg all anomalies (on the real embeddings the images of the other classes) stand in one batch
with the tested normal images; where m is small, no p-value is small enough for it and nothing is found.

{table}

Made by
`python -m experiments.thresholds.calibration --embeddings FILE.npz --output docs/calibration-table.md`.
"""


if __name__ == "__main__":
    main()
