"""Settings of a detector that are chosen from its fitted images; see `bliss_jax.evaluation.tune`."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.detection.chosen_score import BLISS


def tuned_settings(
    score: str,
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    fields: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns k, weight and shrinkage of a detector, and the facts of the choice for the provenance.

    Args:
        score: Name of the detector's score.
        embeddings: Embeddings of the fitted images. Calibration images must not be among them, because thresholds
            hold only if the calibration images had no part in the fit.
        labels: Class of each of them.
        fields: Fields of the detector: its texts and the given settings.

    Raises:
        ValueError: The score is not BLISS, or a class has fewer than two fitted images.
    """
    from bliss_jax.evaluation import tune  # most fits do not need it

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
    return found.chosen._asdict(), {**found.describe(), "summary": str(found)}
