"""Tests of explanations: the parts add up to the score, and the texts are those from which it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_embeddings

from bliss_jax.scores import (
    bliss_score,
    bliss_score_prepared,
    explain_bliss,
    explain_bliss_prepared,
    external_text_score,
    fit_moments,
    internal_class_score,
    prepare_bliss,
    top_k_similar,
)

C, D, M, N, K = 5, 24, 150, 40, 7
MASK = np.array([True, False, True, True, False])
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # of two compiled programs of the same equation


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
    centres = random_embeddings(rng, C, D, around=images)
    labels = rng.integers(0, C, 200)
    train = reference.unit(centres[labels] + 0.1 * rng.normal(size=(200, D))).astype(np.float32)
    return {
        "x": random_embeddings(rng, N, D, around=images),
        "labels": random_embeddings(rng, C, D, around=texts),
        "words": random_embeddings(rng, M, D, around=texts),
        "moments": fit_moments(train, labels, num_classes=C),
        "train": train,
        "train_labels": labels,
    }


def explain(problem, **options):
    arrays = (problem[name] for name in ("x", "labels", "words", "moments"))
    return explain_bliss(*arrays, **{"k": K, "weight": 0.7, "normal": MASK, **options})


@pytest.mark.parametrize("shrinkage", [pytest.param(0.0, marks=pytest.mark.slow), 20.0])
def test_the_parts_equal_the_separate_scores_and_add_up_to_bliss(problem, shrinkage):
    why = explain(problem, shrinkage=shrinkage)
    x, labels, words, moments = (problem[name] for name in ("x", "labels", "words", "moments"))
    options = {"normal": MASK, "shrinkage": shrinkage}
    score = bliss_score(x, labels, words, moments, K, weight=0.7, **options)
    np.testing.assert_allclose(why.score, score, **ROUNDING)
    np.testing.assert_allclose(why.internal + 0.7 * why.external, score, atol=1e-4)
    np.testing.assert_allclose(why.z_scores.mean(axis=1), why.external, atol=1e-4)
    assert MASK[why.nearest_class].all()
    of_class = np.arange(N), np.asarray(why.nearest_class)
    internal = internal_class_score(x, labels, moments, **options)
    external = external_text_score(x, words, moments, K, **options)
    np.testing.assert_allclose(why.internal, np.asarray(internal)[of_class], **ROUNDING)
    np.testing.assert_allclose(why.external, np.asarray(external)[of_class], **ROUNDING)
    np.testing.assert_array_equal(why.texts, top_k_similar(x, words, K)[1])


def test_num_texts_may_be_larger_or_smaller_than_k(problem):
    own, more, one = (explain(problem, num_texts=n) for n in (None, 12, 1))
    for other in (more, one):
        for field in ("score", "nearest_class", "internal", "external"):
            np.testing.assert_allclose(getattr(other, field), getattr(own, field), **ROUNDING)
    np.testing.assert_array_equal(more.texts[:, :K], own.texts)
    np.testing.assert_allclose(more.z_scores[:, :K], own.z_scores, rtol=1e-5)
    np.testing.assert_array_equal(one.texts, own.texts[:, :1])
    assert more.texts.shape == more.z_scores.shape == (N, 12)
    for wrong in (0, M + 1):
        with pytest.raises(ValueError, match=f"num_texts: expected an integer in 1..{M}"):
            explain(problem, num_texts=wrong)


@pytest.mark.parity
def test_z_scores_are_relative_to_the_images_of_the_nearest_class(problem):
    """The mean and standard deviation are computed from the training images instead of moments."""
    why = explain(problem)
    for i, (c, texts, z_scores) in enumerate(
        zip(why.nearest_class, why.texts, why.z_scores, strict=True)
    ):
        words = np.float64(problem["words"])[texts]
        of_class = problem["train"][problem["train_labels"] == int(c)] @ words.T
        z = (problem["x"][i] @ words.T - of_class.mean(axis=0)) / of_class.std(axis=0)
        np.testing.assert_allclose(z_scores, z, atol=2e-3)


def test_the_chunk_size_and_the_batch_do_not_change_the_explanation(problem):
    """A single image has fewer chosen texts than the dictionary."""
    whole = explain(problem)
    for chunk_size in (11, 64):
        chunked = explain(problem, chunk_size=chunk_size)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole, chunked)
    one = explain({**problem, "x": problem["x"][3:4]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3:4], b, atol=1e-4), whole, one)


def test_vmap_over_splits_and_weights_agrees_with_single_calls(problem):
    masks = jnp.asarray([MASK, [True] * C])
    mapped = jax.jit(jax.vmap(lambda normal: explain(problem, normal=normal)))(masks)
    single = explain(problem, normal=masks[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-4), mapped, single)
    grid = jax.vmap(lambda weight: explain(problem, weight=weight))(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(grid.score[0], grid.internal[0], atol=1e-6)


def test_wrong_arguments_are_refused(problem):
    with pytest.raises(ValueError, match=r"k: expected an integer in 1\.\.150"):
        explain(problem, k=151)
    with pytest.raises(ValueError, match="at least one normal class"):
        explain(problem, normal=np.zeros(C, bool))


@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
@pytest.mark.parametrize("named", [3, K, 12])
def test_prepared_statistics_give_the_same_explanation(problem, shrinkage, named):
    x, *texts = (problem[name] for name in ("x", "labels", "words", "moments"))
    prepared = prepare_bliss(*texts, normal=MASK, shrinkage=shrinkage)
    why = explain_bliss_prepared(x, prepared, K, weight=0.7, num_texts=named)
    score = bliss_score_prepared(x, prepared, K, weight=0.7)
    np.testing.assert_allclose(why.score, score, **ROUNDING)
    expected = explain(problem, shrinkage=shrinkage, num_texts=named)
    np.testing.assert_array_equal(why.texts, expected.texts)
    np.testing.assert_array_equal(why.nearest_class, expected.nearest_class)
    for name in ("score", "internal", "external", "z_scores"):
        np.testing.assert_allclose(getattr(why, name), getattr(expected, name), atol=1e-3)


def test_a_num_texts_above_the_number_of_prepared_texts_is_refused(problem):
    x, *texts = (problem[name] for name in ("x", "labels", "words", "moments"))
    with pytest.raises(ValueError, match=rf"k: expected an integer in 1\.\.{M}"):
        explain_bliss_prepared(x, prepare_bliss(*texts), K, num_texts=M + 1)
