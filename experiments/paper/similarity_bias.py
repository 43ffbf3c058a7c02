"""Similarity bias: mean cosines of texts and images, and the correlation of the scores with this bias.

    python -m experiments.paper.similarity_bias
    python -m experiments.paper.similarity_bias --embeddings FILE.npz

The first table contains the mean cosines between labels, dictionary texts and images. The second table
contains Spearman's rank correlation between a score and the images' mean cosine to the dictionary, separately
for the normal and the anomalous images of each split. A score without the bias has a correlation near 0.
"""

from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

import bliss_jax as bj
from bliss_jax.datasets import Protocol
from bliss_jax.evaluation import class_masks, similarity_bias
from experiments.common import Case, Options, Stopwatch, by_case, cases, experiment, write

SCORES = ("max_cosine", "internal", "external", "bliss")


@experiment()
def main(options: Options) -> None:
    """Measure the mean cosines, and the scores' correlations with the mean cosine to the dictionary."""
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
        by_case(names, cosines, texts=0)
        + "\nSpearman's rho between the score and the mean cosine to the dictionary:\n\n"
        + by_case(["protocol", *sides], rows, texts=1)
    )
    write(options, "similarity_bias", table + f"\n{watch}\n",
          {"seconds": str(watch), "cases": results})  # fmt: skip


def _correlations(case: Case, protocol: Protocol) -> dict[str, tuple[float, float]]:
    """Returns rho among normal and among anomalous images by score, as a mean over splits and halves."""
    by_score: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORES}
    for e in case.sets:
        normal, anomalous = class_masks(protocol, e)
        to_dictionary = e.test_embeddings @ e.dictionary_embeddings.mean(axis=0)
        moments = bj.fit_moments(
            jnp.asarray(e.train_embeddings), jnp.asarray(e.train_labels), num_classes=e.num_classes
        )
        arrays = (e.test_embeddings, e.label_embeddings, e.dictionary_embeddings)
        scores = _scores_of_splits(*map(jnp.asarray, arrays), moments, normal, k=case.k)
        sides = np.stack([normal, anomalous], axis=1)[:, :, e.test_labels]
        for name, of_splits in zip(SCORES, np.asarray(scores), strict=True):
            for score, (own, other) in zip(of_splits, sides, strict=True):
                rho = [spearmanr(score[side], to_dictionary[side])[0] for side in (own, other)]
                by_score[name].append((float(rho[0]), float(rho[1])))  # pyright: ignore[reportArgumentType]
    return {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in by_score.items()}


@partial(jax.jit, static_argnames="k")
def _scores_of_splits(test, labels, dictionary, moments, normal, *, k):
    """Computes `SCORES` of all images for each mask of normal classes: [scores, splits, images]."""
    internal = bj.internal_class_score(test, labels, moments)
    external = bj.external_text_score(test, dictionary, moments, k)

    def of_split(mask):
        def nearest(by_class):
            return jnp.where(mask, by_class, jnp.inf).min(axis=1)

        return jnp.stack(
            [
                bj.max_cosine_score(test, labels, normal=mask),
                nearest(internal),
                nearest(external),
                bj.bliss_score(test, labels, dictionary, moments, k, normal=mask),
            ]
        )

    return jax.vmap(of_split, out_axes=1)(normal)


if __name__ == "__main__":
    main()
