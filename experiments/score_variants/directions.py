"""Variants of BLISS that look along directions: the mean of the nearest words, and whitened texts.

The paper's z-scores know the variance of the cosine to each text, one by one. These know how cosines vary
together, through the class covariances.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from experiments.score_variants.parts import (
    K,
    Task,
    combined,
    count,
    deviation,
    external,
    internal,
    nearest_class,
    of_labels,
    raw_moments,
    shares,
)


def mean_word(t: Task) -> Float[jax.Array, "images dim"]:
    """The mean of each image's k nearest words."""
    return t.words[t.test.nearest[:, :K]].mean(axis=1)


def mean_word_parts(t: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each image's mean word: difference to the class mean, variance, covariance with the label.

    The covariance is of the cosines to the mean word and to t_c, over the class's images; all [images, C].
    """
    word = mean_word(t)
    cosines = word @ t.train.embeddings.T
    n, share = count(t)[None, :], shares(t)
    mean = cosines @ t.member.T / n
    centred = cosines - mean @ t.member  # by own class; what was not fitted has no part below
    variance = centred**2 @ t.member.T / n
    label_mean, _ = raw_moments(t, t.train.to_labels)
    labels = t.train.to_labels - t.member.T @ label_mean
    covariance = centred @ (t.member.T * labels) / n
    fitted = t.member.sum(axis=0)
    pooled = centred @ (fitted[:, None] * labels) / jnp.maximum(fitted.sum(), 1)
    covariance = (n * covariance + t.n0 * pooled) / (n + t.n0)
    variance = (n * variance + t.n0 * (variance @ share)[:, None]) / (n + t.n0)
    to_word = (word * t.test.embeddings).sum(axis=1)
    return to_word[:, None] - mean, variance, covariance


def one_mean_word(t: Task, weight) -> jax.Array:
    """The external part as the z-score of the mean word: correlation between words accounted for."""
    difference, variance, _ = mean_word_parts(t)
    return combined(t, internal(t, t.test, of_labels(t)), difference / deviation(variance), weight)


def one_direction(t: Task, weight) -> jax.Array:
    """z-score of the direction lambda (mean word) - t_c: correlation with the label accounted for too."""
    difference, variance, covariance = mean_word_parts(t)
    m = of_labels(t)
    label_difference = t.test.to_labels - jnp.diagonal(m.mean)[None, :]
    label_variance = jnp.diagonal(m.variance)[None, :]
    total = weight**2 * variance + label_variance - 2 * weight * covariance
    return nearest_class(
        t, (weight * difference - label_difference) / deviation(jnp.maximum(total, 1e-10))
    )


class Whitening(NamedTuple):
    """S^-1, S the covariance within classes plus ridge x its mean eigenvalue, as (I - B^T A B) / floor."""

    floor: Float[jax.Array, ""]
    basis: Float[jax.Array, "rank dim"]
    diagonal: Float[jax.Array, " rank"]

    def apply(self, v: Float[jax.Array, "rows dim"]) -> Float[jax.Array, "rows dim"]:
        """S^-1 v for rows v."""
        return (v - (self.diagonal[None, :] * (v @ self.basis.T)) @ self.basis) / self.floor

    def squared(self, v: Float[jax.Array, "rows dim"]) -> Float[jax.Array, " rows"]:
        """v^T S^-1 v for rows v."""
        return ((v**2).sum(axis=1) - (v @ self.basis.T) ** 2 @ self.diagonal) / self.floor


def whitening(t: Task, ridge) -> Whitening:
    """Of the fitted images. What is dear does not depend on the ridge."""
    fitted = t.member.sum(axis=0)
    centred = fitted[:, None] * (t.train.embeddings - t.member.T @ class_means(t))
    images = jnp.maximum(fitted.sum(), 1)
    floor = ridge * (centred**2).sum() / images / centred.shape[1] + 1e-9
    # The eigenvectors of images or of dimensions, whichever are fewer.
    if len(centred) <= centred.shape[1]:
        values, vectors = jnp.linalg.eigh(centred @ centred.T)
        basis = vectors.T @ centred
    else:
        values, vectors = jnp.linalg.eigh(centred.T @ centred)
        basis = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    return Whitening(floor, basis, 1 / (jnp.maximum(values, 0) + images * floor))


def class_means(t: Task) -> Float[jax.Array, "classes dim"]:
    """Mean embedding of each class's fitted images."""
    return t.member @ t.train.embeddings / count(t)[:, None]


def _whitened_internal(t: Task, w: Whitening) -> jax.Array:
    labels = w.apply(t.labels)
    difference = t.test.embeddings @ labels.T - (class_means(t) * labels).sum(axis=1)[None, :]
    return -difference / deviation(w.squared(t.labels))[None, :]


def whitened_label(t: Task, ridge) -> jax.Array:
    """Internal part along S^-1 t_c, the matched filter of a shift along t_c in the class's own spread."""
    return combined(t, _whitened_internal(t, whitening(t, ridge)), external(t))


def whitened_texts(t: Task, ridge) -> jax.Array:
    """Both parts as matched filters, the external one of the mean word."""
    w, word = whitening(t, ridge), mean_word(t)
    filtered = w.apply(word)
    to_word = (t.test.embeddings * filtered).sum(axis=1)
    difference = to_word[:, None] - filtered @ class_means(t).T
    ext = difference / deviation((word * filtered).sum(axis=1))[:, None]
    return combined(t, _whitened_internal(t, w), ext)


def whitened_words(t: Task, ridge, weight) -> jax.Array:
    """Both parts as matched filters, the external one the mean of those of the k nearest words."""
    w = whitening(t, ridge)
    near = t.test.nearest[:, :K]
    means = t.words @ w.apply(class_means(t)).T
    to_words = jnp.einsum("nkd,nd->nk", t.words[near], w.apply(t.test.embeddings))
    z = (to_words[:, :, None] - means[near]) / deviation(w.squared(t.words))[near][:, :, None]
    return combined(t, _whitened_internal(t, w), z.mean(axis=1), weight)
