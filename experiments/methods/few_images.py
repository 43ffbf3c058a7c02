"""Class means drawn toward a prior from the texts, for few normal images per class.

    python -m experiments.methods.validation_set glyphs-validation.npz
    python -m experiments.methods.few_images --embeddings glyphs-validation.npz    # to choose the prior
    python -m experiments.methods.few_images                                       # glyphs, test renders
    python -m experiments.methods.few_images --embeddings FILE.npz

The table contains AUROC x 100 for 1, 2, 5 and 10 images per class, as the mean over protocols, splits, draws and
halves. All rows use the same draws. The first rows are BLISS without and with shrinkage 20, the other rows settings of
the prior with shrinkage 20.
"""

import numpy as np

from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.scores import Score, bliss_score, text_prior_bliss_score
from experiments.common import (
    CASE,
    Options,
    Stopwatch,
    cases,
    experiment,
    markdown,
    said_once,
    write,
)

SHOTS = (1, 2, 5, 10)
DRAWS = 1
N0 = 20.0
PRIORS = ((1.0, 0.3), (2.0, 0.1), (2.0, 0.3), (2.0, 0.6), (5.0, 0.3))
"""Images and step of the priors that are compared."""


def with_prior(prior_images: float, step: float) -> Score:
    """Returns the record of BLISS with a prior and shrinkage 20."""

    def of_split(embeddings, label_embeddings, dictionary_embeddings, moments, k, normal):
        return text_prior_bliss_score(
            embeddings, label_embeddings, dictionary_embeddings, moments, k,
            normal=normal, prior_images=prior_images, step=step, shrinkage=N0,
        )  # fmt: skip

    name = f"prior of {prior_images:g} images, step {step:g}"
    return Score(name, of_split, one_split_at_a_time=True)


def shrunk(embeddings, label_embeddings, dictionary_embeddings, moments, k, normal):
    """Computes BLISS with shrinkage 20."""
    return bliss_score(
        embeddings, label_embeddings, dictionary_embeddings, moments, k, normal=normal, shrinkage=N0
    )


SCORES = (
    "bliss",
    Score(f"bliss, shrinkage {N0:g}", shrunk, one_split_at_a_time=True),
    *(with_prior(*prior) for prior in PRIORS),
)


@experiment()
def main(options: Options) -> None:
    """Measure BLISS with class means drawn toward a prior from the texts."""
    for case in cases(options):
        watch = Stopwatch()
        fewest = min(np.bincount(e.train_labels).min() for e in case.sets)
        areas: dict[str, dict[int, list[float]]] = {}
        for shots in (n for n in SHOTS if n <= fewest):
            settings = Settings(scores=SCORES, k=case.k, shots=shots, draws=DRAWS)
            for e in case.sets:
                for protocol in case.protocols:
                    for row in evaluate(e, protocol, settings).rows:
                        areas.setdefault(row.score, {}).setdefault(shots, []).append(row.auroc)
        rows = [
            [name, *(f"{100 * np.mean(of_shots):.2f}" for of_shots in by_shots.values())]
            for name, by_shots in areas.items()
        ]
        headings = ["score", *(str(shots) for shots in next(iter(areas.values())))]
        said = said_once([f"{what} {value}" for what, value in zip(CASE, case[:2], strict=True)])
        text = f"{said}{markdown(headings, rows)}\n{watch}\n"
        write(options, f"few_images-{case.dataset}", text, {"areas": areas})


if __name__ == "__main__":
    main()
