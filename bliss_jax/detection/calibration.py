"""Which images are held out of a fit to calibrate thresholds, and whether they are independent of the others.

The guarantee of a threshold needs calibration images that are exchangeable with new images and were not
fitted. Bursts, video frames and copies are not: if one frame is fitted, the next one is no new image.
Groups (scenes, cameras, patients) are therefore held out as a whole. Images of one group are not
exchangeable with an image of a new group, but one image of each held-out group is (Dunn, Wasserman, Ramdas,
"Distribution-free prediction sets for two-layer hierarchical models", JASA 2022: subsampling once).
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.datasets import ImageDataset, image_names

FOLDER = "folder"
"""Groups images by the folder of their files."""

NEAR_DUPLICATE = 0.99
"""Cosine above which a held-out image may be a near-duplicate of a fitted one. Of 500 photographs of
CIFAR-10, the largest cosine of two CLIP ViT-B/32 embeddings is 0.956; of test and training renders of
`glyphs` by `bliss-jax/tiny`, 99.9 % of the nearest pairs are below 0.99; JPEG copies and noise lead to 0.99
and more."""

SHARE_OF_SPREAD = 0.1
"""A near-duplicate is also closer to the fitted image than this share of its class's mean squared distance
to the mean, so that an encoder with a narrow range of cosines has no false ones."""

CHECKED = 1000
"""Largest number of held-out images that are compared with the fitted ones."""

_EQUAL = 1e-6
"""1 - cosine of copies, up to rounding."""


@dataclass(frozen=True)
class CalibrationSplit:
    """The use of each image in a fit."""

    fitted: Bool[np.ndarray, " images"]
    calibration: Bool[np.ndarray, " images"]
    facts: dict[str, Any]
    """The choice, for the provenance."""


def split_for_calibration(
    labels: np.ndarray,
    classes: int,
    share: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> CalibrationSplit:
    """Holds out a random share of the images or of the groups, but never all images of a class.

    Args:
        labels: Class of each image.
        classes: Number of classes.
        share: Share that is held out.
        seed: Seed of the choice.
        groups: Group of each image; of each held-out group one image calibrates, the others are unused.

    Raises:
        ValueError: The share is not in [0, 1), there is not one group per image, or no group can be held out
            because the classes have a single group each.
    """
    if not 0 <= share < 1:
        raise ValueError(f"calibration: expected a share of at least 0 and below 1, got {share}")
    rng = np.random.default_rng(seed)
    facts: dict[str, Any] = {"share": share, "seed": seed}
    if groups is None:
        drawn = rng.permutation(len(labels))[: int(share * len(labels))]
        held_out = np.zeros(len(labels), bool)
        held_out[drawn] = True
        held_out &= np.bincount(labels[~held_out], minlength=classes)[labels] > 0
        return CalibrationSplit(~held_out, held_out, facts)
    if len(groups) != len(labels):
        raise ValueError(f"groups: expected one per image ({len(labels)}), got {len(groups)}")
    position: dict[Hashable, int] = {}
    group = np.array([position.setdefault(name, len(position)) for name in groups], int)
    number = len(position)
    counts = np.zeros((number, classes), int)
    np.add.at(counts, (group, labels), 1)
    remaining = counts.sum(axis=0)
    chosen = np.zeros(number, bool)
    for g in rng.permutation(number)[: max(1, int(share * number)) if share else 0]:
        if (remaining > counts[g])[counts[g] > 0].all():
            chosen[g] = True
            remaining -= counts[g]
    if share and not chosen.any():
        raise ValueError(
            f"groups: none of the {number} groups can be held out, because each class has images of one "
            "group only; use finer groups, or pass calibration images"
        )
    held_out = chosen[group]
    order = rng.permutation(len(labels))
    first = {int(group[i]): int(i) for i in order[::-1] if held_out[i]}
    calibration = np.zeros(len(labels), bool)
    calibration[list(first.values())] = True
    facts["groups"] = {
        "number": number,
        "held_out": int(chosen.sum()),
        "images": int(held_out.sum()),
    }
    return CalibrationSplit(~held_out, calibration, facts)


def groups_of(dataset: ImageDataset, by: str) -> list[str]:
    """Returns the group of each image of a data set of files.

    Args:
        dataset: The data set.
        by: "folder", or a regular expression that is searched in the path below the data set's folder. The
            group is the text of its first parenthesis, or of the whole match.

    Raises:
        ValueError: The images are not files, the expression is invalid, or does not match some name.
    """
    names = image_names(dataset.images)
    if names is None:
        raise ValueError("groups: expected one per image, because the images are not files")
    if by == FOLDER:
        return [name.rpartition("/")[0] for name in names]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise ValueError(f"groups: {by!r} is not a regular expression ({error})") from error
    matches = [pattern.search(name) for name in names]
    missing = [name for name, match in zip(names, matches, strict=True) if match is None]
    if missing:
        raise ValueError(
            f"groups: {by!r} does not match {len(missing)} of {len(names)} names, e.g. {missing[0]!r}"
        )
    return [match[1 if pattern.groups else 0] or "" for match in matches if match is not None]


def near_duplicates(
    held_out: Float[np.ndarray, "calibration dim"],
    labels: np.ndarray,
    fitted: Float[np.ndarray, "fitted dim"],
    spread: Float[np.ndarray, " classes"],
) -> dict[str, int]:
    """Counts held-out images that are near-duplicates of fitted ones.

    Args:
        held_out: Embeddings of calibration images.
        labels: Class of each of them.
        fitted: Embeddings of fitted images.
        spread: Mean squared distance to the mean of each class's fitted images.

    Returns:
        The number of near-duplicates and of compared images.
    """
    some = np.random.default_rng(0).permutation(len(held_out))[:CHECKED]
    number = 0
    for start in range(0, len(some), 64):
        rows = some[start : start + 64]
        distance = 1 - (held_out[rows] @ fitted.T).max(axis=1, initial=-1.0)
        limit = np.minimum(1 - NEAR_DUPLICATE, SHARE_OF_SPREAD * spread[labels[rows]])
        number += int((distance < np.maximum(limit, _EQUAL)).sum())
    return {"near_duplicates": number, "compared": len(some)}


def near_duplicate_warning(facts: dict[str, Any]) -> str | None:
    """Returns a warning if 1 % or more of the compared images are near-duplicates of fitted ones."""
    number, compared = facts.get("near_duplicates", 0), facts.get("compared", 0)
    if not number or number < 0.01 * compared:
        return None
    return (
        f"{number} of {compared} calibration images are near-duplicates of fitted images (cosine above "
        f"{NEAR_DUPLICATE}), e.g. frames of a video or copies: more than alpha of new normal images may be "
        "flagged. Hold out whole groups of images (groups=), or pass calibration images of their own "
        "(calibration=)"
    )
