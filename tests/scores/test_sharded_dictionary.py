"""Tests of a dictionary that is sharded over devices: results equal those of one device with all texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, PartitionSpec
from test_bliss import MASK, Problem

from bliss_jax.scores import (
    PreparedBliss,
    bliss_score,
    bliss_score_prepared,
    external_text_score,
    pad_dictionary,
    prepare_bliss,
    top_k_similar,
)

WHOLE, BY_IMAGE, BY_TEXT = PartitionSpec(), PartitionSpec("data"), PartitionSpec("texts")


@pytest.fixture(scope="module")
def problem():
    return Problem()


def mesh(data: int) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(data, 8 // data), ("data", "texts"))


def sharded(function, data, in_specs, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh(data), in_specs=in_specs, out_specs=out_specs))


@pytest.mark.parametrize(("data", "texts", "k"), [(1, 50, 7), (2, 13, 13), (2, 9, 6), (8, 50, 7)])
def test_top_k_is_a_stable_sort_of_all_texts(data, texts, k):
    """Embeddings of small integers have many ties, which go to the text that comes first on any device.

    With 13 and 9 texts, devices have fewer than k texts, and one device has padding alone.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (24, 4)).astype(np.float32)
    words = rng.integers(-2, 3, (texts, 4)).astype(np.float32)
    padded, where = pad_dictionary(words, 8 // data)
    # The padding would have the largest cosines if it were not masked.
    padded = jnp.where(where[:, None], padded, 100)
    find = sharded(
        lambda x, t, w: top_k_similar(x, t, k, where=w, dictionary_axis="texts", chunk_size=3),
        data,
        (BY_IMAGE, BY_TEXT, BY_TEXT),
        (BY_IMAGE, BY_IMAGE),
    )
    values, indices = find(x, padded, where)
    expected = np.argsort(-(x @ words.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x @ words.T, expected, axis=1))
    alone = jax.jit(lambda x, t: top_k_similar(x, t, k))(x, words)  # not of unit norm: unchecked
    np.testing.assert_array_equal(indices, alone[1])


@pytest.mark.parametrize(
    ("data", "shrinkage"), [(2, 20.0), pytest.param(1, 0.0, marks=pytest.mark.slow)]
)
def test_scores_equal_those_of_one_device(problem, data, shrinkage):
    images = problem.test[:88]
    padded, where = pad_dictionary(problem.words, 8 // data)
    assert len(padded) % (8 // data) == 0
    assert len(padded) > len(problem.words)
    over = {"dictionary_axis": "texts", "shrinkage": shrinkage, "normal": MASK}

    def score(x, t, w, labels, moments):
        external = external_text_score(x, t, moments, where=w, **over)
        return external, bliss_score(x, labels, t, moments, where=w, **over)

    external, scores = sharded(
        score, data, (BY_IMAGE, BY_TEXT, BY_TEXT, WHOLE, WHOLE), (BY_IMAGE, BY_IMAGE)
    )(images, padded, where, problem.labels, problem.moments)
    alone = {"shrinkage": shrinkage, "normal": MASK}
    texts = problem.labels, problem.words, problem.moments
    np.testing.assert_allclose(
        external, external_text_score(images, *texts[1:], **alone), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(scores, bliss_score(images, *texts, **alone), rtol=1e-4, atol=1e-4)
    found = sharded(
        lambda x, t, w: top_k_similar(x, t, 10, where=w, dictionary_axis="texts")[1],
        data,
        (BY_IMAGE, BY_TEXT, BY_TEXT),
        BY_IMAGE,
    )(images, padded, where)
    np.testing.assert_array_equal(found, top_k_similar(images, problem.words, 10)[1])


@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
def test_each_device_may_prepare_its_own_texts(problem, shrinkage, unchecked):
    images = problem.test[:88]
    padded, where = pad_dictionary(problem.words, 4)
    specs = PreparedBliss(
        label_embeddings=WHOLE,
        label_mean=WHOLE,
        label_deviation=WHOLE,
        dictionary_embeddings=BY_TEXT,
        mean=BY_TEXT,
        deviation=BY_TEXT,
        count=WHOLE,
        normal=WHOLE,
        where=BY_TEXT,
        shrunk=WHOLE,
    )
    prepared = sharded(
        lambda t, w, labels, moments: prepare_bliss(
            labels, t, moments, normal=MASK, shrinkage=shrinkage, where=w, dictionary_axis="texts"
        ),
        2,
        (BY_TEXT, BY_TEXT, WHOLE, WHOLE),
        specs,
    )(padded, where, problem.labels, problem.moments)
    scores = sharded(
        lambda x, p: bliss_score_prepared(x, p, dictionary_axis="texts"),
        2,
        (BY_IMAGE, specs),
        BY_IMAGE,
    )(images, prepared)
    texts = problem.labels, problem.words, problem.moments
    expected = bliss_score(images, *texts, normal=MASK, shrinkage=shrinkage)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradients_equal_those_of_one_device(problem):
    images = jnp.asarray(problem.test[:8])
    padded, where = pad_dictionary(problem.words, 8)
    scored = sharded(
        lambda x, t, w, m: external_text_score(x, t, m, where=w, dictionary_axis="texts"),
        1,
        (BY_IMAGE, BY_TEXT, BY_TEXT, WHOLE),
        BY_IMAGE,
    )
    ours = jax.grad(lambda x: scored(x, padded, where, problem.moments).sum())(images)
    theirs = jax.grad(lambda x: external_text_score(x, problem.words, problem.moments).sum())(
        images
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_padding_repeats_the_last_text():
    words = reference.random_embeddings(np.random.default_rng(0), 5, 3).astype(np.float32)
    padded, where = pad_dictionary(words, 4)
    np.testing.assert_array_equal(padded, words[[0, 1, 2, 3, 4, 4, 4, 4]])
    np.testing.assert_array_equal(where, np.arange(8) < 5)
    with pytest.raises(ValueError, match="multiple: expected an integer of at least 1, got 0"):
        pad_dictionary(words, 0)


def test_a_k_above_the_number_of_texts_of_all_devices_is_refused(problem):
    padded, where = pad_dictionary(problem.words[:7], 8)
    with pytest.raises(ValueError, match=r"k: expected an integer in 1..8 .* got 9"):
        sharded(
            lambda x, t, w: top_k_similar(x, t, 9, where=w, dictionary_axis="texts"),
            1,
            (BY_IMAGE, BY_TEXT, BY_TEXT),
            (BY_IMAGE, BY_IMAGE),
        )(problem.test, padded, where)
