"""Variants of the BLISS score as short pure functions, which `compare.py` compares.

Every variant is `function(task, *setting) -> scores [images]`. A higher score is more anomalous.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from experiments.score_variants.directions import (
    one_direction,
    one_mean_word,
    whitened_label,
    whitened_texts,
    whitened_words,
)
from experiments.score_variants.parts import (
    NEAREST,
    SIZES,
    WEIGHT,
    Images,
    K,
    Moments,
    Task,
    combined,
    count,
    deviation,
    external,
    internal,
    of_labels,
    of_size,
    of_sizes,
    of_words,
    raw_moments,
    shares,
    z_nearest,
)

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Values of lambda that are compared."""


def bliss(t: Task) -> jax.Array:
    """Computes the BLISS score with the shrinkage of the task."""
    return combined(t, internal(t, t.test, of_labels(t)), external(t))


def shrunk(t: Task, n0) -> jax.Array:
    """Uses the shrinkage n0 instead of that of the task."""
    z = z_nearest(t.test, of_words(t, n0=n0), K)
    return combined(t, internal(t, t.test, of_labels(t, n0=n0)), z.mean(axis=1))


def differences(t: Task) -> jax.Array:
    """Subtracts the means but divides by no deviation."""
    label_mean, word_mean = of_labels(t).mean, of_words(t).mean
    near = t.test.nearest[:, :K]
    cosines = jnp.take_along_axis(t.test.to_words, near, axis=1)
    ext = (cosines[:, :, None] - word_mean.T[near]).mean(axis=1)
    return combined(t, -(t.test.to_labels - jnp.diagonal(label_mean)[None, :]), ext)


def k_and_lambda(t: Task, k, weight) -> jax.Array:
    """Uses another k and another lambda."""
    ext = of_size(of_sizes(z_nearest(t.test, of_words(t))), k)
    return combined(t, internal(t, t.test, of_labels(t)), ext, weight)


def own_class_left_out(t: Task) -> tuple[jax.Array, jax.Array]:
    """Computes internal [train, C] and external [train, sizes, C] scores, each image left out of its class.

    Leaving image i out of its class has a closed form: its deviation from the mean is multiplied by
    n / (n - 1), and the variance v becomes n / (n - 1) (v - deviation^2 / (n - 1)).
    """
    n, member = count(t), t.member.T > 0

    def left_out(difference, variance, pooled, own):
        less = jnp.maximum(n - 1, 1)
        n_, less_ = (jnp.broadcast_to(a, difference.shape) for a in (n, less))
        without = jnp.maximum(n_ / less_ * (variance - difference**2 / less_), 0)
        without = (less_ * without + t.n0 * pooled) / (less_ + t.n0)
        kept = (n_ * variance + t.n0 * pooled) / (n_ + t.n0)
        floor = 1e-2 * jnp.maximum(pooled, 1e-12)  # The images that remain may have equal cosines.
        left = difference * n_ / less_ / deviation(jnp.maximum(without, floor))
        return jnp.where(own, left, difference / deviation(kept))

    label_mean, label_variance = raw_moments(t, t.train.to_labels)
    label_pooled = of_labels(t).pooled
    difference = t.train.to_labels - jnp.diagonal(label_mean)[None, :]
    ones = jnp.ones_like(difference)
    inside = left_out(
        difference,
        ones * jnp.diagonal(label_variance)[None, :],
        ones * label_pooled[None, :],
        member,
    )
    word_mean, word_variance = raw_moments(t, t.train.to_words)
    near = t.train.nearest
    cosines = jnp.take_along_axis(t.train.to_words, near, axis=1)
    difference = cosines[:, :, None] - word_mean.T[near]
    pooled = jnp.broadcast_to(of_words(t).pooled[near][:, :, None], difference.shape)
    z = left_out(difference, word_variance.T[near], pooled, member[:, None, :])
    return -inside, of_sizes(z)


def own_class_spread(t: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the variances of both parts over the normal images in their own class, and the covariance."""
    inside, outside = own_class_left_out(t)
    outside = outside[:, SIZES.index(K)]
    member = t.member.T
    images = jnp.maximum(member.sum(), 1)

    def centred(part):
        mean = (member * part).sum(axis=0) / count(t)
        return member * (part - mean[None, :])

    a, b = centred(inside), centred(outside)
    return (a * a).sum() / images, (b * b).sum() / images, (a * b).sum() / images


def lambda_by_variance(t: Task) -> jax.Array:
    """Uses lambda = deviation of internal / deviation of external on the normal training images."""
    inside, outside, _ = own_class_spread(t)
    weight = jnp.sqrt(inside / jnp.maximum(outside, 1e-6))
    return k_and_lambda(t, K, jnp.clip(weight, 0.0, 4.0))


def lambda_by_fisher(t: Task) -> jax.Array:
    """Uses lambda = (v_I - cov) / (v_E - cov): Fisher's direction if anomalies raise both parts equally."""
    inside, outside, both = own_class_spread(t)
    weight = (inside - both) / jnp.maximum(outside - both, 1e-6)
    return k_and_lambda(t, K, jnp.clip(weight, 0.0, 4.0))


def area(scores, is_anomaly, is_normal) -> jax.Array:
    """Computes the AUROC over the rows that are normal or anomalous."""
    normals = jnp.sort(jnp.where(is_normal, scores, jnp.inf))
    below = jnp.searchsorted(normals, scores, side="left")
    upto = jnp.minimum(jnp.searchsorted(normals, scores, side="right"), is_normal.sum())
    won = jnp.where(is_anomaly, below + upto, 0).sum().astype(scores.dtype)
    pairs = is_anomaly.sum().astype(scores.dtype) * is_normal.sum().astype(scores.dtype)
    return won / (2 * jnp.maximum(pairs, 1))


def chosen_by_pseudo_anomalies(t: Task) -> jax.Array:
    """Uses the k and lambda with the largest AUROC when each normal class in turn is an anomaly.

    With a single normal class, no class can be an anomaly, so the paper's values are used.
    """
    inside, outside = own_class_left_out(t)
    grid = jnp.array(list(product((2.0, 5.0, 10.0, 20.0, 50.0), (0.25, 0.5, 1.0, 2.0))))
    fitted = t.member.sum(axis=0) > 0

    def area_of(k, weight):
        per_class = inside + weight * of_size(outside, k)

        def without(c):
            others = t.normal & (jnp.arange(len(t.normal)) != c)
            score = jnp.min(jnp.where(others[None, :], per_class, jnp.inf), axis=1)
            own = t.member[c] > 0
            return area(score, own, fitted & ~own)

        areas = lax.map(without, jnp.arange(len(t.normal)))
        return jnp.mean(areas, where=t.normal)

    areas = jax.vmap(area_of)(grid[:, 0], grid[:, 1])
    best = grid[jnp.argmax(areas)]
    k, weight = jnp.where(t.normal.sum() > 1, best, jnp.array([float(K), WEIGHT]))
    return k_and_lambda(t, k, weight)


def weighted_words(t: Task, power) -> jax.Array:
    """Weights the z-scores by sigma^power. A power of 1 gives (sum of differences) / (sum of deviations)."""
    m = of_words(t)
    weight = deviation(m.variance).T[t.test.nearest[:, :K]] ** power
    ext = (weight * z_nearest(t.test, m, K)).sum(axis=1) / weight.sum(axis=1)
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def top_k_by_z(t: Task, k) -> jax.Array:
    """Uses the k words with the largest z-scores for each class."""
    m = of_words(t)

    def of_class(mean, variance):
        z = (t.test.to_words - mean[None, :]) / deviation(variance)[None, :]
        top = lax.top_k(z, 20)[0]
        return jnp.where(jnp.arange(20, dtype=top.dtype)[None, :] < k, top, 0).sum(axis=1) / k

    ext = lax.map(lambda c: of_class(*c), (m.mean, m.variance)).T
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def top_k_by_z_once(t: Task) -> jax.Array:
    """Uses the k words with the largest z-scores, computed over all normal images."""
    m, share = of_words(t), shares(t)
    mean = share @ m.mean
    total = m.pooled + share @ (m.mean - mean[None, :]) ** 2
    z = (t.test.to_words - mean[None, :]) / deviation(total)[None, :]
    images = t.test._replace(nearest=lax.top_k(z, K)[1])
    ext = z_nearest(images, m, K).mean(axis=1)
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def z_among_nearest(t: Task, candidates) -> jax.Array:
    """Uses, for each class, the k words with the largest z-scores among the nearest words."""
    z = z_nearest(t.test, of_words(t))
    z = jnp.where((jnp.arange(NEAREST, dtype=z.dtype) < candidates)[None, :, None], z, -jnp.inf)
    ext = lax.top_k(z.transpose(0, 2, 1), K)[0].mean(axis=2)
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def without_synonyms(t: Task, fraction) -> jax.Array:
    """Removes from the dictionary a share of the words: those nearest to a normal label."""
    closeness = jnp.where(t.normal[None, :], t.words @ t.labels.T, -jnp.inf).max(axis=1)
    kept = closeness <= jnp.quantile(closeness, 1 - fraction)
    kept = kept[t.test.nearest]
    chosen = kept & (jnp.cumsum(kept, axis=1) <= K)
    z = z_nearest(t.test, of_words(t))
    ext = jnp.mean(z, axis=1, where=chosen[:, :, None])
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def positive_words(t: Task) -> jax.Array:
    """Uses the mean of max(z, 0), so that words less similar than usual do not lower the score."""
    ext = jnp.maximum(z_nearest(t.test, of_words(t), K), 0).mean(axis=1)
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def soft_top_k(t: Task, temperature) -> jax.Array:
    """Uses all words with weights softmax(s(x, d) / T)."""
    m = of_words(t)
    share = jax.nn.softmax(t.test.to_words / temperature, axis=1)
    sigma = deviation(m.variance)
    ext = (share * t.test.to_words) @ (1 / sigma).T - share @ (m.mean / sigma).T
    return combined(t, internal(t, t.test, of_labels(t)), ext)


def softmin_class(t: Task, temperature) -> jax.Array:
    """Uses -T log sum_c exp(-score_c / T) instead of the minimum over classes."""
    per_class = internal(t, t.test, of_labels(t)) + WEIGHT * external(t)
    per_class = jnp.where(t.normal[None, :], per_class, jnp.inf)
    return -temperature * jax.nn.logsumexp(-per_class / temperature, axis=1)


def class_of_largest_cosine(t: Task) -> jax.Array:
    """Uses the class of the nearest label instead of the class with the lowest score."""
    per_class = internal(t, t.test, of_labels(t)) + WEIGHT * external(t)
    c = jnp.argmax(jnp.where(t.normal[None, :], t.test.to_labels, -jnp.inf), axis=1)
    return jnp.take_along_axis(per_class, c[:, None], axis=1)[:, 0]


def external_of_all_classes(t: Task) -> jax.Array:
    """Averages the external part over the normal classes, so only the internal part chooses the class."""
    mean = jnp.mean(external(t), axis=1, where=t.normal[None, :])
    return combined(t, internal(t, t.test, of_labels(t)), mean[:, None])


def student_t(t: Task) -> jax.Array:
    """Replaces z by sign(z) sqrt(nu log(1 + z^2 / nu)) with nu = n + n0 - 1.

    With few images, large z are less surprising than under a Gaussian distribution.
    """
    nu = jnp.maximum(count(t) + t.n0 - 1, 1)

    def bounded(z, nu):
        return jnp.sign(z) * jnp.sqrt(nu * jnp.log1p(z**2 / nu))

    ext = bounded(z_nearest(t.test, of_words(t), K), nu[None, None, :]).mean(axis=1)
    return combined(t, bounded(internal(t, t.test, of_labels(t)), nu[None, :]), ext)


def shrunk_mean(t: Task, n1) -> jax.Array:
    """Shrinks the class means toward the mean of all normal images with the weight of n1 images."""

    def drawn(m: Moments) -> Moments:
        n = count(t)[:, None]
        overall = shares(t) @ m.mean
        return m._replace(mean=(n * m.mean + n1 * overall[None, :]) / (n + n1))

    ext = z_nearest(t.test, drawn(of_words(t)), K).mean(axis=1)
    return combined(t, internal(t, t.test, drawn(of_labels(t))), ext)


def centred_texts(t: Task, share) -> jax.Array:
    """Subtracts a share of the dictionary's mean from all texts, to remove the similarity to any text."""

    def centred(images: Images) -> Images:
        common = share * images.to_words.mean(axis=1)
        return images._replace(
            to_labels=images.to_labels - common[:, None], to_words=images.to_words - common[:, None]
        )

    return bliss(t._replace(test=centred(t.test), train=centred(t.train)))


class Variant(NamedTuple):
    """A function and the settings to choose from. The default is a single setting without parameters."""

    function: Callable[..., jax.Array]
    parameters: tuple[str, ...] = ()
    settings: tuple[tuple[float, ...], ...] = ((),)


def _of(function, parameter: str, *values: float) -> Variant:
    return Variant(function, (parameter,), tuple((float(value),) for value in values))


VARIANTS: dict[str, Variant] = {
    "BLISS": Variant(bliss),
    "shrinkage, n0 = 20": _of(shrunk, "n0", 20),
    "shrinkage": _of(shrunk, "n0", 2, 5, 10, 20, 50, 100, 1e6),
    "no variances at all": Variant(differences),
    "k": Variant(k_and_lambda, ("k", "lambda"), tuple((float(k), WEIGHT) for k in SIZES)),
    "lambda": Variant(k_and_lambda, ("k", "lambda"), tuple((float(K), w) for w in WEIGHTS)),
    "k and lambda": Variant(
        k_and_lambda, ("k", "lambda"), tuple((float(k), w) for k, w in product(SIZES, WEIGHTS))
    ),
    "lambda without labels: equal variances": Variant(lambda_by_variance),
    "lambda without labels: Fisher's direction": Variant(lambda_by_fisher),
    "k and lambda without labels: pseudo-anomalies": Variant(chosen_by_pseudo_anomalies),
    "words weighted by sigma^p": _of(weighted_words, "p", -2, -1, 1, 2),
    "top-k by z, per class": _of(top_k_by_z, "k", 5, 10, 20),
    "top-k by z over all normal images": Variant(top_k_by_z_once),
    "top-k by z among the nearest": _of(z_among_nearest, "candidates", 20, 50, 100),
    "without near-synonyms": _of(without_synonyms, "share", 0.002, 0.005, 0.01, 0.02, 0.05),
    "positive z alone": Variant(positive_words),
    "soft top-k": _of(soft_top_k, "T", 0.0025, 0.005, 0.01, 0.02, 0.05),
    "softmin over classes": _of(softmin_class, "T", 0.1, 0.25, 0.5, 1, 2),
    "class of the largest cosine": Variant(class_of_largest_cosine),
    "external over all classes": Variant(external_of_all_classes),
    "Student's t for z": Variant(student_t),
    "shrunk class means": _of(shrunk_mean, "n1", 0.5, 1, 2, 5),
    "centred texts": _of(centred_texts, "share", 0.25, 0.5, 0.75, 1),
    "mean word": _of(one_mean_word, "lambda", 0.1, 0.25, 0.5, 1),
    "one direction": _of(one_direction, "lambda", 0.25, 0.5, 1, 2),
    "whitened labels": _of(whitened_label, "ridge", 0.1, 1, 10),
    "whitened texts": _of(whitened_texts, "ridge", 0.1, 1, 10),
    "second look: whitened texts": _of(whitened_texts, "ridge", 3, 10, 30, 100),
    "second look: whitened words": Variant(
        whitened_words,
        ("ridge", "lambda"),
        tuple((r, WEIGHT) for r in (1.0, 3.0, 10.0, 30.0, 100.0)),
    ),
    "second look: whitened words, ridge and lambda": Variant(
        whitened_words,
        ("ridge", "lambda"),
        tuple(product((1.0, 3.0, 10.0, 30.0, 100.0), (0.25, 0.5, 0.75, 1.0))),
    ),
}
"""Variants by name. All others are compared with the first.

The variants named "second look" were added after the results of the other rows on real CLIP embeddings were
known. Their intervals on these embeddings do not account for this.
"""


def score_settings(t: Task, names: tuple[str, ...]) -> Float[jax.Array, "settings images"]:
    """Computes the scores of all settings of these variants, in order."""
    columns = []
    for name in names:
        function, _, settings = VARIANTS[name]
        values = [jnp.array(column) for column in zip(*settings, strict=True)]
        if values:
            columns.append(jax.vmap(lambda *v, f=function: f(t, *v))(*values))
        else:
            columns.append(function(t)[None, :])
    return jnp.concatenate(columns)
