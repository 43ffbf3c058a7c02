"""Settings that are chosen from normal images alone, compared with the defaults.

    python -m experiments.tuning.compare                                  # glyphs with bliss-jax/tiny
    python -m experiments.tuning.compare --embeddings FILE.npz            # a file as described in clip_file.py

For each split of each protocol, every rule sees the training images of the normal classes and chooses lambda, k and
the shrinkage from a grid. The AUROC on the split's test images, normal and anomalous, is then that of the chosen
settings. The table contains the mean of AUROC x 100 over the splits and halves, minus that of the defaults (lambda 0.5,
k 10, no shrinkage), for each rule and protocol. The row "best of the grid" is a bound: it chooses by the test images,
one setting for each protocol.

At most SPLITS splits of each protocol are used, at equal distances. The rules:

    classes            the largest mean AUROC of the normal classes' own images, with one group of classes left
                       out in turn (`bliss_jax.evaluation.held_out`)
    classes, S SE      the same, if it exceeds that of the defaults by S standard errors over the groups
    likelihood         the shrinkage of the largest likelihood of held-out images, with the default lambda and k
    both, S SE         that shrinkage; lambda and k by `classes, S SE`
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import WEIGHTS, grid_studies
from bliss_jax.evaluation.held_out import (
    Grid,
    as_grid,
    folds_of,
    groups_of,
    held_out_aurocs,
    held_out_likelihoods,
)
from bliss_jax.evaluation.tuning import FOLDS, SCORED
from bliss_jax.evaluation.tuning import TUNED_KS as KS
from bliss_jax.evaluation.tuning import TUNED_SHRINKAGES as SHRINKAGES
from experiments.common import (
    CASE,
    Case,
    Options,
    Stopwatch,
    cases,
    experiment,
    markdown,
    said_once,
    write,
)

DEFAULT = (WEIGHTS.index(0.5), SHRINKAGES.index(0.0), KS.index(10))
SPLITS = 10

Index = tuple[int, ...]
"""Position of a setting in the grid: lambda, shrinkage, k."""


class Evidence(NamedTuple):
    """Results of one split that a rule sees. They depend on normal training images only."""

    aurocs: Float[np.ndarray, "folds groups weights shrinkages ks"] | None
    """None if there is a single normal class."""
    likelihoods: Float[np.ndarray, " shrinkages"]


def by_classes(evidence: Evidence, errors: float, shrinkage: int | None = None) -> Index:
    """Returns the setting of the largest AUROC, or the default unless its gain exceeds `errors` standard errors.

    Args:
        evidence: Results of the split.
        errors: Number of standard errors. 0 always takes the largest AUROC.
        shrinkage: Position of the shrinkage, if only lambda and k are chosen.
    """
    default = DEFAULT if shrinkage is None else (DEFAULT[0], shrinkage, DEFAULT[2])
    if evidence.aurocs is None:
        return default
    of_groups = np.nanmean(evidence.aurocs, axis=0)
    gains = of_groups - of_groups[(slice(None), *default)][:, None, None, None]
    mean = gains.mean(axis=0)
    if shrinkage is not None:
        others = np.arange(len(SHRINKAGES)) != shrinkage
        mean[:, others] = -np.inf
    best = np.unravel_index(int(mean.argmax()), mean.shape)
    deviation = gains[(slice(None), *best)].std(ddof=1) / np.sqrt(len(gains))
    return tuple(map(int, best)) if mean[best] > errors * deviation else default


def by_likelihood(evidence: Evidence) -> Index:
    """Returns the defaults with the shrinkage of the largest likelihood."""
    return DEFAULT[0], int(evidence.likelihoods.argmax()), DEFAULT[2]


def by_both(evidence: Evidence, errors: float) -> Index:
    """Returns the shrinkage of the largest likelihood, and lambda and k by the classes."""
    return by_classes(evidence, errors, int(evidence.likelihoods.argmax()))


RULES: dict[str, Callable[[Evidence], Index]] = {
    "classes": lambda e: by_classes(e, 0),
    "classes, 1 SE": lambda e: by_classes(e, 1),
    "classes, 2 SE": lambda e: by_classes(e, 2),
    "likelihood": by_likelihood,
    "both, 0 SE": lambda e: by_both(e, 0),
    "both, 1 SE": lambda e: by_both(e, 1),
    "both, 2 SE": lambda e: by_both(e, 2),
}


@experiment()
def main(options: Options) -> None:
    """Compare settings that are chosen from normal images alone with the defaults."""
    for case in cases(options):
        watch = Stopwatch()
        results = measure(case)
        said = said_once([f"{what} {value}" for what, value in zip(CASE, case[:2], strict=True)])
        names = [protocol.name for protocol in case.protocols]
        text = f"{said}{table(results, names)}\n{chosen(results)}\n{watch}\n"
        write(options, f"tuning-{case.dataset}", text, results)


def measure(case: Case) -> dict[str, dict]:
    """Returns, by protocol, the AUROCs of all settings and the choices of all rules, for each half and split."""
    grid = as_grid(WEIGHTS, SHRINKAGES, KS)
    results: dict[str, dict] = {}
    for whole in case.protocols:
        protocol = some_splits(whole, SPLITS)
        areas, choices = [], {name: [] for name in RULES}
        for half, e in enumerate(case.sets):
            areas.append(test_aurocs(e, protocol))
            for split in protocol.splits:
                found = evidence_of(e, np.array(split.normal), grid, seed=half)
                for name, rule in RULES.items():
                    choices[name].append(rule(found))
        results[protocol.name] = {
            "aurocs": np.concatenate(areas).tolist(),
            "choices": {name: np.array(c).tolist() for name, c in choices.items()},
        }
    return results


def some_splits(protocol: Protocol, number: int) -> Protocol:
    """Returns a protocol with at most `number` of its splits, at equal distances."""
    places = np.unique(np.linspace(0, len(protocol.splits) - 1, number).round().astype(int))
    return replace(protocol, splits=tuple(protocol.splits[place] for place in places))


def test_aurocs(
    e: EmbeddingSet, protocol: Protocol
) -> Float[np.ndarray, "splits weights shrinkages ks"]:
    """Returns the AUROCs on the test images, for all settings."""
    found = None
    for place, n0 in enumerate(SHRINKAGES[1:], 1):
        studies = grid_studies(e, protocol, WEIGHTS, KS, shrinkage=n0)
        shape = len(protocol.splits), len(WEIGHTS), len(SHRINKAGES), len(KS)
        found = np.empty(shape) if found is None else found
        for i, study in enumerate(studies.values()):
            found[:, :, 0, i] = study.series["bliss"][:, 0].T
            found[:, :, place, i] = study.series[f"bliss, shrinkage {n0:g}"][:, 0].T
    assert found is not None
    return found


def evidence_of(e: EmbeddingSet, normal: np.ndarray, grid: Grid, seed: int) -> Evidence:
    """Returns what the rules see of a split."""
    rows = np.isin(e.train_labels, normal)
    own = np.searchsorted(np.sort(normal), e.train_labels[rows])
    labels = e.label_embeddings[np.sort(normal)]
    folds = folds_of(e.train_embeddings[rows], own, FOLDS, seed)
    likelihoods = held_out_likelihoods(folds, labels, e.dictionary_embeddings, grid.shrinkages)
    if len(normal) == 1:
        return Evidence(None, likelihoods)
    groups = groups_of(len(normal), seed)
    aurocs = held_out_aurocs(folds, groups, labels, e.dictionary_embeddings, grid, SCORED)
    return Evidence(aurocs, likelihoods)


def gains(results: dict[str, dict], rule: str) -> list[Float[np.ndarray, " runs"]]:
    """Returns the AUROC x 100 of a rule minus that of the defaults, by protocol, for each half and split."""
    found = []
    for of_protocol in results.values():
        areas = 100 * np.array(of_protocol["aurocs"])
        if rule == "best of the grid":
            best = np.unravel_index(int(areas.mean(axis=0).argmax()), areas.shape[1:])
            own = areas[(slice(None), *best)]
        else:
            chosen = of_protocol["choices"][rule]
            own = np.array([a[tuple(c)] for a, c in zip(areas, chosen, strict=True)])
        found.append(own - areas[(slice(None), *DEFAULT)])
    return found


def table(results: dict[str, dict], protocols: list[str]) -> str:
    """Returns the Markdown table of the defaults and of the differences of all rules to them."""
    areas = [100 * np.array(r["aurocs"])[(slice(None), *DEFAULT)].mean() for r in results.values()]
    rows = [["defaults, AUROC", *(f"{a:.2f}" for a in areas), f"{np.mean(areas):.2f}", ""]]
    for rule in (*RULES, "best of the grid"):
        means = [g.mean() for g in gains(results, rule)]
        cells = [f"{m:+.2f}" for m in (*means, np.mean(means), min(means))]
        rows.append([rule, *cells])
    return markdown(["rule", *protocols, "mean", "worst"], rows)


def chosen(results: dict[str, dict]) -> str:
    """Returns the Markdown table of the settings that each rule chose most often, by protocol."""
    rows = []
    for rule in RULES:
        cells = []
        for of_protocol in results.values():
            made = [tuple(c) for c in of_protocol["choices"][rule]]
            most = max(sorted(set(made)), key=made.count)
            weight, n0, k = WEIGHTS[most[0]], SHRINKAGES[most[1]], KS[most[2]]
            cells.append(f"{weight:g}, {n0:g}, {k} ({made.count(most)} of {len(made)})")
        rows.append([rule, *cells])
    return markdown(["lambda, n0, k of", *results], rows)


if __name__ == "__main__":
    main()
