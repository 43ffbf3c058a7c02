"""Settings are chosen from held-out normal images; the estimates equal those of plain NumPy."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import reference
from clusters import C, clusters
from sklearn.metrics import roc_auc_score

from bliss_jax.evaluation import tuning
from bliss_jax.evaluation.held_out import (
    as_grid,
    folds_of,
    groups_of,
    held_out_aurocs,
    held_out_likelihoods,
)
from bliss_jax.evaluation.tuning import BlissSetting, tune

GRID = as_grid((0.0, 0.5, 1.0), (0.0, 20.0), (1, 4))


class Images(NamedTuple):
    """Arguments of `tune`."""

    embeddings: np.ndarray
    labels: np.ndarray
    label_embeddings: np.ndarray
    dictionary_embeddings: np.ndarray


@pytest.fixture(scope="module")
def images():
    e = clusters()
    return Images(e.train_embeddings, e.train_labels, e.label_embeddings, e.dictionary_embeddings)


@pytest.fixture(scope="module")
def folds(images):
    return folds_of(images.embeddings, images.labels, 5, seed=1)


def test_every_image_is_in_one_fold_and_every_class_is_spread_over_the_folds(images, folds):
    found = folds.embeddings[folds.valid]
    order = np.lexsort(images.embeddings.T)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], images.embeddings[order])
    counts = np.stack(
        [np.bincount(y[v], minlength=C) for y, v in zip(folds.labels, folds.valid, strict=True)]
    )
    np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(images.labels, minlength=C))
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert np.ptp(folds.valid.sum(axis=1)) <= 1


@pytest.mark.parametrize("classes", [2, 6, 10, 23])
def test_every_class_is_left_out_with_one_group(classes):
    groups = groups_of(classes, seed=0)
    number = min(classes, 10)
    sizes = np.bincount(groups.of_class, minlength=number)
    assert len(groups.classes) == number
    assert np.ptp(sizes) <= 1
    for group, (own, normal) in enumerate(zip(groups.classes, groups.normal, strict=True)):
        outside = np.flatnonzero(groups.of_class != group)
        np.testing.assert_array_equal(np.sort(own[normal]), outside)


def test_held_out_aurocs_are_those_of_the_equations(images, folds):
    groups = groups_of(C, seed=0)
    found = held_out_aurocs(
        folds, groups, images.label_embeddings, images.dictionary_embeddings, GRID, scored=100
    )
    assert found.shape == (5, 6, 3, 2, 2)
    train, test = folds.valid.copy(), folds.valid[2]
    train[2] = False
    for group in (0, 4):
        normal = np.flatnonzero(groups.of_class != group)
        is_anomaly = ~np.isin(folds.labels[2][test], normal)
        for (i, weight), (j, n0), (place, k) in (
            ((1, 0.5), (0, 0.0), (1, 4)),
            ((2, 1.0), (1, 20.0), (0, 1)),
        ):
            *_, scores = reference.bliss(
                folds.embeddings[2][test], images.label_embeddings, images.dictionary_embeddings,
                folds.embeddings[train], folds.labels[train], normal, k, weight, n0,
            )  # fmt: skip
            expected = roc_auc_score(is_anomaly, scores)
            np.testing.assert_allclose(found[2, group, i, j, place], expected, atol=1e-6)


def shrunk(texts, images_of_class, n0, *, prior):
    """Means and shrunk variances [classes, texts] of the cosines to texts."""
    n = np.array([len(own) for own in images_of_class])
    means = np.stack([(own @ texts.T).mean(axis=0) for own in images_of_class])
    variances = np.stack([(own @ texts.T).var(axis=0) for own in images_of_class])
    pooled = n @ variances / n.sum()
    if prior:
        pooled = (n.sum() * pooled + 5 * pooled.mean()) / (n.sum() + 5)
    return means, (n[:, None] * variances + n0 * pooled) / (n[:, None] + n0)


def test_held_out_likelihoods_are_those_of_the_normal_distribution(images, folds):
    n0s = np.array([0.0, 20.0], np.float32)
    found = held_out_likelihoods(folds, images.label_embeddings, images.dictionary_embeddings, n0s)
    labels, dictionary = (np.asarray(texts, float) for texts in images[2:])
    expected = np.zeros(2)
    for fold in range(5):
        test, train = folds.valid[fold], folds.valid.copy()
        train[fold] = False
        of_class = [folds.embeddings[train & (folds.labels == c)].astype(float) for c in range(C)]
        for place, n0 in enumerate(n0s):
            own = shrunk(labels, of_class, n0, prior=False)
            words = shrunk(dictionary, of_class, n0, prior=True)
            for image, c in zip(
                folds.embeddings[fold][test], folds.labels[fold][test], strict=True
            ):
                expected[place] += log_normal(image @ labels[c], own[0][c, c], own[1][c, c])
                expected[place] += log_normal(dictionary @ image, words[0][c], words[1][c]).mean()
    np.testing.assert_allclose(found, expected / folds.valid.sum(), rtol=1e-4)


def log_normal(x, mean, variance):
    return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)


def test_the_largest_estimate_is_chosen_if_it_is_clearly_better(images, monkeypatch):
    found = tune(*images, k=4, ks=(1,), weights=(0.0, 1.0), shrinkages=(20.0,))
    assert found.rule == tuning.LEFT_OUT
    assert (found.weights, found.shrinkages, found.ks) == ((0.0, 0.5, 1.0), (0.0, 20.0), (1, 4))
    best = np.unravel_index(found.estimates.argmax(), found.estimates.shape)
    gain = found.estimates[best] - found.estimate(found.given)
    if gain > found.errors[best]:
        assert found.estimate(found.chosen) == found.estimates[best]
    else:
        assert found.chosen == found.given
    again = tune(*images, k=4, ks=(1,), weights=(0.0, 1.0), shrinkages=(20.0,))
    np.testing.assert_array_equal(again.estimates, found.estimates)
    monkeypatch.setattr(tuning, "ERRORS", 1e6)
    kept = tune(*images, k=4, ks=(1,), weights=(0.0, 1.0), shrinkages=(20.0,))
    assert kept.chosen == kept.given == BlissSetting(4, 0.5, 0.0)
    monkeypatch.setattr(tuning, "ERRORS", -1e6)
    best_of_all = tune(*images, k=4, ks=(1,), weights=(0.0, 1.0), shrinkages=(20.0,))
    assert best_of_all.estimate(best_of_all.chosen) == found.estimates[best]


def test_a_single_class_keeps_lambda_and_k_and_chooses_the_shrinkage(images):
    own = images.labels == 2
    found = tune(
        images.embeddings[own],
        np.zeros(own.sum(), int),
        images.label_embeddings[2:3],
        images.dictionary_embeddings,
        k=4,
        weight=0.7,
    )
    assert (found.rule, found.estimates) == (tuning.LIKELIHOOD, None)
    assert (found.chosen.k, found.chosen.weight) == (4, 0.7)
    assert found.chosen.shrinkage in tuning.TUNED_SHRINKAGES
    with pytest.raises(ValueError, match="no estimates"):
        found.estimate(found.chosen)
    assert "largest likelihood" in str(found)
    json.dumps(found.describe())


def test_the_description_names_choice_and_estimates(images):
    found = tune(*images, k=4, ks=(1,), weights=(0.0, 1.0), shrinkages=(20.0,))
    facts = json.loads(json.dumps(found.describe()))
    assert facts["given"] == {"k": 4, "weight": 0.5, "shrinkage": 0.0}
    assert facts["auroc_of_given"] == found.estimate(found.given)
    assert str(found).startswith(str(found.chosen))
    with pytest.raises(ValueError, match="expected k among"):
        found.estimate(BlissSetting(3, 0.5, 0.0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": np.arange(150) % 6 * 0},
            "at least 2 images of each class, .* got 0 of class 1",
        ),
        ({"k": 121}, "k: expected"),
        ({"weights": (np.nan,)}, "weight: expected"),
        ({"shrinkages": (-1.0,)}, "shrinkage: expected"),
        ({"ks": (0,)}, "k: expected"),
    ],
)
def test_invalid_arguments_are_refused(images, changes, message):
    arguments = {**images._asdict(), **changes}
    with pytest.raises(ValueError, match=message):
        tune(**arguments)
