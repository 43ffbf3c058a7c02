"""Variants of BLISS that use class covariances: the mean of the nearest words, and whitened texts.

The z-scores of the paper use the variance of the cosine to each text separately. These variants also use the
covariances between the cosines to different texts.
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
    """Returns the mean embedding of the k nearest words of each image."""
    return t.words[t.test.nearest[:, :K]].mean(axis=1)


def mean_word_parts(t: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes statistics of the cosine to each image's mean word, for each class.

    Returns:
        The difference to the class mean, the variance, and the covariance with the cosine to the label t_c
        over the images of the class. All have the shape [images, C].
    """
    word = mean_word(t)
    cosines = word @ t.train.embeddings.T
    n, share = count(t)[None, :], shares(t)
    mean = cosines @ t.member.T / n
    # Each image is centred by its own class. Images that were not fitted have the weight 0 below.
    centred = cosines - mean @ t.member
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
    """Uses the z-score of the mean word as external part, which includes the correlation between words."""
    difference, variance, _ = mean_word_parts(t)
    return combined(t, internal(t, t.test, of_labels(t)), difference / deviation(variance), weight)


def one_direction(t: Task, weight) -> jax.Array:
    """Uses the z-score of lambda (mean word) - t_c, which also includes the correlation with the label."""
    difference, variance, covariance = mean_word_parts(t)
    m = of_labels(t)
    label_difference = t.test.to_labels - jnp.diagonal(m.mean)[None, :]
    label_variance = jnp.diagonal(m.variance)[None, :]
    total = weight**2 * variance + label_variance - 2 * weight * covariance
    return nearest_class(
        t, (weight * difference - label_difference) / deviation(jnp.maximum(total, 1e-10))
    )


class Whitening(NamedTuple):
    """The matrix S^-1 in the form (I - B^T A B) / floor.

    S is the covariance within classes plus ridge times its mean eigenvalue times the identity.
    """

    floor: Float[jax.Array, ""]
    basis: Float[jax.Array, "rank dim"]
    diagonal: Float[jax.Array, " rank"]

    def apply(self, v: Float[jax.Array, "rows dim"]) -> Float[jax.Array, "rows dim"]:
        """Returns S^-1 v for each row v."""
        return (v - (self.diagonal[None, :] * (v @ self.basis.T)) @ self.basis) / self.floor

    def squared(self, v: Float[jax.Array, "rows dim"]) -> Float[jax.Array, " rows"]:
        """Returns v^T S^-1 v for each row v."""
        return ((v**2).sum(axis=1) - (v @ self.basis.T) ** 2 @ self.diagonal) / self.floor


def whitening(t: Task, ridge) -> Whitening:
    """Computes the whitening of the fitted images. The eigendecomposition does not depend on the ridge."""
    fitted = t.member.sum(axis=0)
    centred = fitted[:, None] * (t.train.embeddings - t.member.T @ class_means(t))
    images = jnp.maximum(fitted.sum(), 1)
    floor = ridge * (centred**2).sum() / images / centred.shape[1] + 1e-9
    # The smaller of the two Gram matrices is decomposed: images x images or dimensions x dimensions.
    if len(centred) <= centred.shape[1]:
        values, vectors = jnp.linalg.eigh(centred @ centred.T)
        basis = vectors.T @ centred
    else:
        values, vectors = jnp.linalg.eigh(centred.T @ centred)
        basis = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    return Whitening(floor, basis, 1 / (jnp.maximum(values, 0) + images * floor))


def class_means(t: Task) -> Float[jax.Array, "classes dim"]:
    """Returns the mean embedding of the fitted images of each class."""
    return t.member @ t.train.embeddings / count(t)[:, None]


def _whitened_internal(t: Task, w: Whitening) -> jax.Array:
    labels = w.apply(t.labels)
    difference = t.test.embeddings @ labels.T - (class_means(t) * labels).sum(axis=1)[None, :]
    return -difference / deviation(w.squared(t.labels))[None, :]


def whitened_label(t: Task, ridge) -> jax.Array:
    """Uses S^-1 t_c for the internal part: the matched filter of a shift along t_c under covariance S."""
    return combined(t, _whitened_internal(t, whitening(t, ridge)), external(t))


def whitened_texts(t: Task, ridge) -> jax.Array:
    """Uses matched filters for both parts. The external part is that of the mean word."""
    w, word = whitening(t, ridge), mean_word(t)
    filtered = w.apply(word)
    to_word = (t.test.embeddings * filtered).sum(axis=1)
    difference = to_word[:, None] - filtered @ class_means(t).T
    ext = difference / deviation((word * filtered).sum(axis=1))[:, None]
    return combined(t, _whitened_internal(t, w), ext)


def whitened_words(t: Task, ridge, weight) -> jax.Array:
    """Uses matched filters for both parts. The external part is the mean over the k nearest words."""
    w = whitening(t, ridge)
    near = t.test.nearest[:, :K]
    means = t.words @ w.apply(class_means(t)).T
    to_words = jnp.einsum("nkd,nd->nk", t.words[near], w.apply(t.test.embeddings))
    z = (to_words[:, :, None] - means[near]) / deviation(w.squared(t.words))[near][:, :, None]
    return combined(t, _whitened_internal(t, w), z.mean(axis=1), weight)
