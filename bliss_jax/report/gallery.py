"""Gallery of the report: the most misjudged images, with explanations of their scores."""

import io
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from bliss_jax.datasets import Images, Split
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import Settings, training_rows
from bliss_jax.report.drawing import data_uri
from bliss_jax.scores import BlissExplanation, explain_bliss, fit_moments

WORDS = 5
"""Number of nearest dictionary texts shown for each image. It does not depend on k."""
_LONGEST_SIDE = 256
"""Maximum width and height of an image on the page, in pixels. Larger images are reduced."""


@dataclass(frozen=True)
class Card:
    """One image of the gallery. Scores are BLISS scores; higher is more anomalous."""

    kind: str
    """ "normal" or "anomaly"."""
    position: int
    """Position in the test set."""
    image: str
    """Image as a data URI."""
    true_class: str
    nearest_class: str
    score: float
    internal: float
    external: float
    words: tuple[tuple[str, float], ...]
    """Nearest dictionary texts with their z-scores, in descending order of the cosine."""


def explain_split(
    embeddings: EmbeddingSet, split: Split, rows: Int[np.ndarray, " images"], settings: Settings
) -> BlissExplanation:
    """Explains test images by BLISS without shrinkage, fitted on the split's normal images.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        split: Split whose normal classes are used.
        rows: Positions of the images in the test set.
        settings: Settings from which k, lambda, shots and seed are used, as in `score_split`.
    """
    own = np.array(sorted(split.normal))
    normal = np.isin(np.arange(embeddings.num_classes), own)
    fitted = training_rows(embeddings, normal, shots=settings.shots, draws=1, seed=settings.seed)[0]
    moments = fit_moments(
        jnp.asarray(embeddings.train_embeddings[fitted]),
        jnp.asarray(np.searchsorted(own, embeddings.train_labels[fitted]).astype(np.int32)),
        num_classes=len(own),
    )
    explain = jax.jit(explain_bliss, static_argnames=("k", "num_texts"))
    explanation = explain(
        jnp.asarray(embeddings.test_embeddings[rows]),
        jnp.asarray(embeddings.label_embeddings[own]),
        jnp.asarray(embeddings.dictionary_embeddings),
        moments,
        k=settings.k,
        weight=settings.weight,
        num_texts=min(max(settings.k, WORDS), len(embeddings.dictionary)),
    )
    return explanation._replace(nearest_class=jnp.asarray(own)[explanation.nearest_class])


def gallery(
    embeddings: EmbeddingSet,
    explanation: BlissExplanation,
    rows: Int[np.ndarray, " images"],
    is_anomaly: Bool[np.ndarray, " images"],
    images: Images,
    *,
    each: int,
) -> list[Card]:
    """Returns cards of the normal images with the highest scores, then of the anomalies with the lowest.

    Args:
        embeddings: Embeddings with the names of the classes and the dictionary texts.
        explanation: Explanation of the test images at `rows`.
        rows: Positions of these images in the test set.
        is_anomaly: Whether each of these images is an anomaly.
        images: All test images, uint8 [height, width, 3].
        each: Maximum number of normal images, and of anomalies.
    """
    score = np.asarray(explanation.score)
    normals = np.flatnonzero(~is_anomaly)
    anomalies = np.flatnonzero(is_anomaly)
    worst = [
        *normals[np.argsort(-score[normals], kind="stable")[:each]],
        *anomalies[np.argsort(score[anomalies], kind="stable")[:each]],
    ]
    names = embeddings.class_names
    return [
        Card(
            kind="anomaly" if is_anomaly[i] else "normal",
            position=int(rows[i]),
            image=thumbnail(np.asarray(images[int(rows[i])])),
            true_class=names[embeddings.test_labels[rows[i]]],
            nearest_class=names[int(explanation.nearest_class[i])],
            score=float(score[i]),
            internal=float(explanation.internal[i]),
            external=float(explanation.external[i]),
            words=tuple(
                (embeddings.dictionary[int(text)], float(z))
                for text, z in zip(
                    explanation.texts[i, :WORDS], explanation.z_scores[i, :WORDS], strict=True
                )
            ),
        )
        for i in worst
    ]


def thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Returns an image as a data URI, reduced in size if it is large."""
    from PIL import Image

    content = io.BytesIO()
    small = Image.fromarray(image)
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    small.save(content, format="png")
    return data_uri(content.getvalue(), "image/png")


def thumbnail_size(image: UInt8[np.ndarray, "h w 3"]) -> tuple[int, int]:
    """Returns the height and width of an image's thumbnail, up to rounding."""
    height, width, _ = image.shape
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
