"""AUROCs of BLISS and its parts on every split, from similarities that are computed once.

`evaluate` measures one setting. Here k, lambda and the shrinkage are axes, and the fit and the dictionary
are arguments, so the studies of `studies.py` need one compiled function for all values. The scores equal
those of `bliss_jax.scores.bliss` for the normal classes of a split.

All functions are pure, and none of them is jitted. In the shapes, n is the number of test images, C the
number of classes that are normal in at least one split, M the number of dictionary texts, and P the number
of normal classes of the largest split, to which smaller splits are padded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import metrics
from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.splits import class_masks
from bliss_jax.scores import (
    block_map,
    fit_moments,
    min_over_classes,
    pooled_dictionary_variance,
    pooling_weights,
    shrinkage_share,
    similarity,
    standard_deviation,
    text_moments,
)

_BLOCK = 2**24
"""Approximate number of elements of a temporary array."""
_HIGHEST = lax.Precision.HIGHEST


class Splits(NamedTuple):
    """Splits of a protocol. Under `lax.map` it is a single split, without the first axis."""

    classes: Int[jax.Array, "*splits P"]
    """Normal classes of the split, as positions among the C classes."""
    normal: Bool[jax.Array, "*splits P"]
    """Whether an entry of `classes` is a normal class and not padding."""
    is_anomaly: Bool[jax.Array, "*splits n"]
    """Whether the test image belongs to an anomalous class."""
    counted: Bool[jax.Array, "*splits n"]
    """Whether the test image belongs to a normal or an anomalous class."""


class Nearest(NamedTuple):
    """Nearest dictionary texts of each image, in descending order of the cosine."""

    cosines: Float[jax.Array, "*subsets n k"]
    texts: Int[jax.Array, "*subsets n k"]


class TextMoments(NamedTuple):
    """Mean and variance (ddof 0) of the cosines between the images of each class and some texts."""

    mean: Float[jax.Array, "texts C"]
    variance: Float[jax.Array, "texts C"]


class Fit(NamedTuple):
    """Statistics of the normal images that BLISS needs."""

    count: Float[jax.Array, " C"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of normal images of each class."""
    labels: TextMoments
    dictionary: TextMoments
    dictionary_mean: Float[jax.Array, " C"]
    """Mean over the dictionary's texts of the variance of each class."""


class Aurocs(NamedTuple):
    """AUROCs in [0, 1]. `internal` and `external` are without shrinkage."""

    internal: Float[jax.Array, "splits"]
    external: Float[jax.Array, "splits ks"]
    bliss: Float[jax.Array, "splits weights shrinkages ks"]


def splits_of(embeddings: EmbeddingSet, protocol: Protocol) -> tuple[Int[np.ndarray, " C"], Splits]:
    """Returns the ids of the C classes that are normal in at least one split, and the splits.

    Raises:
        ValueError: One of the reasons listed in `class_masks`.
    """
    normal, anomalous = class_masks(protocol, embeddings)
    own = np.flatnonzero(normal.any(axis=0))
    classes, is_class = padded_classes(normal[:, own])
    is_anomaly = anomalous[:, embeddings.test_labels]
    splits = Splits(
        jnp.asarray(classes),
        jnp.asarray(is_class),
        jnp.asarray(is_anomaly),
        jnp.asarray(is_anomaly | normal[:, embeddings.test_labels]),
    )
    return own, splits


def padded_classes(
    normal: Bool[np.ndarray, "splits classes"],
) -> tuple[Int[np.ndarray, "splits P"], Bool[np.ndarray, "splits P"]]:
    """Returns the normal classes of each split in ascending order, and whether each entry is one and not padding."""
    order = np.argsort(~normal, axis=1, kind="stable")[:, : normal.sum(axis=1).max()]
    return order.astype(np.int32), np.take_along_axis(normal, order, axis=1)


def fit_images(
    train: Float[jax.Array, "train dim"],
    train_labels: Int[jax.Array, " train"],
    labels: Float[jax.Array, "C dim"],
    dictionary: Float[jax.Array, "M dim"],
) -> Fit:
    """Computes the fit of all training images from the moments of their embeddings."""
    moments = fit_moments(train, train_labels, num_classes=len(labels))
    of_dictionary = TextMoments(*text_moments(dictionary, moments))
    mean = of_dictionary.variance.mean(axis=0)
    return Fit(moments.count, TextMoments(*text_moments(labels, moments)), of_dictionary, mean)


def fit_similarities(
    similarities: Float[jax.Array, "C shots texts"], shots: Int[jax.Array, ""]
) -> Fit:
    """Computes the fit of the first `shots` images of each class from their cosines to all texts.

    For a few images this is far less work than a covariance, because it needs no product with embeddings.

    Args:
        similarities: Cosines of the images to the C labels, followed by the M dictionary texts.
        shots: Number of images of each class to use.
    """
    num_classes, places, _ = similarities.shape
    drawn = (jnp.arange(places) < shots)[None, :, None]
    images = shots.astype(similarities.dtype)
    mean = jnp.where(drawn, similarities, 0).sum(axis=1) / images
    deviations = jnp.where(drawn, similarities - mean[:, None, :], 0)
    moments = TextMoments(mean.T, (deviations**2).sum(axis=1).T / images)
    of_labels, of_dictionary = (
        TextMoments(moments.mean[part], moments.variance[part])
        for part in (slice(num_classes), slice(num_classes, None))
    )
    count = jnp.full(num_classes, shots, similarities.dtype)
    return Fit(count, of_labels, of_dictionary, of_dictionary.variance.mean(axis=0))


def nearest_in_subsets(
    test: Float[jax.Array, "n dim"],
    dictionary: Float[jax.Array, "M dim"],
    subsets: Bool[jax.Array, "subsets M"],
    k: int,
) -> Nearest:
    """Returns the k nearest texts of each image in each subset of the dictionary.

    The cosines are computed once for all subsets. Each subset must have at least k texts.
    """

    def of_image(image):
        cosines = similarity(image[None, :], dictionary)
        return Nearest(*lax.top_k(jnp.where(subsets, cosines, -jnp.inf), k))

    of_images = block_map(of_image, test, size=subsets.size, block=_BLOCK)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), of_images)


def split_aurocs(
    to_labels: Float[jax.Array, "n C"],
    nearest: Nearest,
    fit: Fit,
    splits: Splits,
    *,
    weights: Float[jax.Array, " weights"],
    shrinkages: Float[jax.Array, " shrinkages"],
    ks: Int[jax.Array, " ks"],
) -> Aurocs:
    """Computes the AUROCs of all splits for each lambda, shrinkage and k.

    Args:
        to_labels: Cosine of each test image to each label.
        nearest: The nearest max(ks) texts of each image.
        fit: Statistics of the normal images.
        splits: Normal classes of each split, and whether each test image is normal or an anomaly.
        weights: Values of lambda of `bliss`.
        shrinkages: Values of n0 of `bliss`. The first must be 0.
        ks: Numbers of texts per image.
    """

    def scores(split: Splits) -> Float[jax.Array, "columns n"]:
        internal, external = jax.vmap(
            lambda n0: _class_scores(to_labels, nearest, fit, split, n0, ks)
        )(shrinkages)

        def least(per_class):
            per_class = per_class.reshape(-1, split.normal.size)
            return min_over_classes(per_class, normal=split.normal)

        both = lax.map(lambda weight: least(internal[:, None] + weight * external), weights)
        columns = least(internal[0]), least(external[0]), both
        return jnp.concatenate([column.reshape(-1, len(to_labels)) for column in columns])

    def areas(split: Splits) -> Float[jax.Array, " columns"]:
        return jax.vmap(lambda score: metrics.auroc(score, split.is_anomaly, where=split.counted))(
            scores(split)
        )

    found = lax.map(areas, splits)
    internal, external, both = jnp.split(found, (1, 1 + len(ks)), axis=1)
    grid = (len(splits.classes), len(weights), len(shrinkages), len(ks))
    return Aurocs(internal[:, 0], external, both.reshape(grid))


def _class_scores(
    to_labels: Float[jax.Array, "n C"],
    nearest: Nearest,
    fit: Fit,
    split: Splits,
    n0: Float[jax.Array, ""],
    ks: Int[jax.Array, " ks"],
) -> tuple[Float[jax.Array, "n P"], Float[jax.Array, "ks n P"]]:
    """Computes internal(x, c), and external(x, c) for each k, for the normal classes of a split."""
    own, normal = split.classes, split.normal
    count = fit.count[own]
    share = shrinkage_share(count, n0)[None, :]
    of_own = jax.tree.map(lambda leaf: leaf[:, own], (fit.labels, fit.dictionary))

    labels = jax.tree.map(lambda leaf: leaf[own], of_own[0])
    pooled = jnp.matmul(labels.variance, pooling_weights(count, normal), precision=_HIGHEST)
    variance = labels.variance + share * (pooled[:, None] - labels.variance)
    deviation = standard_deviation(jnp.diagonal(variance))[None, :]
    internal = -(to_labels[:, own] - jnp.diagonal(labels.mean)[None, :]) / deviation

    mean, variance = of_own[1]
    pooled = pooled_dictionary_variance(variance, fit.dictionary_mean[own], count, normal)
    deviation = standard_deviation(variance + share * (pooled[:, None] - variance))
    return internal, _prefix_means(nearest, mean, deviation, ks)


def _prefix_means(
    nearest: Nearest,
    mean: Float[jax.Array, "M P"],
    deviation: Float[jax.Array, "M P"],
    ks: Int[jax.Array, " ks"],
) -> Float[jax.Array, "ks n P"]:
    """Computes the mean of (s(x, d) - mu_{c,d}) / sigma_{c,d} over the first k texts, for each k."""
    places = nearest.texts.shape[1]
    counted = (jnp.arange(places)[None, :] < ks[:, None]).astype(mean.dtype)
    prefix = counted / ks[:, None].astype(mean.dtype)

    def of_image(cosines, texts):
        z = (cosines[:, None] - mean[texts]) / deviation[texts]
        return jnp.matmul(prefix, z, precision=_HIGHEST)

    return block_map(of_image, *nearest, size=places * mean.shape[1], block=_BLOCK).swapaxes(0, 1)
