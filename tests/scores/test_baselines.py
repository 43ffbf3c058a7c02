"""Tests of each baseline against its equation in NumPy or scikit-learn, and of their common behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_embeddings, unit
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from bliss_jax import scores
from bliss_jax.scores import (
    clip_ad_score,
    fit_moments,
    knn_score,
    knn_score_from_nearest,
    mahalanobis_score,
    nearest_of_class,
    negative_labels,
    neglabel_score,
    rmd_score,
    vim_score,
    z_energy_score,
)

C, D, N = 5, 12, 60
NORMAL = np.array([0, 1, 4])
MASK = np.isin(np.arange(C), NORMAL)
RNG = np.random.default_rng(0)
CONE = random_embeddings(RNG, D)
X = random_embeddings(RNG, N, D, around=CONE)
LABELS = random_embeddings(RNG, C, D)
TRAIN, TRAIN_LABELS = random_embeddings(RNG, 200, D, around=CONE), RNG.integers(0, C, 200)
LEXICON = random_embeddings(RNG, 150, D)
SOMETHING = random_embeddings(RNG, D)
MOMENTS = fit_moments(TRAIN, TRAIN_LABELS, num_classes=C)
KEY = jax.random.key(3)

S = X.astype(np.float64) @ LABELS[NORMAL].astype(np.float64).T

CLOSED_FORMS = {
    "max_cosine": -S.max(axis=1),
    "max_logit": -100 * S.max(axis=1),
    "msp": -softmax(100 * S, axis=1).max(axis=1),
    "mcm": -softmax(S, axis=1).max(axis=1),
    "energy": -0.01 * logsumexp(100 * S, axis=1),
    "entropy": entropy(softmax(100 * S, axis=1), axis=1),
    "softmax_variance": -softmax(S, axis=1).var(axis=1),
}

EVERY_SCORE = {
    **{
        name: lambda x, mask, f=getattr(scores, f"{name}_score"): f(x, LABELS, normal=mask)
        for name in CLOSED_FORMS
    },
    "clip_ad": lambda x, mask: clip_ad_score(x, LABELS, SOMETHING, normal=mask),
    "mahalanobis": lambda x, mask: mahalanobis_score(x, MOMENTS, normal=mask),
    "knn": lambda x, mask: knn_score_from_nearest(
        nearest_of_class(x, TRAIN, TRAIN_LABELS, 5, num_classes=C), normal=mask
    ),
    "neglabel": lambda x, mask: neglabel_score(x, LABELS, LEXICON, KEY, normal=mask),
    "vim": lambda x, mask: vim_score(x, LABELS, TRAIN, normal=mask, where=mask[TRAIN_LABELS]),
    "neglabel_images": lambda x, mask: neglabel_score(
        x, LABELS, LEXICON, KEY, moments=MOMENTS, normal=mask
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_baseline_agrees_with_its_equation(name):
    np.testing.assert_allclose(EVERY_SCORE[name](X, MASK), CLOSED_FORMS[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parity
def test_clip_ad_is_the_probability_of_something():
    logits = 100 * np.concatenate([X.astype(np.float64) @ SOMETHING[:, None], S], axis=1)
    np.testing.assert_allclose(
        clip_ad_score(X, LABELS, SOMETHING, normal=MASK), softmax(logits, axis=1)[:, 0], rtol=2e-4
    )


@pytest.mark.parity
def test_mahalanobis_agrees_with_scikit_learn():
    of_normal = np.isin(TRAIN_LABELS, NORMAL)
    x, y = TRAIN[of_normal].astype(np.float64), TRAIN_LABELS[of_normal]
    means = {c: x[y == c].mean(axis=0) for c in NORMAL}
    centred = np.concatenate([x[y == c] - means[c] for c in NORMAL])
    shared = EmpiricalCovariance(assume_centered=True).fit(centred)
    expected = np.min([shared.mahalanobis(X - means[c]) for c in NORMAL], axis=0) ** 0.5
    np.testing.assert_allclose(
        mahalanobis_score(X, MOMENTS, normal=MASK, ridge=0.0), expected, rtol=1e-4
    )


def test_mahalanobis_is_finite_with_fewer_images_than_dimensions():
    few = fit_moments(TRAIN[:4], np.zeros(4, int), num_classes=1)
    assert np.isfinite(mahalanobis_score(X, few)).all()


def test_mahalanobis_of_a_class_mean_is_zero_with_a_finite_gradient():
    moments = fit_moments(TRAIN[:1], np.zeros(1, int), num_classes=1)
    wide = fit_moments(TRAIN, np.zeros(200, int), num_classes=1)
    moments = wide._replace(mean=moments.mean)
    value, gradient = jax.value_and_grad(lambda x: mahalanobis_score(x, moments).sum())(TRAIN[:1])
    assert value == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parity
def test_rmd_is_the_difference_of_two_squared_distances():
    of_normal = np.isin(TRAIN_LABELS, NORMAL)
    x, y = TRAIN[of_normal].astype(np.float64), TRAIN_LABELS[of_normal]
    means = {c: x[y == c].mean(axis=0) for c in NORMAL}
    centred = np.concatenate([x[y == c] - means[c] for c in NORMAL])
    shared = EmpiricalCovariance(assume_centered=True).fit(centred)
    to_class = np.min([shared.mahalanobis(X - means[c]) for c in NORMAL], axis=0)
    expected = to_class - EmpiricalCovariance().fit(x).mahalanobis(X)
    got = rmd_score(X, MOMENTS, normal=MASK, ridge=0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)


def test_the_relative_distance_of_a_single_class_is_zero():
    got = rmd_score(X, MOMENTS, normal=np.arange(C) == 1)
    np.testing.assert_allclose(got, 0, atol=2e-3)


@pytest.mark.parity
@pytest.mark.parametrize(("principal", "images"), [(None, 200), (3, 200), (None, 6)])
def test_vim_agrees_with_its_equation(principal, images):
    """With 6 images of 12 dimensions, the principal subspace has 3 dimensions, half as many as images."""
    where = np.isin(TRAIN_LABELS, NORMAL) & (np.cumsum(np.isin(TRAIN_LABELS, NORMAL)) <= images)
    y = TRAIN[where].astype(np.float64)
    _, vectors = np.linalg.eigh(y.T @ y)
    kept = D - min(principal or D // 2, len(y) // 2)
    residual = lambda x: np.linalg.norm(x @ vectors[:, :kept], axis=1)
    logits = lambda x: 100 * x @ LABELS[NORMAL].astype(np.float64).T
    alpha = logits(y).max(axis=1).sum() / residual(y).sum()
    expected = alpha * residual(X.astype(np.float64)) - logsumexp(logits(X), axis=1)
    got = vim_score(X, LABELS, TRAIN, normal=MASK, where=where, principal=principal)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_z_energy_agrees_with_its_equation(temperature):
    z = []
    for c in NORMAL:
        s = TRAIN[c == TRAIN_LABELS].astype(np.float64) @ LABELS[c]
        z.append((X.astype(np.float64) @ LABELS[c] - s.mean()) / s.std())
    expected = -temperature * logsumexp(np.array(z) / temperature, axis=0)
    got = z_energy_score(X, LABELS, MOMENTS, normal=MASK, temperature=temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("chunk_size", [7, 64, 1000])
def test_knn_agrees_with_scikit_learn(chunk_size):
    of_normal = TRAIN[np.isin(TRAIN_LABELS, NORMAL)]
    distance, _ = NearestNeighbors(n_neighbors=6, metric="cosine").fit(of_normal).kneighbors(X)
    expected = (distance - 1).mean(axis=1)
    np.testing.assert_allclose(
        knn_score(X, of_normal, 6, chunk_size=chunk_size), expected, atol=1e-6
    )
    nearest = nearest_of_class(X, TRAIN, TRAIN_LABELS, 6, num_classes=C, block_size=chunk_size)
    np.testing.assert_allclose(knn_score_from_nearest(nearest, normal=MASK), expected, atol=1e-6)
    kth = distance[:, -1] - 1
    np.testing.assert_allclose(knn_score(X, of_normal, 6, kth=True), kth, atol=1e-6)
    np.testing.assert_allclose(
        knn_score_from_nearest(nearest, normal=MASK, kth=True), kth, atol=1e-6
    )


def test_knn_is_correct_if_classes_have_fewer_than_k_images():
    rows = np.concatenate([np.flatnonzero(c == TRAIN_LABELS)[:2] for c in NORMAL])
    nearest = nearest_of_class(X, TRAIN[rows], TRAIN_LABELS[rows], 5, num_classes=C)
    assert np.isneginf(nearest[:, :, 2:]).all()
    np.testing.assert_allclose(
        knn_score_from_nearest(nearest, normal=MASK), knn_score(X, TRAIN[rows], 5), atol=1e-6
    )


def neglabel_by_hand(groups, key, anchors=LABELS, parts=(150,)):
    """Computes NegMining of each part and grouping in float64 with NumPy."""
    lexicon = unit(LEXICON)
    quantile = np.quantile(lexicon @ unit(anchors[NORMAL]).T, 0.95, axis=1)
    chosen, first = [], 0
    for size in parts:
        order = np.argsort(quantile[first : first + size], kind="stable")
        chosen.extend(first + order[: int(0.15 * size)])
        first += size
    chosen = np.array(chosen)
    dealt = np.asarray(jax.random.permutation(key, jnp.asarray(chosen)))
    positive = np.exp(100 * S).sum(axis=1)
    per_group = []
    for g in range(groups):
        negative = np.exp(100 * X.astype(np.float64) @ lexicon[dealt[g::groups]].T).sum(axis=1)
        per_group.append(1 - positive / (positive + negative))
    return chosen, np.mean(per_group, axis=0)


@pytest.mark.parity
@pytest.mark.parametrize("groups", [1, 4, 22])
def test_neglabel_agrees_with_its_equation(groups):
    chosen, expected = neglabel_by_hand(groups, KEY)
    np.testing.assert_array_equal(negative_labels(LABELS, LEXICON, normal=MASK), chosen)
    got = neglabel_score(X, LABELS, LEXICON, KEY, normal=MASK, groups=groups)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parity
def test_the_share_of_negatives_is_taken_of_each_part_of_the_lexicon():
    parts = (30, 120)
    chosen, expected = neglabel_by_hand(4, KEY, parts=parts)
    found = negative_labels(LABELS, LEXICON, normal=MASK, parts=parts)
    np.testing.assert_array_equal(found, chosen)
    assert (found < 30).sum() == 4
    got = neglabel_score(X, LABELS, LEXICON, KEY, normal=MASK, groups=4, parts=parts)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parity
def test_with_moments_the_negatives_are_chosen_by_the_class_means():
    means = np.stack([TRAIN[c == TRAIN_LABELS].astype(np.float64).mean(axis=0) for c in range(C)])
    chosen, expected = neglabel_by_hand(4, KEY, anchors=means)
    assert set(chosen) != set(np.asarray(negative_labels(LABELS, LEXICON, normal=MASK)))
    got = neglabel_score(X, LABELS, LEXICON, KEY, moments=MOMENTS, normal=MASK, groups=4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_neglabel_uses_every_negative_if_groups_do_not_divide_them():
    """Replacing any of the 22 negatives in 4 groups changes the score."""
    full = neglabel_score(X, LABELS, LEXICON, KEY, normal=MASK, groups=4)
    chosen = np.asarray(negative_labels(LABELS, LEXICON, normal=MASK))
    for word in chosen:
        without = LEXICON.copy()
        without[word] = -CONE  # it stays a negative, or another word replaces it
        assert not np.array_equal(
            neglabel_score(X, LABELS, without, KEY, normal=MASK, groups=4), full
        )


@pytest.mark.parametrize("name", EVERY_SCORE)
def test_vmap_and_jit_agree_with_eager_calls_and_gradients_are_finite(name):
    score = EVERY_SCORE[name]
    masks = np.stack([MASK, ~MASK, np.ones(C, bool)])
    together = jax.jit(jax.vmap(score, in_axes=(None, 0)))(X, masks)
    for mask, row in zip(masks, together, strict=True):
        np.testing.assert_allclose(row, score(X, mask), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: score(x, MASK).sum())(jnp.asarray(X))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("name", [*CLOSED_FORMS, "clip_ad", "neglabel"])
def test_labels_of_classes_that_are_not_normal_are_ignored(name):
    changed = np.where(MASK[:, None], LABELS, -LABELS)
    arguments = {"clip_ad": (SOMETHING,), "neglabel": (LEXICON, KEY)}.get(name, ())
    score = getattr(scores, f"{name}_score")
    np.testing.assert_array_equal(
        score(X, LABELS, *arguments, normal=MASK), score(X, changed, *arguments, normal=MASK)
    )


@pytest.mark.parametrize("name", ["msp", "mcm", "entropy", "softmax_variance"])
def test_softmax_scores_are_constant_with_one_normal_class(name):
    assert np.ptp(EVERY_SCORE[name](X, np.arange(C) == 1)) == 0


@pytest.mark.parametrize("name", EVERY_SCORE)
def test_half_precision_inputs_give_float32_scores(name):
    """The scores equal those of the same values in float32."""
    half = jnp.asarray(X).astype("bfloat16")
    got = EVERY_SCORE[name](half, MASK)
    assert got.dtype == jnp.float32
    # Under jit norms are not checked; rounding has changed them.
    expected = jax.jit(lambda x: EVERY_SCORE[name](x, MASK))(half.astype("float32"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: scores.msp_score(X, LABELS, temperature=0.0),
            "temperature: expected a finite number > 0, got 0",
        ),
        (lambda: scores.msp_score(X[:, :3], LABELS), "expected embeddings of one dimension"),
        (lambda: scores.msp_score(2 * X, LABELS), "embeddings: expected rows of unit norm"),
        (lambda: scores.msp_score(X, LABELS, temperature=MASK), "temperature: expected one number"),
        (
            lambda: scores.msp_score(X, LABELS, normal=np.zeros(C, bool)),
            "at least one normal class",
        ),
        (
            lambda: scores.energy_score(X, LABELS[:, :, None]),
            "label_embeddings: expected a floating",
        ),
        (lambda: clip_ad_score(X, LABELS, SOMETHING[None]), r"expected one \[dim\] vector"),
        (lambda: mahalanobis_score(X, MOMENTS, ridge=-1.0), "ridge: expected a finite number >= 0"),
        (
            lambda: vim_score(X, LABELS, TRAIN, principal=D),
            r"principal: expected an integer in 1\.\.11",
        ),
        (
            lambda: vim_score(X, LABELS, TRAIN, where=np.zeros(200, bool)),
            "expected at least one image that counts",
        ),
        (
            lambda: knn_score(X, TRAIN, 201),
            r"k: expected an integer in 1..200 \(the normal images\)",
        ),
        (
            lambda: neglabel_score(X, LABELS, LEXICON, KEY, groups=0),
            "groups: expected an integer of at least 1",
        ),
        (
            lambda: negative_labels(LABELS, LEXICON, fraction=0.0),
            r"fraction: expected a Python number in \(0, 1\]",
        ),
        (lambda: negative_labels(LABELS, LEXICON[:3], fraction=0.1), "less than one word"),
        (
            lambda: negative_labels(LABELS, LEXICON, parts=(100, 60)),
            r"parts: expected sizes that add up to 150 words, got \(100, 60\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
