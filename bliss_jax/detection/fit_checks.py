"""Checks of the arguments of a fit that need no encoder, so that errors come before any image is embedded.

The module imports no heavy package: the command `fit` calls it before it loads a model.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from bliss_jax.datasets import ImageDataset
from bliss_jax.detection.calibration import groups_of, split_for_calibration


def check_fit(
    *,
    phrases: int | None,
    k: Any,
    weight: float,
    shrinkage: float,
    calibration: Any,
    groups: Sequence[Hashable] | str | None,
    images: Any,
    labels: np.ndarray,
    classes: int,
) -> Sequence[Hashable] | None:
    """Checks the settings of a fit and the choice of calibration images.

    Args:
        phrases: Number of dictionary phrases; None if it is unknown.
        k: Number of phrases per image.
        weight: Weight of the external score.
        shrinkage: n0 of `bliss_score`.
        calibration: Share of the images that is held out, or another object for separate calibration images.
        groups: Argument `groups` of `Detector.fit`.
        images: Images of the fit.
        labels: Class of each image.
        classes: Number of classes.

    Returns:
        Group of each image; None without groups.

    Raises:
        ValueError: A number is out of range, or images cannot be held out. The message names the argument.
    """
    is_integer = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not is_integer or k < 1 or (phrases is not None and k > phrases):
        expected = (
            "at least 1"
            if phrases is None
            else f"an integer in 1..{phrases} (the dictionary's texts)"
        )
        raise ValueError(f"k: expected {expected}, got {k!r}")
    if not math.isfinite(weight):
        raise ValueError(f"weight: expected a finite number, got {weight:g}")
    if not 0 <= shrinkage < math.inf:
        raise ValueError(f"shrinkage: expected a finite number >= 0, got {shrinkage:g}")
    if isinstance(groups, str):
        if not isinstance(images, ImageDataset):
            raise ValueError("groups: expected one per image, because the images are not files")
        groups = groups_of(images, groups)
    if isinstance(calibration, float | int):
        split_for_calibration(labels, classes, calibration, 0, groups)
    return groups
