"""The similarity bias: how texts and images lie, and how far scores follow it.

    python experiments/similarity_bias.py
    python experiments/similarity_bias.py --embeddings FILE.npz

Mean cosines (text-text, image-text, image-image), and, within the normal and within the anomalous images of
each split, Spearman's rank correlation of a score with an image's mean cosine to the dictionary. A score
that has the bias corrected does not follow it.
"""

from dataclasses import asdict

import numpy as np
from common import Case, Options, Stopwatch, cases, experiment, markdown, write
from scipy.stats import spearmanr

from bliss_jax.bias import similarity_bias
from bliss_jax.evaluation import Settings, score_split

SCORES = ("max_cosine", "internal", "external", "bliss")


@experiment()
def main(options: Options) -> None:
    """Mean cosines, and correlations with the mean cosine to the dictionary."""
    watch, cosines, rows, results = Stopwatch(), [], [], []
    for case in cases(options):
        biases = [asdict(similarity_bias(e)) for e in case.sets]
        mean = {name: float(np.mean([bias[name] for bias in biases])) for name in biases[0]}
        cosines.append([case.model, case.dataset, *(f"{value:.3f}" for value in mean.values())])
        found = {p.name: _correlations(case, p) for p in case.protocols}
        results.append(
            {"model": case.model, "dataset": case.dataset, "cosines": mean, "rho": found}
        )
        for protocol, by_score in found.items():
            cells = (f"{value:+.2f}" for pair in by_score.values() for value in pair)
            rows.append([case.model, case.dataset, protocol, *cells])
    sides = [f"{score}, {side}" for score in SCORES for side in ("normal", "anomalous")]
    names = ["label-label", "dictionary-dictionary", "label-dictionary", "image-image"]
    names += ["image-own label", "image-dictionary"]
    table = (
        markdown(["model", "data set", *names], cosines, texts=2)
        + "\nSpearman's rho of the score and the mean cosine to the dictionary:\n\n"
        + markdown(["model", "data set", "protocol", *sides], rows, texts=3)
    )
    write(options, "similarity_bias", table + f"\n{watch}\n",
          {"seconds": str(watch), "cases": results})  # fmt: skip


def _correlations(case: Case, protocol) -> dict[str, tuple[float, float]]:
    """By score: rho among normal and among anomalous images, mean over splits and halves."""
    by_score: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORES}
    for e in case.sets:
        to_dictionary = e.test_embeddings @ e.dictionary_embeddings.mean(axis=0)
        for split in protocol.splits:
            scored = score_split(e, split, Settings(scores=SCORES, k=case.k))
            x, anomalous = to_dictionary[scored.rows], scored.is_anomaly
            for name, score in scored.scores.items():
                rho = tuple(
                    float(spearmanr(score[side], x[side])[0])  # pyright: ignore[reportArgumentType]
                    for side in (~anomalous, anomalous)
                )
                by_score[name].append((rho[0], rho[1]))
    return {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in by_score.items()}


if __name__ == "__main__":
    main()
