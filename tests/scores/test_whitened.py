"""Tests of BLISS with matched filters: closed form, limits and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_embeddings

from bliss_jax.scores import fit_moments, whitened_bliss_score

C, D, M, N, K = 5, 24, 150, 40, 7
NORMAL = (0, 2, 3)
MASK = np.isin(np.arange(C), NORMAL)


class Problem:
    """Embeddings with the geometry of CLIP's: images in one cone, texts in another."""

    def __init__(self):
        rng = np.random.default_rng(0)
        images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
        centres = random_embeddings(rng, C, D, around=images)
        self.train_labels = rng.integers(0, C, 200)
        spread = 0.1 * rng.normal(size=(D, D)) / np.sqrt(D)
        around = centres[self.train_labels] + rng.normal(size=(200, D)) @ spread
        self.train = reference.unit(around).astype(np.float32)
        self.x = random_embeddings(rng, N, D, around=images)
        self.labels = random_embeddings(rng, C, D, around=texts)
        self.words = random_embeddings(rng, M, D, around=texts)
        self.moments = fit_moments(self.train, self.train_labels, num_classes=C)

    def score(self, **options):
        options = {"k": K, "weight": 0.7, "normal": MASK, **options}
        return whitened_bliss_score(self.x, self.labels, self.words, self.moments, **options)


@pytest.fixture(scope="module")
def problem():
    return Problem()


def centred_by_class(p, normal=NORMAL):
    """Returns training images minus the mean of their class, and the means, in float64."""
    of_class = [p.train[p.train_labels == c].astype(np.float64) for c in normal]
    means = np.stack([x.mean(axis=0) for x in of_class])
    return np.concatenate([x - m for x, m in zip(of_class, means, strict=True)]), means


def equation(p, covariance, means, normal=NORMAL, k=K, weight=0.7):
    """Computes the score by its equation, one class and one image after the other."""
    inverse = np.linalg.inv(covariance)

    def f(x, t, mean):
        return t @ inverse @ (x - mean) / np.sqrt(t @ inverse @ t)

    scores = []
    for x in p.x.astype(np.float64):
        nearest = np.argsort(-(p.words @ x), kind="stable")[:k]
        word = p.words[nearest].astype(np.float64).mean(axis=0)
        scores.append(
            min(
                -f(x, p.labels[c].astype(np.float64), m) + weight * f(x, word, m)
                for c, m in zip(normal, means, strict=True)
            )
        )
    return np.array(scores)


@pytest.mark.parity
@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("normal", [NORMAL, (1,)])
def test_agrees_with_the_equation(problem, ridge, normal):
    centred, means = centred_by_class(problem, normal)
    covariance = centred.T @ centred / len(centred)
    covariance += ridge * np.trace(covariance) / D * np.eye(D)
    expected = equation(problem, covariance, means, normal)
    got = problem.score(ridge=ridge, normal=np.isin(np.arange(C), normal))
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2 if ridge == 0 else 2e-3)


def test_a_large_ridge_gives_corrected_means_without_variances(problem):
    """The limit is min_c [ -t_c . (x - m_c) + lambda w . (x - m_c) / |w| ] / sqrt(ridge trace / dim)."""
    centred, means = centred_by_class(problem)
    trace = (centred**2).sum() / len(centred)
    ridge = 1e6
    expected = equation(problem, np.eye(D), means)
    got = problem.score(ridge=ridge) * np.sqrt(ridge * trace / D)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_rotation_of_all_embeddings_changes_nothing(problem):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0].astype(np.float32)
    moments = fit_moments(problem.train @ rotation, problem.train_labels, num_classes=C)
    got = whitened_bliss_score(
        problem.x @ rotation, problem.labels @ rotation, problem.words @ rotation, moments,
        K, weight=0.7, normal=MASK, ridge=0.1,
    )  # fmt: skip
    np.testing.assert_allclose(got, problem.score(ridge=0.1), rtol=1e-3, atol=2e-3)


def test_a_filtered_label_has_zero_mean_and_unit_variance_on_the_fitted_images(problem):
    """With one class and no ridge, -f(x, t_c, c) is standardised over the fitted images."""
    own = problem.train[problem.train_labels == 1]
    score = whitened_bliss_score(
        own, problem.labels, problem.words, problem.moments,
        weight=0.0, normal=np.arange(C) == 1, ridge=0.0,
    )  # fmt: skip
    assert abs(float(score.mean())) < 1e-2
    assert abs(float(score.std()) - 1) < 1e-2


def test_no_linear_score_detects_a_shift_along_a_text_better():
    """Among many directions b, shift^T b divided by the deviation of x^T b is largest for b = S^-1 t."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(D, D))
    covariance, text = spread @ spread.T, rng.normal(size=D)
    gain = lambda b: (b @ text) / np.sqrt(np.einsum("...d,de,...e->...", b, covariance, b))
    filtered = np.linalg.solve(covariance, text)
    others = rng.normal(size=(500, D))
    near = filtered * (1 + 0.1 * rng.normal(size=(500, D)))
    assert gain(filtered) > max(gain(others).max(), gain(near).max(), gain(text))
    assert gain(filtered) == pytest.approx(np.sqrt(text @ filtered))


def test_classes_that_are_not_normal_are_ignored(problem):
    keep = np.isin(problem.train_labels, NORMAL)
    moments = fit_moments(
        problem.train[keep], np.searchsorted(NORMAL, problem.train_labels[keep]), num_classes=3
    )
    alone = whitened_bliss_score(
        problem.x, problem.labels[list(NORMAL)], problem.words, moments, K, weight=0.7
    )
    np.testing.assert_allclose(problem.score(), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 149, 1000])
def test_the_chunk_size_does_not_change_the_score(problem, chunk_size):
    np.testing.assert_allclose(
        problem.score(chunk_size=chunk_size), problem.score(), rtol=1e-5, atol=1e-5
    )


def test_vmap_over_masks_ridges_and_weights_agrees_with_single_calls(problem):
    masks = np.stack([MASK, ~MASK, np.arange(C) == 4])
    ridges, weights = jnp.array([0.1, 1.0, 10.0]), jnp.array([0.0, 0.5, 1.0])
    together = jax.jit(jax.vmap(lambda mask, r, w: problem.score(normal=mask, ridge=r, weight=w)))(
        masks, ridges, weights
    )
    for row, mask, ridge, weight in zip(together, masks, ridges, weights, strict=True):
        expected = problem.score(normal=mask, ridge=float(ridge), weight=float(weight))
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "argument",
    [
        "train",
        *(
            pytest.param(a, marks=pytest.mark.slow)
            for a in ("embeddings", "labels", "words", "ridge")
        ),
    ],
)
def test_gradients_agree_with_finite_differences(problem, argument):
    """Gradients are compared with a central difference along a random direction, in float64."""
    with reference.x64():
        to64 = lambda a: jnp.asarray(reference.unit(a))
        arrays = {
            "embeddings": to64(problem.x[:10]),
            "labels": to64(problem.labels),
            "words": to64(problem.words),
            "train": to64(problem.train),
            "ridge": jnp.float64(2.0),
        }

        @jax.jit
        def along(value):
            a = {**arrays, argument: value}
            moments = fit_moments(a["train"], problem.train_labels, num_classes=C)
            return whitened_bliss_score(
                a["embeddings"], a["labels"], a["words"], moments, normal=MASK, ridge=a["ridge"]
            ).sum()

        x = arrays[argument]
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
        gradient = jax.grad(along)(x)
        assert np.isfinite(gradient).all()
        h = 1e-7
        difference = (along(x + h * direction) - along(x - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-4)


def test_one_image_per_class_gives_nan(problem):
    moments = fit_moments(problem.train[:1], np.array([2]), num_classes=C)
    arrays = problem.x, problem.labels, problem.words, moments
    assert np.isnan(whitened_bliss_score(*arrays, normal=np.arange(C) == 2)).all()


def test_a_normal_class_without_images_is_nan_under_tracing_and_an_error_otherwise(problem):
    rows = problem.train_labels != 2
    moments = fit_moments(problem.train[rows], problem.train_labels[rows], num_classes=C)
    arrays = problem.x, problem.labels, problem.words, moments
    assert np.isnan(jax.jit(whitened_bliss_score)(*arrays)).all()
    assert np.isfinite(jax.jit(whitened_bliss_score)(*arrays, normal=np.arange(C) != 2)).all()
    with pytest.raises(ValueError, match=r"no images were fitted of the normal classes \[2\]"):
        whitened_bliss_score(*arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": -1.0}, "ridge: expected a finite number >= 0, got -1"),
        ({"ridge": float("inf")}, "ridge: expected a finite number"),
        ({"weight": float("nan")}, "weight: expected a finite number, got nan"),
        ({"k": 151}, r"k: expected an integer in 1..150 \(the texts of the dictionary\), got 151"),
        ({"chunk_size": 0}, "chunk_size: expected an integer of at least 1, got 0"),
        ({"normal": np.zeros(C, bool)}, "at least one normal class, got none"),
        ({"normal": np.ones(C + 1, bool)}, r"normal: expected a bool \[5\] array"),
    ],
)
def test_wrong_arguments_are_refused(problem, change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        problem.score(**change)


def test_embeddings_that_do_not_fit_are_refused(problem, unchecked):
    p = problem
    with pytest.raises(ValueError, match="one row for each of the 5 fitted classes, got 3"):
        whitened_bliss_score(p.x, p.labels[:3], p.words, p.moments)
    with pytest.raises(ValueError, match="dictionary_embeddings: expected rows of unit norm"):
        whitened_bliss_score(p.x, p.labels, 2 * p.words, p.moments)
    narrow = reference.unit(p.x[:, :7]).astype(np.float32)
    with pytest.raises(ValueError, match=r"expected embeddings of one dimension, got embeddings"):
        whitened_bliss_score(narrow, p.labels, p.words, p.moments)
    scaled = fit_moments(1.1 * p.train, p.train_labels, num_classes=C)
    with pytest.raises(ValueError, match=r"have a mean squared norm of 1\.21"):
        whitened_bliss_score(p.x, p.labels, p.words, scaled)
