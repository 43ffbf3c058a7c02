"""Building blocks of the variants of BLISS: a split with one fit, its moments, and the parts of the score.

A `Task` is one split with one fit: the cosines of the images to score, the cosines of the normal training
images, and a mask of those that are fitted. The classes are the normal classes of the split, padded so that
all splits of a protocol have the same shapes. `n0` is the shrinkage of every variance; 0 gives the paper's
score. Unlike the library, this study keeps all cosines in memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

K, WEIGHT = 10, 0.5
"""The paper's k and lambda."""
NEAREST = 100
"""Number of nearest words of each image that are available to the variants."""
SIZES = (1, 2, 5, 10, 20, 50, 100)
"""Values of k for which external scores are computed."""
PRIOR_IMAGES = 5.0
"""Weight of the mean over the dictionary in a pooled variance, as in the library."""


class Images(NamedTuple):
    """Images and their cosines to a split's normal labels and to the dictionary."""

    embeddings: Float[jax.Array, "images dim"]
    to_labels: Float[jax.Array, "images classes"]
    to_words: Float[jax.Array, "images words"]
    nearest: Int[jax.Array, "images nearest"]
    """Words in descending order of the cosine."""


class Task(NamedTuple):
    """One split with one fit."""

    test: Images
    train: Images
    """Training images of the normal classes, fitted or not."""
    member: Float[jax.Array, "classes train"]
    """1 if the training image belongs to the class and is fitted, 0 otherwise."""
    normal: Bool[jax.Array, " classes"]
    """Whether the class is a normal class and not padding."""
    labels: Float[jax.Array, "classes dim"]
    words: Float[jax.Array, "words dim"]
    n0: Float[jax.Array, ""]


class Moments(NamedTuple):
    """Moments of the cosines to some texts for each class, with shrunk variances."""

    mean: Float[jax.Array, "classes texts"]
    variance: Float[jax.Array, "classes texts"]
    pooled: Float[jax.Array, " texts"]
    """Variance within classes, pooled over all classes."""


def count(t: Task) -> Float[jax.Array, " classes"]:
    """Returns the number of fitted images of each class (1 for padding, which no score uses)."""
    return jnp.maximum(t.member.sum(axis=1), 1)


def shares(t: Task) -> Float[jax.Array, " classes"]:
    """Returns the share of each class in the fitted images."""
    return t.member.sum(axis=1) / jnp.maximum(t.member.sum(), 1)


def raw_moments(
    t: Task, cosines: Float[jax.Array, "train texts"]
) -> tuple[Float[jax.Array, "classes texts"], Float[jax.Array, "classes texts"]]:
    """Computes the mean and variance (ddof 0) of the cosines of each class to each text."""
    centre = (t.member.sum(axis=0) @ cosines) / jnp.maximum(t.member.sum(), 1)
    centred = cosines - centre[None, :]
    mean = t.member @ centred / count(t)[:, None]
    variance = t.member @ centred**2 / count(t)[:, None] - mean**2
    return mean + centre[None, :], jnp.maximum(variance, 0)


def shrink(t: Task, variance: jax.Array, pooled: jax.Array, n0: jax.Array | None = None):
    """Computes (n v + n0 v_pooled) / (n + n0) for variances v [classes, texts]."""
    n0 = t.n0 if n0 is None else n0
    n = count(t)[:, None]
    return (n * variance + n0 * pooled[None, :]) / (n + n0)


def moments(
    t: Task, cosines: Float[jax.Array, "train texts"], *, prior: float = 0.0, n0=None
) -> Moments:
    """Computes moments with shrunk variances.

    Args:
        t: Split with its fit.
        cosines: Cosines of the training images to the texts.
        prior: Weight, in images, of the mean over the texts in the pooled variance.
        n0: Shrinkage. None uses that of the task.
    """
    mean, variance = raw_moments(t, cosines)
    pooled, images = shares(t) @ variance, t.member.sum()
    pooled = (images * pooled + prior * pooled.mean()) / (images + prior)
    return Moments(mean, shrink(t, variance, pooled, n0), pooled)


def of_labels(t: Task, **options) -> Moments:
    """Computes the moments of the cosines to every normal label."""
    return moments(t, t.train.to_labels, **options)


def of_words(t: Task, **options) -> Moments:
    """Computes the moments of the cosines to every word."""
    return moments(t, t.train.to_words, prior=PRIOR_IMAGES, **options)


def deviation(variance: jax.Array) -> jax.Array:
    """Returns the standard deviation plus 1e-8, as in the reference."""
    return jnp.sqrt(variance) + 1e-8


def internal(t: Task, images: Images, m: Moments) -> Float[jax.Array, "images classes"]:
    """Computes the internal class score -(s(x, t_c) - mu_c) / sigma_c."""
    mean, variance = jnp.diagonal(m.mean), jnp.diagonal(m.variance)
    return -(images.to_labels - mean[None, :]) / deviation(variance)[None, :]


def z_nearest(
    images: Images, m: Moments, k: int = NEAREST
) -> Float[jax.Array, "images nearest classes"]:
    """Computes the z-scores of the k nearest words of each image for each class."""
    near = images.nearest[:, :k]
    cosines = jnp.take_along_axis(images.to_words, near, axis=1)
    mean, sigma = m.mean.T[near], deviation(m.variance).T[near]
    return (cosines[:, :, None] - mean) / sigma


def external(t: Task, k: int = K) -> Float[jax.Array, "images classes"]:
    """Computes the external text score: the mean z-score of the k nearest words."""
    return z_nearest(t.test, of_words(t), k).mean(axis=1)


def of_sizes(z: Float[jax.Array, "images nearest classes"]) -> jax.Array:
    """Computes the means of the first k entries of axis 1 for all k in SIZES: [images, sizes, classes]."""
    sizes = jnp.array(SIZES, jnp.float32)[:, None]
    share = jnp.where(jnp.arange(z.shape[1], dtype=jnp.float32)[None, :] < sizes, 1 / sizes, 0)
    return jnp.einsum("nkc,sk->nsc", z, share)


def of_size(means: Float[jax.Array, "images sizes classes"], k) -> jax.Array:
    """Returns the mean of the first k entries. k must be one of SIZES and may be traced."""
    return jnp.take(means, jnp.argmax(jnp.array(SIZES, jnp.float32) == k), axis=1)


def nearest_class(t: Task, per_class: Float[jax.Array, "images classes"]) -> jax.Array:
    """Returns the minimum over the normal classes."""
    return jnp.min(jnp.where(t.normal[None, :], per_class, jnp.inf), axis=1)


def combined(t: Task, internal_part, external_part, weight=WEIGHT) -> jax.Array:
    """Computes min_c [internal + lambda external]."""
    return nearest_class(t, internal_part + weight * external_part)
