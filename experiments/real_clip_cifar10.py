"""BLISS on real CLIP embeddings: ViT-B/32, the first 500 test images of CIFAR-10, half to fit, half to test.

    python experiments/real_clip_cifar10.py FILE.npz

FILE.npz holds OpenAI CLIP embeddings made elsewhere: `image_emb` [500, 512], `labels` [500], `class_names`
[10], `class_text_emb` [10, 512] (prompt "a NAME") and `text_emb`, `text_names`, `text_source`, of which the
1,000 texts of source `imagenet1k` ("a photo of a NAME") are the dictionary.

Each repeat r of the ten divides the images at random (NumPy's default generator, seed 0), fits on one half
and tests on the other; reported is the mean AUROC x 100 over repeats, splits and few-shot draws. Nothing is
chosen on these numbers: k, lambda and n0 are the library's defaults.
"""

import json
import time
from pathlib import Path

import click
import jax
import numpy as np

from bliss_jax.datasets import load_protocol
from bliss_jax.embedding_set import EmbeddingSet
from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.versions import versions

PROTOCOLS = {"1 of 10": "one-class", "6 of 10": "zoc-6", "9 of 10": "leave-one-out"}
SCORES = ("max_cosine", "msp", "mcm", "energy", "entropy", "mahalanobis", "knn", "neglabel")
SCORES = (*SCORES, "internal", "external", "bliss")
SHOTS = (1, 2, 5, 10, None)
N0 = 20.0


def halves(path: Path, repeats: int, seed: int) -> list[EmbeddingSet]:
    """One embedding set per repeat: a random half of the images to fit, the other to test."""
    with np.load(path, allow_pickle=False) as file:
        of_imagenet = file["text_source"] == "imagenet1k"
        images, labels = _unit(file["image_emb"]), file["labels"]
        texts = _unit(file["class_text_emb"]), _unit(file["text_emb"][of_imagenet])
        class_names = tuple(file["class_names"].tolist())
        dictionary = tuple(file["text_names"][of_imagenet].tolist())
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(repeats):
        fit, test = np.split(rng.permutation(len(images)), 2)
        sets.append(
            EmbeddingSet(
                images[fit], labels[fit], images[test], labels[test],
                class_names, texts[0], dictionary, texts[1],
            )
        )  # fmt: skip
    return sets


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)


def score_table(sets: list[EmbeddingSet]) -> dict[str, dict[str, float]]:
    """AUROC of each score on each protocol, all normal images."""
    table = {}
    for heading, name in PROTOCOLS.items():
        protocol = load_protocol(name, dataset="cifar10", num_classes=10)
        settings = Settings(scores=SCORES)
        runs = [evaluate(embeddings, protocol, settings).rows for embeddings in sets]
        table[heading] = {rows[0].score: _mean(rows) for rows in zip(*runs, strict=True)}
    return table


def shots_table(
    sets: list[EmbeddingSet], draws: int, seed: int
) -> dict[str, dict[str, list[float]]]:
    """AUROC of BLISS without and with shrinkage, for each protocol and number of shots."""
    table = {}
    for heading, name in PROTOCOLS.items():
        protocol = load_protocol(name, dataset="cifar10", num_classes=10)
        cells: dict[str, list[float]] = {"reference": [], f"shrunk, n0 = {N0:g}": []}
        for shots in SHOTS:
            settings = Settings(
                scores=("bliss",),
                shrinkages=(0.0, N0),
                shots=shots,
                draws=draws if shots else 1,
                seed=seed,
            )
            runs = [evaluate(embeddings, protocol, settings).rows for embeddings in sets]
            for cell, rows in zip(cells.values(), zip(*runs, strict=True), strict=True):
                cell.append(_mean(rows))
        table[heading] = cells
    return table


def _mean(rows) -> float:
    return 100 * float(np.mean([row.auroc for row in rows]))


def _markdown(headings: tuple[str, ...], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(headings), rule, *lines])


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--repeats", default=10, show_default=True, help="Random halves.")
@click.option("--draws", default=10, show_default=True, help="Few-shot draws per half.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write the numbers."
)
def main(file: Path, repeats: int, draws: int, seed: int, json_file: Path | None) -> None:
    """Print both tables in Markdown."""
    start = time.perf_counter()
    sets = halves(file, repeats, seed)
    by_score, by_shots = score_table(sets), shots_table(sets, draws, seed)
    print(f"All normal images, AUROC x 100, mean over {repeats} halves (seed {seed}):\n")
    lines = [[name, *(f"{by_score[p][name]:.1f}" for p in PROTOCOLS)] for name in SCORES]
    print(_markdown(("score", *(f"{p} normal" for p in PROTOCOLS)), lines))
    print(f"\nFew-shot BLISS, AUROC x 100, mean over {repeats} halves and {draws} draws each:\n")
    lines = [
        [heading, kind, *(f"{value:.1f}" for value in cells)]
        for heading, kinds in by_shots.items()
        for kind, cells in kinds.items()
    ]
    shots = tuple("all" if n is None else f"{n} shot{'s' * (n > 1)}" for n in SHOTS)
    print(_markdown(("normal classes", "variances", *shots), lines))
    print(
        f"\n{time.perf_counter() - start:.0f} s on {jax.devices()[0].device_kind}, with compilation"
    )
    if json_file is not None:
        settings = {"repeats": repeats, "draws": draws, "seed": seed, "versions": versions()}
        numbers = {"settings": settings, "scores": by_score, "shots": by_shots}
        json_file.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
