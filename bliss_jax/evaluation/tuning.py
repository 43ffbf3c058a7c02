"""Choice of lambda, k and shrinkage from normal images alone.

With several normal classes, some of them are left out in turn and serve as anomalies for a detector of the others
(`held_out.py`). The setting of the largest mean AUROC replaces the given one if its gain exceeds its standard error
over the groups of classes. With a single class, there is nothing to leave out: only the shrinkage is chosen, by the
likelihood of held-out images.

`experiments/tuning/compare.py` compares this rule and others with the defaults; docs/how-to/tuning.md has the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bliss_jax import _checks
from bliss_jax.evaluation.held_out import (
    as_grid,
    folds_of,
    groups_of,
    held_out_aurocs,
    held_out_likelihoods,
)
from bliss_jax.evaluation.studies import WEIGHTS

TUNED_SHRINKAGES = (0.0, 5.0, 20.0, 50.0)
TUNED_KS = (1, 2, 5, 10, 20, 50)
FOLDS = 5
SCORED = 200
"""Largest number of images of a fold that are scored; the fits use all images."""
ERRORS = 1.0
"""Number of standard errors that the gain of a setting must exceed."""

LEFT_OUT, LIKELIHOOD = "classes left out", "held-out likelihood"


class BlissSetting(NamedTuple):
    """Settings of BLISS."""

    k: int
    """Number of dictionary texts per image."""
    weight: float
    """lambda."""
    shrinkage: float
    """n0."""

    def __str__(self) -> str:
        return f"k {self.k}, lambda {self.weight:g}, shrinkage {self.shrinkage:g}"


@dataclass(frozen=True, eq=False)
class Tuning:
    """Settings of BLISS that were chosen from normal images alone, and the estimates of all candidates."""

    chosen: BlissSetting
    """The chosen setting."""
    given: BlissSetting
    """The setting that the candidates were compared with. It is kept if none of them is clearly better."""
    rule: str
    """"classes left out", or "held-out likelihood" with a single class."""
    weights: tuple[float, ...]
    """Candidates of lambda."""
    shrinkages: tuple[float, ...]
    """Candidates of n0."""
    ks: tuple[int, ...]
    """Candidates of k."""
    estimates: Float[np.ndarray, "weights shrinkages ks"] | None
    """Mean AUROC in [0, 1] with classes left out; None with a single class."""
    errors: Float[np.ndarray, "weights shrinkages ks"] | None
    """Standard error of the difference of each estimate to that of the given setting; None with a single class."""

    def estimate(self, setting: BlissSetting) -> float:
        """Returns the estimated AUROC of a candidate.

        Raises:
            ValueError: There are no estimates, or the setting is not a candidate.
        """
        if self.estimates is None:
            raise ValueError("there are no estimates of the AUROC, because there is one class")
        return float(self.estimates[_place(self.weights, self.shrinkages, self.ks, setting)])

    def describe(self) -> dict[str, Any]:
        """Returns rule, choice and estimates as JSON values, for the provenance of a detector."""
        facts: dict[str, Any] = {
            "rule": self.rule,
            "chosen": self.chosen._asdict(),
            "given": self.given._asdict(),
        }
        if self.estimates is not None:
            facts["auroc"] = self.estimate(self.chosen)
            facts["auroc_of_given"] = self.estimate(self.given)
        return facts

    def __str__(self) -> str:
        if self.estimates is None:
            return f"{self.chosen}; the shrinkage has the largest likelihood of held-out images"
        chosen, given = (100 * self.estimate(each) for each in (self.chosen, self.given))
        how = "with normal classes left out in turn as anomalies"
        if self.chosen == self.given:
            return (
                f"{self.chosen}; no other setting is clearly better {how} (AUROC x 100 {given:.1f})"
            )
        return f"{self.chosen}; AUROC x 100 {chosen:.1f} {how}, and {given:.1f} with {self.given}"


def tune(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    label_embeddings: Float[np.ndarray, "classes dim"],
    dictionary_embeddings: Float[np.ndarray, "texts dim"],
    *,
    k: int = 10,
    weight: float = 0.5,
    shrinkage: float = 0.0,
    weights: Sequence[float] = WEIGHTS,
    shrinkages: Sequence[float] = TUNED_SHRINKAGES,
    ks: Sequence[int] = TUNED_KS,
    seed: int = 0,
) -> Tuning:
    """Chooses k, lambda and the shrinkage of BLISS from normal images alone.

    The images of each class are divided into five folds, and the classes into at most ten groups. For each fold and
    group, a detector is fitted to the images of the other folds and classes. Its AUROC is measured on the fold, with
    the images of the group as anomalies. The candidate of the largest mean AUROC is chosen if its gain over the given
    setting exceeds its standard error over the groups; otherwise the given setting is kept.

    With a single class, k and weight are kept, and the shrinkage is the one under which N(mu, sigma^2) gives
    held-out images the largest likelihood.

    Args:
        embeddings: Unit-norm embeddings of normal images.
        labels: Class of each image, in 0..classes-1. Each class needs at least two images.
        label_embeddings: Unit-norm embedding of each class's prompt.
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts.
        k: Given number of texts per image, a further candidate.
        weight: Given lambda, a further candidate.
        shrinkage: Given n0, a further candidate.
        weights: Candidates of lambda.
        shrinkages: Candidates of n0.
        ks: Candidates of k. Those larger than the dictionary are omitted.
        seed: Seed of folds and groups.

    Raises:
        ValueError: Shapes or values are invalid, or a class has fewer than two images.
    """
    x, own, words = (
        np.asarray(_checks.embeddings_as_float(name, array), np.float32)
        for name, array in (
            ("embeddings", embeddings),
            ("label_embeddings", label_embeddings),
            ("dictionary_embeddings", dictionary_embeddings),
        )
    )
    y = np.asarray(_checks.class_labels("labels", labels, len(x), len(own)))
    counts = np.bincount(y, minlength=len(own))
    if counts.min() < 2:
        raise ValueError(
            f"labels: expected at least 2 images of each class, one of which can be held out, got {counts.min()} "
            f"of class {counts.argmin()}"
        )
    for value in (k, *ks):
        _checks.static_integer("k", value, 1)
    _checks.top_k_size(k, len(words), "the dictionary's texts")
    for value in (weight, *weights):
        _checks.scalar("weight", value)
    for value in (shrinkage, *shrinkages):
        _checks.scalar("shrinkage", value, minimum=0.0)
    given = BlissSetting(k, float(weight), float(shrinkage))
    axes = (
        tuple(sorted({*map(float, weights), given.weight})),
        tuple(sorted({0.0, *map(float, shrinkages), given.shrinkage})),
        tuple(sorted({value for value in ks if value <= len(words)} | {k})),
    )
    grid = as_grid(*axes)
    folds = folds_of(x, y, min(FOLDS, int(counts.max())), seed)
    if len(own) == 1:
        likelihoods = held_out_likelihoods(folds, own, words, grid.shrinkages)
        chosen = given._replace(shrinkage=axes[1][int(likelihoods.argmax())])
        return Tuning(chosen, given, LIKELIHOOD, *axes, None, None)
    aurocs = held_out_aurocs(folds, groups_of(len(own), seed), own, words, grid, SCORED)
    of_groups = np.nanmean(aurocs, axis=0)
    gains = of_groups - of_groups[(slice(None), *_place(*axes, given))][:, None, None, None]
    mean, errors = gains.mean(axis=0), gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
    best = np.unravel_index(int(mean.argmax()), mean.shape)
    chosen = given
    if mean[best] > ERRORS * errors[best]:
        chosen = BlissSetting(axes[2][best[2]], axes[0][best[0]], axes[1][best[1]])
    return Tuning(chosen, given, LEFT_OUT, *axes, of_groups.mean(axis=0), errors)


def _place(
    weights: tuple[float, ...],
    shrinkages: tuple[float, ...],
    ks: tuple[int, ...],
    setting: BlissSetting,
) -> tuple[int, int, int]:
    """Returns the position of a setting in the grid.

    Raises:
        ValueError: The setting is not a candidate.
    """
    if setting.weight in weights and setting.shrinkage in shrinkages and setting.k in ks:
        return (
            weights.index(setting.weight),
            shrinkages.index(setting.shrinkage),
            ks.index(setting.k),
        )
    raise ValueError(
        f"expected k among {ks}, lambda among {weights} and shrinkage among {shrinkages}, got {setting}"
    )
