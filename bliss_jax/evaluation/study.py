"""What a study gives: AUROCs over the values of one setting; see `studies.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Study:
    """AUROCs over the values of one setting.

    Raises:
        ValueError: a series whose first axis is not that of `values`, or that differ in their other axes.
    """

    name: str
    """Of the study: "parts", "lambda", "k", "dictionary", "shots"."""
    setting: str
    """What `values` are, as the label of an axis: "lambda", "dictionary texts per image", ..."""
    values: tuple[float, ...]
    series: Mapping[str, Float[np.ndarray, "values repeats splits"]]
    """AUROC in [0, 1] by score: "internal", "external", "bliss", and "bliss, shrinkage 20" where shrunk."""
    protocol: str
    """Whose splits they are."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What produced them; JSON values."""

    def __post_init__(self):
        shapes = {name: np.shape(array) for name, array in self.series.items()}
        first = next(iter(shapes.values()), ())
        if len(first) != 3 or first[0] != len(self.values) or len({*shapes.values()}) > 1:
            raise ValueError(
                f"series: expected arrays [{len(self.values)}, repeats, splits], got {shapes}"
            )

    def mean(self, score: str) -> Float[np.ndarray, " values"]:
        """Mean over repeats and splits."""
        return self.series[score].mean(axis=(1, 2))

    def std(self, score: str) -> Float[np.ndarray, " values"]:
        """Population standard deviation over the repeats of the mean over the splits."""
        return self.series[score].mean(axis=2).std(axis=1)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        return {
            "name": self.name,
            "setting": self.setting,
            "values": list(self.values),
            "series": {score: array.tolist() for score, array in self.series.items()},
            "protocol": self.protocol,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Study":
        """The study that `to_json` wrote.

        Raises:
            ValueError: not such a document.
        """
        try:
            series = {
                score: np.asarray(array, np.float64) for score, array in document["series"].items()
            }
            values = tuple(float(value) for value in document["values"])
            texts = {name: document[name] for name in ("name", "setting", "protocol", "provenance")}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a study written by Study.to_json: {error!r}") from error
        return cls(values=values, series=series, **texts)


def join_repeats(studies: Sequence[Study]) -> Study:
    """One study of several that differ in their repeats alone, such as random halves of a data set.

    The provenance is that of the first, with the number of studies.

    Raises:
        ValueError: no study, or studies of other settings, values, scores or protocols.
    """
    if not studies:
        raise ValueError("studies: expected at least one, got none")
    first = studies[0]
    for other in studies[1:]:
        for name in ("name", "setting", "values", "protocol"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"studies differ in {name}: {getattr(first, name)!r}, {getattr(other, name)!r}"
                )
        if list(other.series) != list(first.series):
            raise ValueError(f"studies differ in scores: {[*first.series]}, {[*other.series]}")
    return Study(
        first.name,
        first.setting,
        first.values,
        {
            score: np.concatenate([study.series[score] for study in studies], axis=1)
            for score in first.series
        },
        first.protocol,
        {**first.provenance, "joined": len(studies)},
    )
