"""Tests of BLISS and whitened BLISS as static scores of proxies and queues: their units and their composition."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from clusters import PROTOCOL, C, clusters
from sklearn.metrics import roc_auc_score

import bliss_jax as bj
from bliss_jax.evaluation import Settings
from bliss_jax.scores import score_table
from bliss_jax.scores.adapted_bliss import (
    BLISS_PROXIES,
    QUEUE_SHARE,
    QUEUE_WEIGHT,
    cosine_deviation,
    whitened_static,
)


@pytest.fixture(scope="module")
def embeddings():
    return clusters()


def fitted(e):
    return bj.fit_moments(e.train_embeddings, e.train_labels, num_classes=C)


def test_the_internal_part_of_the_static_score_has_a_deviation_of_one(embeddings):
    """With one class and lambda = 0, whitened BLISS is its internal part."""
    e, only = embeddings, jnp.arange(C) == 2
    own = jnp.asarray(e.train_embeddings[e.train_labels == 2])
    texts = jnp.asarray(e.label_embeddings), jnp.asarray(e.dictionary_embeddings)
    scores = whitened_static(own, *texts, fitted(e), 5, 0.0, only)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scores.std()) == pytest.approx(1, abs=1e-3)


def test_the_unit_of_a_cosine_is_its_deviation_along_a_random_direction(embeddings):
    e, normal = embeddings, np.array([0, 3])
    x = [e.train_embeddings[e.train_labels == c].astype(np.float64) for c in normal]
    centred = np.concatenate([own - own.mean(axis=0) for own in x])
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20_000, centred.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.sqrt(((centred @ directions.T) ** 2).mean())
    found = cosine_deviation(fitted(e), jnp.isin(jnp.arange(C), jnp.asarray(normal)))
    assert float(found) == pytest.approx(expected, rel=1e-2)


def composed(e, split):
    """The scores of a split from public functions, on the images of the split alone."""
    normal = np.isin(np.arange(C), split.normal)
    in_test = np.isin(e.test_labels, [*split.normal, *split.anomalous])
    x, words, moments = e.test_embeddings[in_test], e.dictionary_embeddings, fitted(e)
    static = bj.bliss_score(x, e.label_embeddings, words, moments, 5, normal=normal)
    unit = float(cosine_deviation(moments, jnp.asarray(normal)))
    anchors = moments.mean / jnp.linalg.norm(moments.mean, axis=1, keepdims=True)
    negatives = words[np.asarray(bj.negative_labels(anchors, words, normal=normal))]
    p = BLISS_PROXIES
    _, proxies = bj.update_proxies(
        bj.init_proxies(anchors, negatives), x, static,
        low=p.low, high=p.high, weight=p.weight / unit, normal=normal,
    )  # fmt: skip
    places = int(max(QUEUE_SHARE * len(x), 5))
    _, queue = bj.update_ood_queue(
        bj.init_ood_queue(places, x.shape[1]), x, static, weight=QUEUE_WEIGHT / unit
    )
    anomalous = np.isin(e.test_labels[in_test], split.anomalous)
    return {
        "bliss_proxies": roc_auc_score(anomalous, proxies),
        "bliss_queue": roc_auc_score(anomalous, queue),
    }


@pytest.mark.slow
def test_an_evaluation_adapts_to_the_images_of_each_split(embeddings):
    names = ("bliss_proxies", "bliss_queue")
    found = bj.evaluate(embeddings, PROTOCOL, Settings(scores=names, k=5))
    for row in found.rows:
        expected = [composed(embeddings, split)[row.score] for split in PROTOCOL.splits]
        np.testing.assert_allclose([s.auroc for s in row.splits], expected, atol=2e-4)


def test_the_records_of_adapting_scores_say_so():
    adapting = {name for name, score in score_table().items() if score.transductive}
    assert adapting == {
        "adaneg", "clip_scope", "tanl", "oodd",
        "bliss_proxies", "whitened_proxies", "bliss_queue", "whitened_queue",
    }  # fmt: skip
    assert all("counted" in score_table()[name].needs for name in adapting)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, s in score_table().items() if s.transductive])
def test_images_of_other_classes_change_no_auroc(embeddings, name):
    """The second split ignores two classes. Without their images, or with other ones, its AUROC is the same."""
    split = PROTOCOL.splits[1]
    protocol = type(PROTOCOL)("one", "custom", None, (split,))
    in_test = np.isin(embeddings.test_labels, [*split.normal, *split.anomalous])
    x = np.where(in_test[:, None], embeddings.test_embeddings, embeddings.test_embeddings[:1])
    changed = replace(embeddings, test_embeddings=x)
    settings = Settings(scores=(name,), k=5)
    found = bj.evaluate(embeddings, protocol, settings).rows[0].splits[0].auroc
    assert bj.evaluate(changed, protocol, settings).rows[0].splits[0].auroc == found
