"""Handwritten digits from scikit-learn: a real data set that needs no download.

The data set has 1,797 grey images of 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak 1998, the test
part of UCI's "Optical Recognition of Handwritten Digits"). It has no official test split, so every third
image is used for testing here.
"""

import numpy as np

from bliss_jax import _require
from bliss_jax.datasets.image_dataset import ImageDataset

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WHITE = 16


def load_digits(split: str) -> ImageDataset:
    """Loads the split `"train"` or `"test"`; grey levels are scaled to 0..255 and repeated for R, G and B."""
    _require("sklearn", "datasets")
    import sklearn
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    grey = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / _WHITE)).astype(np.uint8)
    in_test = np.arange(len(grey)) % 3 == 2
    chosen = in_test if split == "test" else ~in_test
    return ImageDataset(
        name="digits",
        images=np.repeat(grey[chosen][..., None], 3, axis=-1),
        labels=np.asarray(labels)[chosen],
        class_names=_NAMES,
        source=f"scikit-learn {sklearn.__version__} load_digits, {split}: "
        + ("every third image" if split == "test" else "all but every third image"),
    )
