"""All scores on all splits of a protocol, computed in one jitted call.

The scores are mapped over the splits' masks of normal classes. Everything that does not depend on the split
(moments, the nearest texts, the nearest images of each class) is computed once.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import scores
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.settings import Settings
from bliss_jax.scores import NEGATIVE_FRACTION, block_map, min_over_classes


class Choices(NamedTuple):
    """Static arguments of the jitted evaluation."""

    names: tuple[str, ...]
    num_classes: int
    k: int
    shrinkages: tuple[float, ...]
    neighbours: int


class Arrays(NamedTuple):
    """Arrays of an embedding set that the scores read."""

    train: Float[jax.Array, "train dim"]
    train_labels: Int[jax.Array, " train"]
    test: Float[jax.Array, "test dim"]
    test_labels: Int[jax.Array, " test"]
    labels: Float[jax.Array, "classes dim"]
    dictionary: Float[jax.Array, "texts dim"]
    mcm_labels: Float[jax.Array, "classes dim"]
    something: Float[jax.Array, " dim"] | None


def arrays_of(e: EmbeddingSet) -> Arrays:
    """Returns the arrays of an embedding set that the scores read."""
    mcm = e.label_embeddings if e.mcm_label_embeddings is None else e.mcm_label_embeddings
    arrays = (
        e.train_embeddings,
        e.train_labels.astype(np.int32),
        e.test_embeddings,
        e.test_labels.astype(np.int32),
        e.label_embeddings,
        e.dictionary_embeddings,
        mcm,
        e.something_embedding,
    )
    return Arrays(*(None if array is None else jnp.asarray(array) for array in arrays))  # pyright: ignore[reportArgumentType]


def score_splits(
    a: Arrays,
    normal: Bool[jax.Array, "splits classes"],
    weight: Float[jax.Array, ""] | float,
    key: jax.Array,
    choices: Choices,
) -> Float[jax.Array, "columns splits test"]:
    """Computes every column of `columns_of`: one score on all splits."""
    x, labels = a.test, a.labels
    names, num_classes, k, shrinkages, neighbours = choices
    moments = scores.fit_moments(a.train, a.train_labels, num_classes=num_classes)

    # Each of these two is computed at most once, when a score first needs it.
    @cache
    def internal():
        return scores.internal_class_score(x, labels, moments)

    @cache
    def external():
        return scores.external_text_score(x, a.dictionary, moments, k)

    def of_splits(score):
        """Maps `score(mask)` over the splits' masks of normal classes."""
        return block_map(score, normal, size=len(x) * num_classes)

    def nearest_class(per_class):
        return of_splits(lambda n: min_over_classes(jnp.where(n[None, :], per_class, jnp.inf)))

    def bliss(n0):
        if n0 == 0:
            return nearest_class(internal() + weight * external())
        # Shrinkage pools the variances over the normal classes of a split, so the splits share no
        # intermediate result. They are computed one after the other.
        return lax.map(
            lambda n: scores.bliss_score(
                x, labels, a.dictionary, moments, k, weight, normal=n, shrinkage=n0
            ),
            normal,
        )

    def neighbour_score():
        nearest = scores.nearest_of_class(
            x, a.train, a.train_labels, neighbours, num_classes=num_classes
        )
        return lax.map(lambda n: scores.knn_score_from_nearest(nearest, n), normal)

    def of_labels(score, labels=labels, **options):
        return of_splits(lambda n: score(x, labels, normal=n, **options))

    compute = {
        "internal": lambda: nearest_class(internal()),
        "external": lambda: nearest_class(external()),
        "max_cosine": lambda: of_labels(scores.max_cosine_score),
        "msp": lambda: of_labels(scores.msp_score),
        "mcm": lambda: of_labels(scores.mcm_score, a.mcm_labels),
        "max_logit": lambda: of_labels(scores.max_logit_score),
        "energy": lambda: of_labels(scores.energy_score),
        "entropy": lambda: of_labels(scores.entropy_score),
        "clip_ad": lambda: of_labels(scores.clip_ad_score, something_embedding=a.something),
        "mahalanobis": lambda: lax.map(lambda n: scores.mahalanobis_score(x, moments, n), normal),
        "knn": neighbour_score,
        "neglabel": lambda: lax.map(
            lambda n: scores.neglabel_score(x, labels, a.dictionary, key, n), normal
        ),
        "whitened_bliss": lambda: lax.map(
            lambda n: scores.whitened_bliss_score(x, labels, a.dictionary, moments, k, weight, n),
            normal,
        ),
    }
    columns = [
        bliss(n0) if name == "bliss" else compute[name]()
        for name, n0 in columns_of(names, shrinkages)
    ]
    return jnp.stack(columns)


jitted_scores = jax.jit(score_splits, static_argnames="choices")


def columns_of(names: Sequence[str], shrinkages: Sequence[float]) -> list[tuple[str, float]]:
    """Returns the name of the score and the shrinkage of each row of the result."""
    return [(name, n0) for name in names for n0 in (shrinkages if name == "bliss" else (0.0,))]


def neighbours_of(
    embeddings: EmbeddingSet,
    normal: Bool[np.ndarray, "splits classes"],
    rows: Int[np.ndarray, "draws chosen"],
    settings: Settings,
) -> int:
    """Returns k of `knn`, reduced to the number of normal images of the smallest split if necessary."""
    count = np.bincount(embeddings.train_labels[rows[0]], minlength=embeddings.num_classes)
    return int(min(settings.neighbours, (normal @ count).min()))


def left_out_of(
    embeddings: EmbeddingSet, rows: Int[np.ndarray, "draws chosen"], settings: Settings
) -> dict[str, str]:
    """Returns the scores that cannot be computed from these embeddings, each with the reason."""
    reasons = {}
    if "clip_ad" in settings.scores and embeddings.something_embedding is None:
        reasons["clip_ad"] = "the embeddings have no array something_embedding"
    if np.bincount(embeddings.train_labels[rows[0]]).max() == 1:
        for name in ("mahalanobis", "whitened_bliss"):
            if name in settings.scores:
                reasons[name] = "a covariance needs more than one image per class"
    if "neglabel" in settings.scores and int(NEGATIVE_FRACTION * len(embeddings.dictionary)) < 1:
        reasons["neglabel"] = (
            f"it uses {100 * NEGATIVE_FRACTION:g} % of the dictionary, which is less than one of "
            f"{len(embeddings.dictionary)} texts"
        )
    return reasons
