"""Synthetic embeddings for measurements: unit vectors in two narrow cones, one of images and one of texts.

The mean cosines are near those of CLIP ViT-B/32 on CIFAR-10: 0.76 between images, 0.61 between dictionary
texts, 0.87 between labels, and 0.2 between an image and a text. Only the time of a full sort
depends on the values. The agreement of two procedures does, because rounding shows in neighbouring ranks and
in small variances.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Embeddings(NamedTuple):
    """Embeddings and labels of a data set; float32, unit norm."""

    train: Float[np.ndarray, "train dim"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    labels: Float[np.ndarray, "classes dim"]
    dictionary: Float[np.ndarray, "texts dim"]


def embeddings(
    *, train: int, test: int, texts: int, classes: int, dim: int = 512, seed: int = 0
) -> Embeddings:
    """Draws embeddings. The classes have equal sizes and a random order."""
    rng = np.random.default_rng(seed)
    image_cone, text_cone = np.eye(2, dim, dtype=np.float32)
    text_cone = 0.25 * image_cone + np.sqrt(1 - 0.25**2) * text_cone
    shift = _noise(rng, classes, dim)

    def images(number: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.permutation(np.arange(number) % classes).astype(np.int32)
        return _unit(image_cone + 0.35 * shift[y] + 0.45 * _noise(rng, number, dim)), y

    return Embeddings(
        *images(train),
        *images(test),
        labels=_unit(text_cone + 0.12 * shift + 0.36 * _noise(rng, classes, dim)),
        dictionary=_unit(text_cone + 0.8 * _noise(rng, texts, dim)),
    )


def _noise(rng: np.random.Generator, number: int, dim: int) -> Float[np.ndarray, "number dim"]:
    """Returns Gaussian vectors with a squared norm of about 1."""
    return rng.standard_normal((number, dim), np.float32) / np.float32(np.sqrt(dim))


def _unit(x: Float[np.ndarray, "number dim"]) -> Float[np.ndarray, "number dim"]:
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32, copy=False)
