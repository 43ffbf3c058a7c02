"""The settings of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bliss_jax.scores import Score, as_score, score_table


def default_scores() -> tuple[str, ...]:
    """Returns the names of the scores that are computed by default, in the order of the tables."""
    return tuple(name for name, score in score_table().items() if score.default)


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, apart from the data and the protocol.

    Raises:
        ValueError: A value is out of range, a score is unknown, or two scores have the same name or label. The
            message names the field.
    """

    scores: tuple[str | Score | Callable[..., Any], ...] | None = None
    """Scores to compute: names of `score_table`, records (`Score`) of own functions, or functions. None means
    the scores of `default_scores`."""
    k: int = 10
    """Dictionary texts per image of `bliss`, `external` and `whitened_bliss`."""
    weight: float = 0.5
    """lambda of `bliss` and `whitened_bliss`."""
    shrinkages: tuple[float, ...] = (0.0,)
    """Values of n0 of `bliss`, one row of the result each. 0 is the reference."""
    neighbours: int = 10
    """k of `knn`. If a split has fewer normal images, k is reduced to that number for all splits, and the
    row's settings contain the reduced k."""
    shots: int | None = None
    """Normal images per class, drawn at random. None (the default) uses all normal images."""
    draws: int = 1
    """Number of few-shot draws."""
    seed: int = 0
    """Seed of the few-shot draws and of NegLabel's groups."""

    def __post_init__(self):
        # The default needs no check, and the table of scores imports JAX, which takes a second.
        records = () if self.scores is None else self.records
        for names in ([score.name for score in records], [score.label for score in records]):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(
                    f"scores: expected different names and labels, got twice: {', '.join(repeated)}"
                )
        if not np.isfinite(self.weight):
            raise ValueError(f"weight: expected a finite number, got {self.weight}")
        if self.scores == () or not self.shrinkages:
            raise ValueError("scores, shrinkages: expected at least one value of each")
        for name in ("k", "neighbours", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"shots: expected at least 1, got {self.shots}")
        if self.shots is None and self.draws > 1:
            raise ValueError(
                f"draws: expected 1 without shots, because all images are used, got {self.draws}; "
                "give the number of images per class as shots"
            )
        if not all(0 <= n0 < float("inf") for n0 in self.shrinkages):
            raise ValueError(f"shrinkages: expected finite numbers >= 0, got {self.shrinkages}")

    @property
    def records(self) -> tuple[Score, ...]:
        """Records of the scores to compute."""
        scores = default_scores() if self.scores is None else self.scores
        return tuple(as_score(score) for score in scores)


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings as JSON values, for the provenance of a result."""
    return {
        "k": settings.k,
        "lambda": settings.weight,
        "shrinkages": list(settings.shrinkages),
        "neighbours": settings.neighbours,
        "shots": settings.shots,
        "draws": settings.draws,
        "seed": settings.seed,
        "neglabel_lexicon": "the dictionary",
        "own_scores": {
            score.name: score.place
            for score in settings.records
            if score_table().get(score.name) is not score
        },
    }
