"""Explanations of the scores of a detector, and a sentence that says which score their parts belong to."""

from typing import Any, Literal, NamedTuple

from bliss_jax.detection.chosen_score import BLISS, WITHOUT_IMAGES
from bliss_jax.detection.maps import AnomalyMaps
from bliss_jax.text import html_table


class Explanation(NamedTuple):
    """The score of an image, and the parts of BLISS that explain it.

    The nearest class, the parts and the z-scores are those of BLISS, also if the detector uses another score; `note`
    then says so. If the detector was fitted without images, there are no standard deviations: the nearest class is that
    of the largest cosine, internal is minus this cosine, external the mean of the k largest cosines to phrases, and the
    phrases have cosines in place of z-scores.
    """

    score: float
    """Score of the detector, equal to that of `Detector.score`."""
    p_value: float | None
    """Conformal p-value as in `Detector.p_values`; None without calibration images."""
    nearest_class: str
    """Normal class with the smallest internal + lambda external."""
    internal: float
    """Internal class score at the nearest class."""
    external: float
    """External text score at the nearest class, without the factor lambda."""
    words: tuple[tuple[str, float], ...]
    """Dictionary phrases nearest to the image, by decreasing cosine, each with its z-score: the number of
    standard deviations by which its cosine exceeds the mean over the normal images of the class."""
    maps: AnomalyMaps | None = None
    """Maps of the parts of the image that raise the score, its parts and the phrases; None unless requested."""
    score_name: str = BLISS
    """Name of the detector's score."""
    unit: Literal["z", "cosine"] = "z"
    """Unit of the numbers beside the phrases."""

    @property
    def note(self) -> str | None:
        """A sentence about the parts, if they do not explain a score of BLISS; None for BLISS."""
        return note_on_parts(self.score_name, fitted=self.unit == "z")

    def _repr_html_(self) -> str:
        unit = "z-score" if self.unit == "z" else self.unit
        name = "score" if self.score_name == BLISS else f"score ({self.score_name})"
        parts = [(name, self.score), ("internal", self.internal), ("external", self.external)]
        rows = [(name, f"{value:.2f}") for name, value in parts]
        if self.p_value is not None:
            rows.insert(1, ("p-value", f"{self.p_value:.3g}"))
        rows += [(f"phrase {text!r}, {unit}", f"{z:.2f}") for text, z in self.words]
        notes = {} if self.note is None else {"notes": [self.note]}
        named: dict[str, Any] = {"title": f"Nearest class: {self.nearest_class}", **notes}
        return html_table(("", "value"), rows, **named)


def note_on_parts(score_name: str, *, fitted: bool) -> str | None:
    """Returns a sentence about the parts of an explanation, or None for those of BLISS.

    Args:
        score_name: Name of the detector's score.
        fitted: Whether the detector was fitted to images.
    """
    if fitted:
        if score_name == BLISS:
            return None
        return (
            "The nearest class, the internal and the external part and the phrases are those of BLISS. The parts do "
            f"not add up to the score, which is {score_name}."
        )
    cosines = "The detector was fitted without images, so the parts and the numbers beside the phrases are cosines. "
    if score_name == WITHOUT_IMAGES:
        return f"{cosines}The score is internal + lambda external."
    return f"{cosines}The parts do not add up to the score, which is {score_name}."
