"""What variants of BLISS are made of: a split under one fit, its moments, and the parts of the score.

A `Task` is one split under one fit: cosines of the images to be scored, cosines of the normal training
images, and which of these were fitted. Classes are the split's normal classes alone, padded so that all
splits of a protocol have the same shapes. A task's `n0` is the shrinkage that every variance goes through, 0
for the paper's score. Not streamed: a study of variants keeps all cosines, which the library never does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

K, WEIGHT = 10, 0.5
"""The paper's k and lambda."""
NEAREST = 100
"""How many words of each image, by falling cosine, a variant may look at."""
SIZES = (1, 2, 5, 10, 20, 50, 100)
"""The k for which external scores are at hand."""
PRIOR_IMAGES = 5.0
"""As in the library: weight of the mean over the dictionary in a pooled variance."""


class Images(NamedTuple):
    """Images and their cosines to a split's normal labels and to the dictionary."""

    embeddings: Float[jax.Array, "images dim"]
    to_labels: Float[jax.Array, "images classes"]
    to_words: Float[jax.Array, "images words"]
    nearest: Int[jax.Array, "images nearest"]
    """The words of largest cosine, falling."""


class Task(NamedTuple):
    """One split under one fit."""

    test: Images
    train: Images
    """Of the split's normal classes; which of them were fitted says `member`."""
    member: Float[jax.Array, "classes train"]
    """1 where a training image of this class was fitted, else 0."""
    normal: Bool[jax.Array, " classes"]
    """False for padding."""
    labels: Float[jax.Array, "classes dim"]
    words: Float[jax.Array, "words dim"]
    n0: Float[jax.Array, ""]


class Moments(NamedTuple):
    """Of the cosines to some texts, per class; variances shrunk."""

    mean: Float[jax.Array, "classes texts"]
    variance: Float[jax.Array, "classes texts"]
    pooled: Float[jax.Array, " texts"]
    """Variance within classes, over all of them."""


def count(t: Task) -> Float[jax.Array, " classes"]:
    """Fitted images per class (1 for padding, which no score looks at)."""
    return jnp.maximum(t.member.sum(axis=1), 1)


def shares(t: Task) -> Float[jax.Array, " classes"]:
    """Each class's share of the fitted images."""
    return t.member.sum(axis=1) / jnp.maximum(t.member.sum(), 1)


def raw_moments(
    t: Task, cosines: Float[jax.Array, "train texts"]
) -> tuple[Float[jax.Array, "classes texts"], Float[jax.Array, "classes texts"]]:
    """Mean and variance (ddof 0) of each class's cosines to each text."""
    centre = (t.member.sum(axis=0) @ cosines) / jnp.maximum(t.member.sum(), 1)
    centred = cosines - centre[None, :]
    mean = t.member @ centred / count(t)[:, None]
    variance = t.member @ centred**2 / count(t)[:, None] - mean**2
    return mean + centre[None, :], jnp.maximum(variance, 0)


def shrink(t: Task, variance: jax.Array, pooled: jax.Array, n0: jax.Array | None = None):
    """(n v + n0 v_pooled) / (n + n0) for variances [classes, texts]."""
    n0 = t.n0 if n0 is None else n0
    n = count(t)[:, None]
    return (n * variance + n0 * pooled[None, :]) / (n + n0)


def moments(
    t: Task, cosines: Float[jax.Array, "train texts"], *, prior: float = 0.0, n0=None
) -> Moments:
    """Shrunk moments; `prior` images stand for the mean over the texts in the pooled variance."""
    mean, variance = raw_moments(t, cosines)
    pooled, images = shares(t) @ variance, t.member.sum()
    pooled = (images * pooled + prior * pooled.mean()) / (images + prior)
    return Moments(mean, shrink(t, variance, pooled, n0), pooled)


def of_labels(t: Task, **options) -> Moments:
    """Moments of the cosines to every normal label."""
    return moments(t, t.train.to_labels, **options)


def of_words(t: Task, **options) -> Moments:
    """Moments of the cosines to every word."""
    return moments(t, t.train.to_words, prior=PRIOR_IMAGES, **options)


def deviation(variance: jax.Array) -> jax.Array:
    """Standard deviation as in the reference."""
    return jnp.sqrt(variance) + 1e-8


def internal(t: Task, images: Images, m: Moments) -> Float[jax.Array, "images classes"]:
    """-(s(x, t_c) - mu_c) / sigma_c."""
    mean, variance = jnp.diagonal(m.mean), jnp.diagonal(m.variance)
    return -(images.to_labels - mean[None, :]) / deviation(variance)[None, :]


def z_nearest(
    images: Images, m: Moments, k: int = NEAREST
) -> Float[jax.Array, "images nearest classes"]:
    """z-scores of each image's k nearest words, for each class."""
    near = images.nearest[:, :k]
    cosines = jnp.take_along_axis(images.to_words, near, axis=1)
    mean, sigma = m.mean.T[near], deviation(m.variance).T[near]
    return (cosines[:, :, None] - mean) / sigma


def external(t: Task, k: int = K) -> Float[jax.Array, "images classes"]:
    """Mean z-score of the k nearest words."""
    return z_nearest(t.test, of_words(t), k).mean(axis=1)


def of_sizes(z: Float[jax.Array, "images nearest classes"]) -> jax.Array:
    """Means of the first k along axis 1 for all k of SIZES [images, sizes, classes]."""
    sizes = jnp.array(SIZES, jnp.float32)[:, None]
    share = jnp.where(jnp.arange(z.shape[1], dtype=jnp.float32)[None, :] < sizes, 1 / sizes, 0)
    return jnp.einsum("nkc,sk->nsc", z, share)


def of_size(means: Float[jax.Array, "images sizes classes"], k) -> jax.Array:
    """The mean of the first k, one of SIZES; k may be traced."""
    return jnp.take(means, jnp.argmax(jnp.array(SIZES, jnp.float32) == k), axis=1)


def nearest_class(t: Task, per_class: Float[jax.Array, "images classes"]) -> jax.Array:
    """The minimum over the normal classes."""
    return jnp.min(jnp.where(t.normal[None, :], per_class, jnp.inf), axis=1)


def combined(t: Task, internal_part, external_part, weight=WEIGHT) -> jax.Array:
    """min_c [internal + lambda external]."""
    return nearest_class(t, internal_part + weight * external_part)
