"""AUROC and likelihood of BLISS on held-out normal images, for a grid of settings and without anomalies.

The normal images are divided into folds, class by class. Each fold is scored with a fit to the other folds.

`held_out_aurocs` leaves classes out: the normal classes are divided into at most ten groups, and the images of
one group are pseudo-anomalies for a detector of the other classes. `held_out_likelihoods` needs no second class:
it measures how well N(mu_{c,t}, sigma_{c,t}^2), by which BLISS standardises cosines, predicts the cosines of
held-out images,

    log p(n0) = mean over held-out images x and texts t of log N(s(x, t); mu_{c,t}, sigma_{c,t}^2(n0)),

so it is largest if the held-out z-scores are as close to standard normal as the shrinkage n0 can make them.

In the shapes, F is the number of folds, r the number of images of a fold, G the number of groups, and P the number
of classes outside the smallest group.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax.evaluation.split_aurocs import (
    Fit,
    Nearest,
    Splits,
    TextMoments,
    padded_classes,
    split_aurocs,
)
from bliss_jax.scores import (
    fit_moments,
    pooled_dictionary_variance,
    shrinkage_share,
    similarity,
    standard_deviation,
    text_moments,
    top_k_similar,
)

GROUPS = 10
"""Largest number of groups of classes."""
_ROWS = 16
"""Folds are padded to a multiple of this number of images, so that similar sizes share a compiled program."""


class Grid(NamedTuple):
    """Axes of the grid of settings."""

    weights: Float[np.ndarray, " weights"]
    """Values of lambda."""
    shrinkages: Float[np.ndarray, " shrinkages"]
    """Values of n0. The first is 0."""
    ks: Int[np.ndarray, " ks"]


class Folds(NamedTuple):
    """Images in folds of equal size. Rows of a fold that are not `valid` are padding."""

    embeddings: Float[np.ndarray, "F r dim"]
    labels: Int[np.ndarray, "F r"]
    valid: Bool[np.ndarray, "F r"]


class Groups(NamedTuple):
    """Groups of classes that are left out in turn."""

    of_class: Int[np.ndarray, " classes"]
    """Group of each class."""
    classes: Int[np.ndarray, "G P"]
    """Classes outside each group, padded to the same number."""
    normal: Bool[np.ndarray, "G P"]
    """Whether an entry of `classes` is not padding."""


def folds_of(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    folds: int,
    seed: int,
) -> Folds:
    """Divides the images of each class at random into folds whose sizes differ by at most one image.

    Two images of one class are in the same fold only if the class has more images than there are folds.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rows = -(-len(labels) // folds)
    padded = -(-rows // _ROWS) * _ROWS
    order = np.zeros((folds, padded), int)
    valid = np.zeros((folds, padded), bool)
    for fold in range(folds):
        # A random order within the fold, because only its first images may be scored.
        own = rng.permutation(by_class[fold::folds])
        order[fold, : len(own)], valid[fold, : len(own)] = own, True
    return Folds(embeddings[order], labels[order].astype(np.int32), valid)


def groups_of(classes: int, seed: int, most: int = GROUPS) -> Groups:
    """Divides classes at random into groups of about the same size: single classes if there are at most `most`."""
    number = min(classes, most)
    of_class = np.random.default_rng(seed).permutation(np.arange(classes) % number).astype(np.int32)
    outside = of_class[None, :] != np.arange(number)[:, None]
    return Groups(of_class, *padded_classes(outside))


def held_out_aurocs(
    folds: Folds,
    groups: Groups,
    label_embeddings: Float[np.ndarray, "classes dim"],
    dictionary_embeddings: Float[np.ndarray, "texts dim"],
    grid: Grid,
    scored: int,
) -> Float[np.ndarray, "F G weights shrinkages ks"]:
    """Computes the AUROC of BLISS on each fold for each group of classes that is left out, for all settings.

    Args:
        folds: Normal images of at least two classes.
        groups: Groups of classes.
        label_embeddings: Unit-norm embedding of each class's prompt.
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts.
        grid: Settings.
        scored: Largest number of images of a fold that are scored. The fits always use all images.

    Returns:
        AUROCs in [0, 1]; NaN if a fold has no image of a group.
    """
    found = _held_out_aurocs(
        *map(jnp.asarray, folds),
        *map(jnp.asarray, groups),
        jnp.asarray(label_embeddings),
        jnp.asarray(dictionary_embeddings),
        *(jnp.asarray(axis) for axis in grid),
        k=int(grid.ks.max()),
        scored=min(scored, folds.valid.shape[1]),
    )
    return np.asarray(found)


def held_out_likelihoods(
    folds: Folds,
    label_embeddings: Float[np.ndarray, "classes dim"],
    dictionary_embeddings: Float[np.ndarray, "texts dim"],
    shrinkages: Float[np.ndarray, " shrinkages"],
) -> Float[np.ndarray, " shrinkages"]:
    """Computes the mean log-likelihood of the held-out cosines to all texts, for each shrinkage.

    The result is the sum of the mean over the images' own labels and the mean over the dictionary, the two parts of
    the score.
    """
    found = _held_out_likelihoods(
        *map(jnp.asarray, folds),
        jnp.asarray(label_embeddings),
        jnp.asarray(dictionary_embeddings),
        jnp.asarray(shrinkages),
    )
    return np.asarray(found)


@partial(jax.jit, static_argnames=("k", "scored"))
def _held_out_aurocs(
    x: Float[jax.Array, "F r dim"],
    y: Int[jax.Array, "F r"],
    valid: Bool[jax.Array, "F r"],
    group: Int[jax.Array, " C"],
    classes: Int[jax.Array, "G P"],
    normal: Bool[jax.Array, "G P"],
    labels: Float[jax.Array, "C dim"],
    dictionary: Float[jax.Array, "M dim"],
    weights: Float[jax.Array, " weights"],
    shrinkages: Float[jax.Array, " shrinkages"],
    ks: Int[jax.Array, " ks"],
    *,
    k: int,
    scored: int,
) -> Float[jax.Array, "F G weights shrinkages ks"]:
    numbers = jnp.arange(len(classes))

    def of_fold(fold: jax.Array) -> jax.Array:
        fit = _fit_to_others(x, y, valid, fold, labels, dictionary)
        images, own, counted = x[fold, :scored], y[fold, :scored], valid[fold, :scored]
        nearest = Nearest(*top_k_similar(images, dictionary, k))
        splits = Splits(
            classes,
            normal,
            group[own][None, :] == numbers[:, None],
            jnp.broadcast_to(counted[None, :], (len(classes), scored)),
        )
        to_labels = similarity(images, labels)
        return split_aurocs(
            to_labels, nearest, fit, splits, weights=weights, shrinkages=shrinkages, ks=ks
        ).bliss

    return lax.map(of_fold, jnp.arange(len(x)))


@jax.jit
def _held_out_likelihoods(
    x: Float[jax.Array, "F r dim"],
    y: Int[jax.Array, "F r"],
    valid: Bool[jax.Array, "F r"],
    labels: Float[jax.Array, "C dim"],
    dictionary: Float[jax.Array, "M dim"],
    shrinkages: Float[jax.Array, " shrinkages"],
) -> Float[jax.Array, " shrinkages"]:
    everything = jnp.ones(len(labels), bool)

    def of_fold(fold: jax.Array) -> tuple[jax.Array, jax.Array]:
        fit = _fit_to_others(x, y, valid, fold, labels, dictionary)
        of_fold = fit_moments(x[fold], y[fold], num_classes=len(labels), where=valid[fold])
        images = of_fold.count

        def of_shrinkage(n0: jax.Array) -> jax.Array:
            share = shrinkage_share(fit.count, n0)[None, :]
            pooled = fit.labels.variance @ (fit.count / fit.count.sum())
            variances = fit.labels.variance + share * (pooled[:, None] - fit.labels.variance)
            own = _log_likelihood(
                TextMoments(*text_moments(labels, of_fold)), fit.labels.mean, variances
            )
            pooled = pooled_dictionary_variance(
                fit.dictionary.variance, fit.dictionary_mean, fit.count, everything
            )
            variances = fit.dictionary.variance + share * (
                pooled[:, None] - fit.dictionary.variance
            )
            words = _log_likelihood(
                TextMoments(*text_moments(dictionary, of_fold)), fit.dictionary.mean, variances
            )
            return images @ (jnp.diagonal(own) + words.mean(axis=0))

        return lax.map(of_shrinkage, shrinkages), images.sum()

    sums, images = lax.map(of_fold, jnp.arange(len(x)))
    return sums.sum(axis=0) / images.sum()


def _log_likelihood(
    held_out: TextMoments,
    mean: Float[jax.Array, "texts C"],
    variance: Float[jax.Array, "texts C"],
) -> Float[jax.Array, "texts C"]:
    """Returns the mean of log N(s; mean, variance) over held-out cosines with these moments, by text and class."""
    deviation = standard_deviation(variance)
    squares = held_out.variance + (held_out.mean - mean) ** 2
    return -jnp.log(deviation) - 0.5 * (jnp.log(2 * jnp.pi) + squares / deviation**2)


def _fit_to_others(
    x: Float[jax.Array, "F r dim"],
    y: Int[jax.Array, "F r"],
    valid: Bool[jax.Array, "F r"],
    fold: Int[jax.Array, ""],
    labels: Float[jax.Array, "C dim"],
    dictionary: Float[jax.Array, "M dim"],
) -> Fit:
    """Returns the statistics of the images of all folds but one."""
    others = valid & (jnp.arange(len(x)) != fold)[:, None]
    moments = fit_moments(
        x.reshape(-1, x.shape[-1]),
        y.reshape(-1),
        num_classes=len(labels),
        where=others.reshape(-1),
    )
    of_dictionary = TextMoments(*text_moments(dictionary, moments))
    mean = of_dictionary.variance.mean(axis=0)
    return Fit(moments.count, TextMoments(*text_moments(labels, moments)), of_dictionary, mean)


def as_grid(weights: Sequence[float], shrinkages: Sequence[float], ks: Sequence[int]) -> Grid:
    """Returns the axes as arrays."""
    return Grid(
        np.asarray(weights, np.float32),
        np.asarray(shrinkages, np.float32),
        np.asarray(ks, np.int32),
    )
