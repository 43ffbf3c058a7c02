"""A small set of clustered embeddings and a protocol for it, shared by tests of the evaluation."""

import numpy as np
import reference
from reference import random_embeddings

from bliss_jax.datasets import Protocol, Split
from bliss_jax.embedding import EmbeddingSet

C, D, M = 6, 24, 120
PROTOCOL = Protocol(
    "three",
    "custom",
    None,
    (Split((0, 1), (2, 3, 4, 5)), Split((4, 3), (0, 1)), Split((0, 2, 4), (1, 3, 5))),
)
"""Three splits of different sizes. Class 5 is never normal, and the second split ignores two classes."""


def clusters(class_names: tuple[str, ...] = tuple("abcdef")) -> EmbeddingSet:
    """Returns 150 training and 90 test images of six classes and 120 texts.

    The images are in one cone and the texts in another, as with CLIP.
    """
    rng = np.random.default_rng(0)
    images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
    centres = random_embeddings(rng, C, D, around=images)

    def sample(size):
        labels = rng.integers(0, C, size)
        x = centres[labels] + 0.15 * rng.normal(size=(size, D))
        return reference.unit(x).astype(np.float32), labels

    return EmbeddingSet(
        *sample(150),
        *sample(90),
        class_names,
        random_embeddings(rng, C, D, around=texts),
        tuple(f"word {i}" for i in range(M)),
        random_embeddings(rng, M, D, around=texts),
    )
