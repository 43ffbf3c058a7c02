"""The report's gallery: the images that a score gets most wrong, and why it judged them so."""

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
"""Shown of each image, be k smaller or larger."""
_LONGEST_SIDE = 256
"""Pixels; larger images are made smaller for the page."""


@dataclass(frozen=True)
class Card:
    """One image of the gallery; scores are BLISS, higher = more anomalous."""

    kind: str
    """ "normal" or "anomaly"."""
    position: int
    """In the test set."""
    image: str
    """A data URI."""
    true_class: str
    nearest_class: str
    score: float
    internal: float
    external: float
    words: tuple[tuple[str, float], ...]
    """Nearest dictionary words with their z-scores, by falling cosine."""


def explain_split(
    embeddings: EmbeddingSet, split: Split, rows: Int[np.ndarray, " images"], settings: Settings
) -> BlissExplanation:
    """Explanations of test images by BLISS without shrinkage, fitted on the split's normal images.

    Args:
        embeddings: Of a data set and a dictionary, by one model.
        split: Its normal classes are those of the explanation.
        rows: Positions in the test set.
        settings: k and lambda; shots and seed as in `score_split`.
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
    """The `each` most anomalous normals, then as many of the most normal anomalies.

    Args:
        embeddings: For names of classes and words.
        explanation: Of the test images at `rows`.
        rows: Their positions in the test set.
        is_anomaly: Of the same.
        images: uint8 [height, width, 3], the whole test set.
        each: Cards of each kind, or fewer where there are not so many images.
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
    """An image as a data URI, made smaller where it is large."""
    from PIL import Image

    content = io.BytesIO()
    small = Image.fromarray(image)
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    small.save(content, format="png")
    return data_uri(content.getvalue(), "image/png")
