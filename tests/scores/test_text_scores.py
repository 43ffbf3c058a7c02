"""Tests of the scores that need no image: each against its equation in NumPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_embeddings
from scipy.special import softmax

from bliss_jax.scores import (
    bliss_score,
    cma_score,
    eoe_score,
    fit_moments,
    max_cosine_score,
    text_bliss_score,
)

C, D, N, M, K = 5, 12, 40, 90, 4
NORMAL = np.array([0, 1, 4])
MASK = np.isin(np.arange(C), NORMAL)
RNG = np.random.default_rng(0)
CONE = random_embeddings(RNG, D)
X = random_embeddings(RNG, N, D, around=CONE)
LABELS, WORDS = random_embeddings(RNG, C, D), random_embeddings(RNG, M, D)

S = X.astype(np.float64) @ LABELS[NORMAL].astype(np.float64).T
W = X.astype(np.float64) @ WORDS.astype(np.float64).T


def probabilities(temperature):
    """Softmax over the normal labels and the words: [images, labels] and [images, words]."""
    p = softmax(np.concatenate([S, W], axis=1) / temperature, axis=1)
    return p[:, : len(NORMAL)], p[:, len(NORMAL) :]


@pytest.mark.parity
@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_text_bliss_agrees_with_its_equation(chunk_size):
    expected = -S.max(axis=1) + 0.7 * np.sort(W, axis=1)[:, -K:].mean(axis=1)
    got = text_bliss_score(X, LABELS, WORDS, K, weight=0.7, normal=MASK, chunk_size=chunk_size)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1.0, 0.01])
@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_cma_and_eoe_agree_with_their_equations(temperature, chunk_size):
    of_labels, of_words = probabilities(temperature)
    options = {"normal": MASK, "temperature": temperature, "chunk_size": chunk_size}
    np.testing.assert_allclose(
        cma_score(X, LABELS, WORDS, **options), -of_labels.max(axis=1), rtol=1e-4, atol=1e-30
    )
    np.testing.assert_allclose(
        eoe_score(X, LABELS, WORDS, beta=0.3, **options),
        -of_labels.max(axis=1) + 0.3 * of_words.max(axis=1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_text_bliss_ranks_as_bliss_does_with_equal_means_and_deviations():
    """If all images have the same mean and covariance s I, BLISS is text BLISS up to scale and shift."""
    centre = random_embeddings(RNG, D).astype(np.float64)
    texts = np.concatenate([LABELS, WORDS])
    texts = texts - np.outer(texts @ centre, centre)  # no text is similar to the centre
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    labels, words = texts[:C], texts[C:]
    moments = fit_moments(X, np.arange(N) % C, num_classes=C)
    variance = (1 - 0.25) / D
    moments = moments._replace(
        mean=jnp.asarray(np.tile(0.5 * centre, (C, 1)), jnp.float32),
        cov=jnp.tile(variance * jnp.eye(D), (C, 1, 1)),
    )
    full = bliss_score(X, labels, words, moments, K, normal=MASK)
    expected = text_bliss_score(X, labels, words, K, normal=MASK)
    np.testing.assert_allclose(full * np.sqrt(variance), expected, rtol=1e-4, atol=1e-5)


def test_without_the_dictionary_text_bliss_is_the_largest_cosine():
    np.testing.assert_allclose(
        text_bliss_score(X, LABELS, WORDS, K, weight=0.0, normal=MASK),
        max_cosine_score(X, LABELS, normal=MASK),
        atol=1e-7,
    )


def test_cma_has_the_probabilities_of_one_softmax_over_all_texts():
    """The probability of all words, one after the other in the label's place, sums to 1."""
    each = [cma_score(X, w[None], np.delete(WORDS, i, axis=0)) for i, w in enumerate(WORDS)]
    np.testing.assert_allclose(-np.sum(each, axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("score", [text_bliss_score, cma_score, eoe_score])
def test_masking_a_class_equals_removing_it_under_vmap(score):
    masks = np.stack([MASK, ~MASK, np.ones(C, bool)])
    together = jax.jit(jax.vmap(lambda m: score(X, LABELS, WORDS, normal=m)))(masks)
    for mask, row in zip(masks, together, strict=True):
        np.testing.assert_allclose(row, score(X, LABELS[mask], WORDS), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cma_score(X, LABELS, WORDS, temperature=0.0), "temperature: expected a finite"),
        (lambda: eoe_score(X, LABELS, WORDS[:0]), r"k: expected an integer in 1\.\.0"),
        (lambda: eoe_score(X, LABELS, WORDS, beta=float("nan")), "beta: expected a finite number"),
        (lambda: text_bliss_score(X, LABELS, WORDS, M + 1), r"k: expected an integer in 1\.\.90"),
        (lambda: text_bliss_score(X, LABELS[:, :3], WORDS), "expected embeddings of one dimension"),
        (
            lambda: cma_score(X, LABELS, WORDS, normal=np.zeros(C, bool)),
            "at least one normal class",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
