"""The similarity bias that BLISS corrects, measured in six mean cosines.

In CLIP's embedding space, texts cluster together and images cluster together, and the two clusters are far
apart (Goodge et al. 2024, section 3; Liang et al. 2022, "Mind the gap"). Therefore the cosine between an
image and a text depends more on the text than on the content of the image. `similarity_bias` measures the
mean cosines within and between labels, dictionary texts and images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bliss_jax.embedding import EmbeddingSet


@dataclass(frozen=True)
class SimilarityBias:
    """Mean cosines over pairs of distinct items. The images are the test images.

    A mean over no pair (a single class, a single phrase or a single image) is NaN.
    """

    label_label: float
    dictionary_dictionary: float
    label_dictionary: float
    image_image: float
    image_own_label: float
    """Mean cosine between each image and the label of its own class."""
    image_dictionary: float


def similarity_bias(embeddings: EmbeddingSet) -> SimilarityBias:
    """Computes the six means of `SimilarityBias`.

    With unit vectors x_1..x_n and y_1..y_m,

        mean cosine of x and y             = (sum x) . (sum y) / (n m)
        mean cosine of two different x     = (|sum x|^2 - n) / (n (n - 1))

    so no matrix of all pairs is needed. Sums are accumulated in float64.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
    """
    labels, images = embeddings.label_embeddings, embeddings.test_embeddings
    dictionary = embeddings.dictionary_embeddings
    own = np.einsum(
        "nd,nd->n", images, labels[embeddings.test_labels], dtype=np.float64, casting="safe"
    )
    return SimilarityBias(
        label_label=_within(labels),
        dictionary_dictionary=_within(dictionary),
        label_dictionary=_between(labels, dictionary),
        image_image=_within(images),
        image_own_label=float(own.mean()),
        image_dictionary=_between(images, dictionary),
    )


def _between(x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "m dim"]) -> float:
    return float(x.mean(axis=0, dtype=np.float64) @ y.mean(axis=0, dtype=np.float64))


def _within(x: Float[np.ndarray, "n dim"]) -> float:
    n, total = len(x), x.sum(axis=0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else float("nan")
