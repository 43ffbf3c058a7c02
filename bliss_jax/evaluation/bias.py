"""How similar texts are to texts, images to images, and texts to images: the bias that BLISS corrects.

In CLIP's space texts lie among texts and images among images, far from each other (Goodge et al. 2024,
section 3; Liang et al. 2022, "Mind the gap"). So a cosine of image and text says less about what is seen
than about which text it is. `similarity_bias` measures that in six numbers.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bliss_jax.embedding import EmbeddingSet


@dataclass(frozen=True)
class SimilarityBias:
    """Mean cosines over pairs of distinct items; the images are those of the test set.

    A mean over no pair (one class, one phrase, one image) is not a number.
    """

    label_label: float
    dictionary_dictionary: float
    label_dictionary: float
    image_image: float
    image_own_label: float
    """Each image with the label of its own class."""
    image_dictionary: float


def similarity_bias(embeddings: EmbeddingSet) -> SimilarityBias:
    """The six means of `SimilarityBias`.

    With unit vectors x_1..x_n and y_1..y_m,

        mean cosine of x and y             = (sum x) . (sum y) / (n m)
        mean cosine of two different x     = (|sum x|^2 - n) / (n (n - 1))

    so that no matrix of all pairs is needed. Sums are in float64.
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
