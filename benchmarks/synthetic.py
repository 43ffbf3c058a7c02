"""Embeddings for measurements: unit vectors in two narrow cones, images in one and texts in the other.

The mean cosines are near those of CLIP ViT-B/32 on CIFAR-10: between images 0.76, between dictionary texts
0.61, between labels 0.87, between an image and a text 0.2. Time does not depend on the values (a full sort
apart); agreement does, since neighbouring ranks and small variances are where rounding shows.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Embeddings(NamedTuple):
    """What BLISS needs of a benchmark; float32, unit norm."""

    train: Float[np.ndarray, "train dim"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    labels: Float[np.ndarray, "classes dim"]
    dictionary: Float[np.ndarray, "texts dim"]


def embeddings(
    *, train: int, test: int, texts: int, classes: int, dim: int = 512, seed: int = 0
) -> Embeddings:
    """Draws a benchmark; classes are of equal size, in random order."""
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
    """Gaussian vectors with a squared norm of about 1."""
    return rng.standard_normal((number, dim), np.float32) / np.float32(np.sqrt(dim))


def _unit(x: Float[np.ndarray, "number dim"]) -> Float[np.ndarray, "number dim"]:
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32, copy=False)
