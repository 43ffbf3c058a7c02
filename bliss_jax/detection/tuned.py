"""Settings of a detector that a function chooses from its fitted images, e.g. `bliss_jax.tune`."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.detection.chosen_score import BLISS


@runtime_checkable
class Setting(Protocol):
    """Settings of BLISS."""

    @property
    def k(self) -> int:
        """Number of dictionary texts per image."""
        ...

    @property
    def weight(self) -> float:
        """Weight of the external score, lambda."""
        ...

    @property
    def shrinkage(self) -> float:
        """n0."""
        ...


@runtime_checkable
class Choice(Protocol):
    """Chosen settings, which describe their choice by `str` and as JSON values."""

    @property
    def chosen(self) -> Setting:
        """The chosen settings."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns facts about the choice as JSON values."""
        ...


@runtime_checkable
class Tune(Protocol):
    """A function that chooses settings from embeddings of normal images, with the signature of `bliss_jax.tune`."""

    def __call__(
        self,
        embeddings: Any,
        labels: Any,
        label_embeddings: Any,
        dictionary_embeddings: Any,
        *,
        k: int,
        weight: float,
        shrinkage: float,
    ) -> Choice:
        """Returns the chosen settings."""
        ...


def tuned_settings(
    tune: Tune,
    score: str,
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    fields: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns k, weight and shrinkage of a detector, and the facts of the choice for the provenance.

    Args:
        tune: Function that chooses the settings.
        score: Name of the detector's score.
        embeddings: Embeddings of the fitted images. Calibration images must not be among them, because thresholds
            hold only if the calibration images had no part in the fit.
        labels: Class of each of them.
        fields: Fields of the detector: its texts and the given settings.

    Raises:
        ValueError: The score is not BLISS, or a class has fewer than two fitted images.
    """
    if score != BLISS:
        raise ValueError(
            f"tune: expected the score {BLISS!r}, whose settings are chosen, got {score!r}"
        )
    names = fields["class_names"]
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < 2:
        raise ValueError(
            "tune: expected at least 2 fitted images of each class, one of which can be held out, got "
            f"{counts.min()} of {names[int(counts.argmin())]!r}"
        )
    found = tune(
        embeddings,
        labels,
        fields["label_embeddings"],
        fields["dictionary_embeddings"],
        k=fields["k"],
        weight=fields["weight"],
        shrinkage=fields["shrinkage"],
    )
    settings = {name: getattr(found.chosen, name) for name in ("k", "weight", "shrinkage")}
    return settings, {**found.describe(), "summary": str(found)}
