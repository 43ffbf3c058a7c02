"""Rates of false alarms at alpha if images repeat: tied scores, bursts and the frames of videos.

`calibration.py` prints these rows as its second table. Each draw fits a detector and tests it on new normal
images:

    pictures drawn with replacement    each image is one of a few pictures, so scores are tied; the images are
                                       exchangeable, so the rate must be at most alpha
    groups, images held out            images of one group are near-duplicates; held-out images are chosen at
                                       random, so most of them are near-duplicates of fitted images
    groups, all images calibrate       whole groups are held out, and all of their images calibrate
    groups, one image each             whole groups are held out, and one image of each calibrates: this is
                                       `Detector.fit(groups=...)`

The tested images of the last three are of new groups, one image each.
"""

import warnings
from typing import NamedTuple

import numpy as np

import bliss_jax as bj

DIM, WORDS, K = 32, 100, 10


class Setting(NamedTuple):
    """A kind of dependence among images."""

    name: str
    groups: int
    """Number of groups, or of different pictures."""
    size: int
    """Number of images per group; 0 for pictures that are drawn with replacement."""
    share: float
    """Share of the images or groups that is held out."""
    noise: float = 0.03
    """Distance of the images of a group from its centre."""


SETTINGS = (
    Setting("12 pictures, drawn with replacement", 12, 0, 0.25),
    Setting("3 pictures, drawn with replacement", 3, 0, 0.25),
    Setting("100 bursts of 6 images", 100, 6, 0.4),
    Setting("25 videos of 24 frames", 25, 24, 0.8),
)
SCHEMES = ("images held out", "all images calibrate", "one image each")


class Rates(NamedTuple):
    """Rates of one draw."""

    calibration: int
    """Number of calibration images."""
    near_duplicates: float
    """Share of the calibration images that the detector counts as near-duplicates of fitted ones."""
    false_alarms: tuple[float, ...]
    """Share of the tested images with a p-value of at most alpha, for each alpha."""


def unit(x: np.ndarray) -> np.ndarray:
    """Normalises each row."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def draw(setting: Setting, scheme: str, alphas: tuple[float, ...], seed: int) -> Rates:
    """Draws images, fits a detector and measures the rates on new images."""
    rng = np.random.default_rng(seed)
    axis, texts = unit(rng.normal(size=(2, DIM)))
    label = unit(texts + 0.3 * axis)[None]
    words = unit(texts + 0.6 * rng.normal(size=(WORDS, DIM)) / np.sqrt(DIM))

    def centres(number: int) -> np.ndarray:
        return unit(axis + 0.5 * rng.normal(size=(number, DIM)) / np.sqrt(DIM))

    if setting.size:
        own = np.repeat(np.arange(setting.groups), setting.size)
        around = centres(setting.groups)[own]
        images = unit(around + setting.noise * rng.normal(size=around.shape) / np.sqrt(DIM))
        around = centres(500)
        tested = unit(around + setting.noise * rng.normal(size=around.shape) / np.sqrt(DIM))
    else:
        own = np.arange(400)
        pictures = centres(setting.groups)
        images = pictures[rng.integers(0, setting.groups, 400)]
        tested = pictures[rng.integers(0, setting.groups, 500)]

    def fit(rows: np.ndarray, **options) -> bj.Detector:
        with warnings.catch_warnings(action="ignore"):
            return bj.Detector.fit_embeddings(
                rows, None, ["normal"], label, [f"word {i}" for i in range(WORDS)], words, k=K,
                seed=seed, **options,
            )  # fmt: skip

    if scheme == "all images calibrate":
        held_out = rng.permutation(setting.groups)[: int(setting.share * setting.groups)]
        calibrates = np.isin(own, held_out)
        detector = fit(images[~calibrates], calibration=0.0).calibrate(
            images[calibrates], np.zeros(int(calibrates.sum()), np.int32)
        )
        counted = {"near_duplicates": 0, "compared": 1}
    else:
        groups = own.tolist() if scheme == "one image each" else None
        detector = fit(images, calibration=setting.share, groups=groups)
        counted = detector.provenance["calibration"]
    p = detector.p_values(detector.score(tested))
    return Rates(
        len(detector.calibration_labels),
        counted["near_duplicates"] / max(1, counted["compared"]),
        tuple(float((p <= np.float32(alpha)).mean()) for alpha in alphas),
    )


HEAD = ["normal images", "calibration", "m", "near-duplicates", "alpha", "measured rate ± 2 s.e."]


def rows(draws: int, alphas: tuple[float, ...] = (0.05, 0.1)) -> list[list[str]]:
    """Returns a row of the table for each setting, scheme and alpha."""
    table = []
    for setting in SETTINGS:
        for scheme in SCHEMES if setting.size else SCHEMES[:1]:
            found = [draw(setting, scheme, alphas, seed) for seed in range(draws)]
            m = found[0].calibration
            near = np.mean([rates.near_duplicates for rates in found])
            for i, alpha in enumerate(alphas):
                if m < bj.images_needed(alpha):
                    continue
                alarms = np.array([rates.false_alarms[i] for rates in found])
                error = 2 * alarms.std() / np.sqrt(draws)
                shown = "-" if scheme == "all images calibrate" else f"{near:.0%}"
                name = scheme if setting.size else "images held out"
                table.append(
                    [
                        setting.name,
                        name,
                        str(m),
                        shown,
                        f"{alpha:g}",
                        f"{alarms.mean():.4f} ± {error:.4f}",
                    ]
                )
    return table
