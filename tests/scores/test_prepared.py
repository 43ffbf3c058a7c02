"""Tests of prepared statistics: they give the scores of `bliss_score`, and wrong arguments are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bliss import MASK, C, M, N, Problem

from bliss_jax.scores import bliss_score, bliss_score_prepared, prepare_bliss, top_k_similar


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
@pytest.mark.parametrize("chunk_size", [64, 4096])
def test_equals_the_score_from_moments(problem, shrinkage, chunk_size):
    texts = problem.labels, problem.words, problem.moments
    expected = bliss_score(problem.test, *texts, 7, weight=0.8, normal=MASK, shrinkage=shrinkage)
    prepared = prepare_bliss(*texts, normal=MASK, shrinkage=shrinkage, chunk_size=chunk_size)
    got = bliss_score_prepared(problem.test, prepared, 7, weight=0.8, chunk_size=chunk_size)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_one_table_serves_all_masks_and_every_k(problem):
    texts = problem.labels, problem.words, problem.moments
    prepared = prepare_bliss(*texts)
    masks = np.random.default_rng(3).permuted(np.tile(np.arange(C) < 3, (5, 1)), axis=1)
    nearest = top_k_similar(problem.test, problem.words, 12)
    for k in (1, 12):
        score = lambda mask, k=k: bliss_score_prepared(
            problem.test, prepared, k, normal=mask, nearest=nearest
        )
        for mask, scores in zip(masks, jax.jit(jax.vmap(score))(masks), strict=True):
            expected = bliss_score(problem.test, *texts, k, normal=mask)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradients_equal_those_of_the_score_from_moments(problem):
    prepared = prepare_bliss(problem.labels, problem.words, problem.moments)
    plain = lambda x, w: bliss_score(
        x, problem.labels, problem.words, problem.moments, weight=w
    ).sum()
    quick = lambda x, w: bliss_score_prepared(x, prepared, weight=w).sum()
    x = jnp.asarray(problem.test[:9])
    for ours, theirs in zip(*(jax.grad(f, (0, 1))(x, 0.5) for f in (quick, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_padding_is_never_chosen(problem):
    texts = problem.labels, problem.words, problem.moments
    padded = np.concatenate([problem.words, problem.test[:40]])  # nearer to images than any text
    where = np.arange(M + 40) < M
    for shrinkage in (0.0, 20.0):
        expected = bliss_score(problem.test, *texts, shrinkage=shrinkage)
        change = {"shrinkage": shrinkage, "where": where}
        got = bliss_score(problem.test, problem.labels, padded, problem.moments, **change)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        prepared = prepare_bliss(problem.labels, padded, problem.moments, **change)
        got = bliss_score_prepared(problem.test, prepared)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_table_with_shrinkage_is_valid_for_its_mask_only(problem):
    texts = problem.labels, problem.words, problem.moments
    prepared = prepare_bliss(*texts, normal=MASK, shrinkage=5.0)
    score = partial(bliss_score_prepared, problem.test, prepared)
    with pytest.raises(ValueError, match="call prepare_bliss for another mask"):
        score(normal=MASK)
    with pytest.raises(ValueError, match="call prepare_bliss for another mask"):
        jax.jit(lambda mask: score(normal=mask))(MASK)
    # A traced table may have been made with shrinkage, and then another mask gives NaN.
    quick = jax.jit(
        lambda prepared, mask: bliss_score_prepared(problem.test, prepared, normal=mask)
    )
    assert np.isnan(quick(prepared, ~MASK)).all()
    np.testing.assert_allclose(quick(prepared, MASK), score(), rtol=1e-5)


def test_wrong_arguments_are_refused(problem, unchecked):
    texts = problem.labels, problem.words, problem.moments
    prepared = prepare_bliss(*texts)
    nearest = top_k_similar(problem.test, problem.words, 4)
    with pytest.raises(ValueError, match=r"k: expected an integer in 1..4 \(the places of"):
        bliss_score_prepared(problem.test, prepared, 5, nearest=nearest)
    with pytest.raises(
        ValueError, match=rf"nearest: expected cosines and positions \[{N - 1}, places"
    ):
        bliss_score_prepared(problem.test[1:], prepared, 4, nearest=nearest)
    with pytest.raises(ValueError, match=r"k: expected an integer in 1..3 .the texts that `where`"):
        bliss_score(problem.test, *texts, 4, where=np.arange(M) < 3)
    with pytest.raises(ValueError, match=rf"where: expected a bool \[{M}\] array.*got int"):
        bliss_score(problem.test, *texts, where=np.ones(M, int))


def test_fewer_than_k_texts_give_nan_under_tracing(problem):
    texts = problem.labels, problem.words, problem.moments
    score = jax.jit(lambda where: bliss_score(problem.test, *texts, 4, where=where))
    assert np.isnan(score(np.arange(M) < 3)).all()
    assert np.isfinite(score(np.arange(M) < 4)).all()
