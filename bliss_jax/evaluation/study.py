"""Result of a study: AUROCs over the values of one setting. `studies.py` contains the studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Study:
    """AUROCs over the values of one setting.

    Raises:
        ValueError: If the first axis of a series does not have the length of `values`, or if the series
            have different shapes.
    """

    name: str
    """Name of the study: "parts", "lambda", "k", "dictionary" or "shots"."""
    setting: str
    """Label of the axis of `values`, e.g. "lambda" or "dictionary texts per image"."""
    values: tuple[float, ...]
    """Values of the setting."""
    series: Mapping[str, Float[np.ndarray, "values repeats splits"]]
    """AUROC in [0, 1] by score: "internal", "external", "bliss" and, with shrinkage,
    e.g. "bliss, shrinkage 20"."""
    protocol: str
    """Name of the protocol that defines the splits."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Embeddings, protocol, settings and versions, as JSON values."""

    def __post_init__(self):
        shapes = {name: np.shape(array) for name, array in self.series.items()}
        first = next(iter(shapes.values()), ())
        if len(first) != 3 or first[0] != len(self.values) or len({*shapes.values()}) > 1:
            raise ValueError(
                f"series: expected arrays [{len(self.values)}, repeats, splits], got {shapes}"
            )

    def __repr__(self) -> str:
        shape = next(iter(self.series.values())).shape
        return (
            f"Study(name={self.name!r}, protocol={self.protocol!r}, setting={self.setting!r}, "
            f"values={self.values}, scores={[*self.series]}, repeats={shape[1]}, splits={shape[2]})"
        )

    def _repr_html_(self) -> str:
        from bliss_jax.evaluation.tables import html_of, study_table

        return html_of(study_table(self))

    def mean(self, score: str) -> Float[np.ndarray, " values"]:
        """Returns the mean AUROC of a score over repeats and splits."""
        return self.series[score].mean(axis=(1, 2))

    def std(self, score: str) -> Float[np.ndarray, " values"]:
        """Returns the standard deviation (ddof 0) over the repeats of the mean AUROC over the splits."""
        return self.series[score].mean(axis=2).std(axis=1)

    def to_json(self) -> dict[str, Any]:
        """Returns the study as JSON values, which `from_json` reads."""
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
        """Returns the study of a document written by `to_json`.

        Raises:
            ValueError: If the document is not a study.
        """
        try:
            series = {
                score: np.asarray(array, np.float64) for score, array in document["series"].items()
            }
            values = tuple(float(value) for value in document["values"])
            texts = {name: document[name] for name in ("name", "setting", "protocol", "provenance")}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected a study written by Study.to_json, got another document: {error!r}"
            ) from error
        return cls(values=values, series=series, **texts)


def join_repeats(studies: Sequence[Study]) -> Study:
    """Joins studies that differ only in their repeats, e.g. studies of random halves of a data set.

    The result has the provenance of the first study, with the number of studies added as `"joined"`.

    Raises:
        ValueError: If there is no study, or if the studies differ in setting, values, scores or protocol.
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
