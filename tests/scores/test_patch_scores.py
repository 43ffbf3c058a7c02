"""Tests of scores of patches, and of the directions that maps of BLISS explain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_embeddings, x64

import bliss_jax as bj

N, P, C, D, M, K = 4, 6, 3, 16, 40, 5
MASK = np.array([True, False, True])


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
    train = random_embeddings(rng, 60, P, D, around=images)
    return {
        "x": random_embeddings(rng, N, D, around=images),
        "patches": random_embeddings(rng, N, P, D, around=images),
        "labels": random_embeddings(rng, C, D, around=texts),
        "words": random_embeddings(rng, M, D, around=texts),
        "train": train,
        "classes": np.arange(60) % C,
        "moments": bj.fit_moments(train[:, 0], np.arange(60) % C, num_classes=C),
    }


def explained(problem, num_texts=K):
    prepared = bj.prepare_bliss(problem["labels"], problem["words"], problem["moments"])
    why = bj.explain_bliss_prepared(
        problem["x"], prepared, K, weight=0.7, normal=MASK, num_texts=num_texts
    )
    return why, prepared


def test_the_direction_of_the_score_is_its_gradient(problem):
    why, prepared = explained(problem)
    found = bj.bliss_directions(why, prepared, K, weight=0.7)

    def total(x):
        return bj.bliss_score_prepared(x, prepared, K, weight=0.7, normal=MASK).sum()

    np.testing.assert_allclose(found.score, jax.grad(total)(problem["x"]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_directions_predict_differences_of_the_parts_in_float64(problem):
    with x64():
        x = {
            name: np.asarray(problem[name], np.float64)
            for name in ("x", "labels", "words", "train")
        }
        unit = {name: a / np.linalg.norm(a, axis=-1, keepdims=True) for name, a in x.items()}
        moments = bj.fit_moments(unit["train"][:, 0], problem["classes"], num_classes=C)
        prepared = bj.prepare_bliss(unit["labels"], unit["words"], moments)
        options = {"weight": 0.7, "normal": MASK, "num_texts": K + 2}
        why = bj.explain_bliss_prepared(unit["x"], prepared, K, **options)
        found = bj.bliss_directions(why, prepared, K, weight=0.7)
        moved = unit["x"] + 1e-7 * np.random.default_rng(1).normal(size=unit["x"].shape)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        other = bj.explain_bliss_prepared(moved, prepared, K, **options)
        assert (other.texts == why.texts).all()
        step = moved - unit["x"]
        for name in ("score", "internal", "external"):
            change = getattr(other, name) - getattr(why, name)
            np.testing.assert_allclose((step * getattr(found, name)).sum(1), change, atol=1e-12)
        words = np.einsum("nd,nwd->nw", step, found.words)
        np.testing.assert_allclose(words, other.z_scores - why.z_scores, atol=1e-12)


def test_the_direction_of_the_external_part_is_the_mean_of_k_words(problem):
    why, prepared = explained(problem, num_texts=K + 3)
    found = jax.jit(bj.bliss_directions, static_argnames="k")(why, prepared, k=K, weight=0.7)
    assert found.words.shape == (N, K + 3, D)
    np.testing.assert_allclose(found.external, found.words[:, :K].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.score, found.internal + 0.7 * found.external, rtol=1e-5)


def test_directions_need_k_texts(problem):
    why, prepared = explained(problem, num_texts=K - 1)
    with pytest.raises(ValueError, match=r"k: expected an integer in 1\.\.4"):
        bj.bliss_directions(why, prepared, K)


def test_moments_of_patches_are_those_of_their_rows_and_merge(problem):
    train, classes = problem["train"], problem["classes"]
    whole = bj.fit_moments(train.reshape(-1, D), np.repeat(classes, P), num_classes=C)
    parts = [
        bj.fit_patch_moments(train[rows], classes[rows], num_classes=C)
        for rows in (slice(20), slice(20, 60))
    ]
    for found, expected in zip(bj.merge_moments(*parts), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (whole.count == 20 * P).all()


def test_dense_bliss_is_bliss_of_each_patch(problem):
    moments = bj.fit_patch_moments(problem["train"], problem["classes"], num_classes=C)
    texts = problem["labels"], problem["words"], moments, K
    found = bj.dense_bliss_score(problem["patches"], *texts, normal=MASK, shrinkage=3.0)
    assert found.shape == (N, P)
    for image, scores in zip(problem["patches"], found, strict=True):
        expected = bj.bliss_score(image, *texts, normal=MASK, shrinkage=3.0)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_gl_mcm_adds_the_best_patch_to_mcm(problem, temperature):
    def largest(x):
        logits = x.astype(np.float64) @ problem["labels"][MASK].T / temperature
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (odds / odds.sum(axis=-1, keepdims=True)).max(axis=-1)

    expected = -(largest(problem["x"]) + 0.5 * largest(problem["patches"]).max(axis=1))
    arrays = problem["x"], problem["patches"], problem["labels"]
    options = {"normal": MASK, "weight": 0.5, "temperature": temperature}
    np.testing.assert_allclose(bj.gl_mcm_score(*arrays, **options), expected, rtol=1e-5)
    jitted = jax.jit(lambda *a: bj.gl_mcm_score(*a, **options))
    np.testing.assert_allclose(jitted(*arrays), expected, rtol=1e-5)


def log_softmax_by_hand(x, patches, labels, gamma, temperature):
    """log p(x) of DPM in float64, image by image."""
    found = []
    for image, own in zip(x.astype(np.float64), patches.astype(np.float64), strict=True):
        local = own @ labels.T
        weights = np.exp(local - local.max(axis=0))
        gathered = ((weights / weights.sum(axis=0)) * local).sum(axis=0)
        logits = (labels @ image + gamma * gathered) / temperature
        found.append(logits - np.log(np.exp(logits).sum()))
    return np.array(found)


@pytest.mark.parity
@pytest.mark.parametrize(("weight", "gamma", "temperature"), [(1.0, 0.1, 1.0), (0.5, 2.0, 0.1)])
def test_dpm_agrees_with_its_equations(problem, weight, gamma, temperature):
    normal = np.flatnonzero(MASK)
    labels = problem["labels"][MASK].astype(np.float64)
    log_p = log_softmax_by_hand(problem["x"], problem["patches"], labels, gamma, temperature)
    own = log_softmax_by_hand(problem["train"][:, 0], problem["train"], labels, gamma, temperature)
    patterns = np.array([np.exp(own[problem["classes"] == c]).mean(axis=0) for c in normal])
    divergence = (np.exp(log_p)[:, None] * (log_p[:, None] - np.log(patterns)[None])).sum(axis=2)
    expected = -np.exp(log_p).max(axis=1) + weight * divergence.min(axis=1)
    options = {"normal": MASK, "patch_weight": gamma, "temperature": temperature}
    fitted = bj.fit_visual_patterns(
        problem["train"][:, 0], problem["train"], problem["labels"], problem["classes"], **options
    )
    np.testing.assert_allclose(fitted[np.ix_(normal, normal)], patterns, rtol=1e-5)
    arrays = problem["x"], problem["patches"], problem["labels"], fitted
    found = bj.dpm_score(*arrays, weight=weight, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    jitted = jax.jit(lambda *a: bj.dpm_score(*a, weight=weight, **options))
    np.testing.assert_allclose(jitted(*arrays), found, rtol=1e-5)
    slope = jax.grad(lambda x: bj.dpm_score(x, *arrays[1:], weight=weight, **options).sum())(
        jnp.asarray(arrays[0])
    )
    assert np.isfinite(slope).all()
    assert bj.dpm_score(*(a[:0] for a in arrays[:2]), *arrays[2:], **options).shape == (0,)


def test_a_class_without_images_has_no_visual_pattern(problem):
    arrays = problem["train"][:, 0], problem["train"], problem["labels"]
    classes = np.where(problem["classes"] == 1, 0, problem["classes"])
    patterns = bj.fit_visual_patterns(*arrays, classes)
    assert np.isnan(patterns[1]).all()
    assert np.isnan(bj.dpm_score(problem["x"], problem["patches"], arrays[2], patterns)).all()
    masked = bj.fit_visual_patterns(*arrays, classes, normal=MASK)
    found = bj.dpm_score(problem["x"], problem["patches"], arrays[2], masked, normal=MASK)
    assert np.isfinite(found).all()


def test_an_image_more_lowers_no_score_of_the_others_and_none_gives_none(problem):
    arrays = problem["x"], problem["patches"], problem["labels"]
    both = bj.gl_mcm_score(*arrays)
    one = bj.gl_mcm_score(arrays[0][:1], arrays[1][:1], arrays[2])
    np.testing.assert_allclose(one, both[:1], rtol=1e-6)
    assert bj.gl_mcm_score(arrays[0][:0], arrays[1][:0], arrays[2]).shape == (0,)


@pytest.mark.usefixtures("unchecked")
def test_patches_of_other_shapes_are_refused(problem):
    with pytest.raises(ValueError, match="patches of 4 images, got \\[3, 6\\]"):
        bj.gl_mcm_score(problem["x"], problem["patches"][:3], problem["labels"])
    patterns = jnp.ones((C, C))
    with pytest.raises(ValueError, match="patches of 4 images, got \\[3, 6\\]"):
        bj.dpm_score(problem["x"], problem["patches"][:3], problem["labels"], patterns)
    with pytest.raises(ValueError, match="patterns: expected a floating \\[3, 3\\] array"):
        bj.dpm_score(problem["x"], problem["patches"], problem["labels"], patterns[:2])
    for wrong in (problem["patches"][0], jnp.zeros((2, 0, D))):
        with pytest.raises(ValueError, match="expected \\[images, patches, dim\\]"):
            bj.fit_patch_moments(wrong, np.zeros(2, int), num_classes=1)
