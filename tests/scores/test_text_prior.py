"""Tests of BLISS with class means drawn toward a prior from the labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_embeddings, unit

from bliss_jax.scores import bliss_score, fit_moments, text_prior_bliss_score

C, D, N, M, K = 4, 12, 30, 60, 3
NORMAL = np.array([0, 1, 3])
MASK = np.isin(np.arange(C), NORMAL)
RNG = np.random.default_rng(0)
CONE = random_embeddings(RNG, D)
X = random_embeddings(RNG, N, D, around=CONE)
LABELS, WORDS = random_embeddings(RNG, C, D), random_embeddings(RNG, M, D)
TRAIN, TRAIN_LABELS = random_embeddings(RNG, 22, D, around=CONE), np.arange(22) % C
MOMENTS = fit_moments(TRAIN, TRAIN_LABELS, num_classes=C)
WEIGHT, SHRINKAGE = 0.7, 4.0


def by_hand(prior_images, step):
    """The equations of the score in float64, from the images themselves."""
    x, labels, words, train = (a.astype(np.float64) for a in (X, LABELS, WORDS, TRAIN))
    of_class = {c: train[c == TRAIN_LABELS] for c in NORMAL}
    count = {c: len(v) for c, v in of_class.items()}
    total = sum(count.values())
    centre = np.mean([v.mean(axis=0) for v in of_class.values()], axis=0)

    def shrunk(texts, regularised):
        var = {c: (v @ texts.T).var(axis=0) for c, v in of_class.items()}
        pooled = sum(count[c] * var[c] for c in NORMAL) / total
        if regularised:
            pooled = (total * pooled + 5 * pooled.mean()) / (total + 5)
        return {
            c: (count[c] * var[c] + SHRINKAGE * pooled) / (count[c] + SHRINKAGE) for c in NORMAL
        }

    of_labels, of_words = shrunk(labels, False), shrunk(words, True)
    nearest = np.argsort(-x @ words.T, axis=1, kind="stable")[:, :K]
    scores = []
    for c in NORMAL:
        m = of_class[c].mean(axis=0)
        prior = unit(centre + step * (labels[c] - labels[NORMAL].mean(axis=0)))
        prior = np.linalg.norm(m) * prior
        m = (count[c] * m + prior_images * prior) / (count[c] + prior_images)
        internal = -((x - m) @ labels[c]) / np.sqrt(of_labels[c][c])
        z = (x - m) @ words.T / np.sqrt(of_words[c])
        external = np.take_along_axis(z, nearest, axis=1).mean(axis=1)
        scores.append(internal + WEIGHT * external)
    return np.min(scores, axis=0)


def score(**options):
    options = {"normal": MASK, "weight": WEIGHT, "shrinkage": SHRINKAGE, **options}
    return text_prior_bliss_score(X, LABELS, WORDS, MOMENTS, K, **options)


@pytest.mark.parity
@pytest.mark.parametrize(("prior_images", "step"), [(2.0, 0.3), (0.5, 1.0), (1e4, 0.1)])
def test_the_score_agrees_with_its_equation(prior_images, step):
    got = score(prior_images=prior_images, step=step)
    np.testing.assert_allclose(got, by_hand(prior_images, step), rtol=1e-4, atol=1e-4)


def test_a_prior_of_zero_images_gives_bliss():
    expected = bliss_score(
        X, LABELS, WORDS, MOMENTS, K, normal=MASK, weight=WEIGHT, shrinkage=SHRINKAGE
    )
    np.testing.assert_allclose(score(prior_images=0.0), expected, rtol=1e-6)


def test_one_normal_class_is_its_own_prior():
    alone = np.arange(C) == 1
    expected = score(normal=alone, prior_images=0.0)
    np.testing.assert_allclose(
        score(normal=alone, prior_images=7.0), expected, rtol=1e-4, atol=1e-4
    )


def test_masking_a_class_equals_removing_it():
    moments = jax.tree.map(lambda leaf: leaf[NORMAL], MOMENTS)
    options = {"weight": WEIGHT, "shrinkage": SHRINKAGE}
    alone = text_prior_bliss_score(X, LABELS[NORMAL], WORDS, moments, K, **options)
    np.testing.assert_allclose(score(), alone, rtol=1e-4, atol=1e-5)


def test_the_prior_can_be_mapped_over_and_differentiated():
    weights = jnp.array([0.0, 2.0])
    together = jax.vmap(lambda n0: score(prior_images=n0))(weights)
    for row, n0 in zip(together, weights, strict=True):
        np.testing.assert_allclose(row, score(prior_images=float(n0)), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda n0: score(prior_images=n0).sum())(2.0)
    ahead, behind = (np.asarray(score(prior_images=n0), np.float64).sum() for n0 in (2.05, 1.95))
    assert slope == pytest.approx((ahead - behind) / 0.1, rel=1e-2)


def test_wrong_arguments_are_refused(unchecked):
    with pytest.raises(ValueError, match="prior_images: expected a finite number >= 0, got -1"):
        score(prior_images=-1.0)
    with pytest.raises(ValueError, match="step: expected a finite number, got nan"):
        score(step=float("nan"))
