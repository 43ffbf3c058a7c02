"""Each value of a study equals the equations in NumPy with that value; arguments are checked."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import reference
from clusters import PROTOCOL, M, clusters
from sklearn.metrics import roc_auc_score

from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import (
    Study,
    at_weight,
    dictionary_study,
    few_shot_study,
    grid_studies,
    studies,
    training_rows,
)
from bliss_jax.evaluation.studies import (
    default_sizes,
    dictionary_subsets,
    join_repeats,
    k_study,
    parts_study,
    weight_study,
)

N0 = 20.0
SHRUNK = f"bliss, shrinkage {N0:g}"


@pytest.fixture(scope="module")
def embeddings() -> EmbeddingSet:
    return clusters()


def areas(e: EmbeddingSet, k=10, weight=0.5, rows: Iterable[int] | None = None, words=None):
    """Computes the AUROCs of one setting on all splits in NumPy, by the names of a study's series.

    Args:
        e: The embeddings.
        k: Dictionary texts per image.
        weight: lambda.
        rows: Training images to fit, all by default.
        words: Mask of the dictionary texts, all by default.
    """
    rows = np.arange(len(e.train_labels)) if rows is None else np.asarray(rows)
    dictionary = e.dictionary_embeddings if words is None else e.dictionary_embeddings[words]
    fixed = (e.test_embeddings, e.label_embeddings, dictionary)
    found: dict[str, list[float]] = {"internal": [], "external": [], "bliss": [], SHRUNK: []}
    for split in PROTOCOL.splits:
        train, labels = e.train_embeddings[rows], e.train_labels[rows]
        options = {"k": k, "weight": weight}
        internal, external, bliss = reference.bliss(*fixed, train, labels, split.normal, **options)
        *_, shrunk = reference.bliss(*fixed, train, labels, split.normal, shrinkage=N0, **options)
        anomalous = np.isin(e.test_labels, split.anomalous)
        counted = anomalous | np.isin(e.test_labels, split.normal)
        scores = (internal.min(axis=1), external.min(axis=1), bliss, shrunk)
        for name, score in zip(found, scores, strict=True):
            found[name].append(float(roc_auc_score(anomalous[counted], score[counted])))
    return found


def assert_equal(study: Study, value: int, expected: dict[str, list[float]], repeat: int = 0):
    assert set(study.series) == set(expected)
    for score, array in expected.items():
        found = study.series[score][value][repeat]
        np.testing.assert_allclose(found, array, rtol=0, atol=1e-5, err_msg=score)


def run_twice(run, compiled, embeddings, first, second, **options) -> tuple[Study, Study]:
    """Runs a study with two sets of values, and checks that the second compiles nothing."""
    before = compiled._cache_size()
    studied = run(embeddings, PROTOCOL, first, **options)
    assert compiled._cache_size() == before + 1
    again = run(embeddings, PROTOCOL, second, **options)
    assert compiled._cache_size() == before + 1
    assert (studied.values, again.values) == (tuple(map(float, first)), tuple(map(float, second)))
    return studied, again


@pytest.mark.parity
def test_a_study_of_lambda_equals_numpy_and_compiles_once(embeddings):
    values = ((0.0, 0.5, 2.0), (0.1, 0.3, 0.7))
    subsets = studies._aurocs_of_subsets
    both = run_twice(weight_study, subsets, embeddings, *values, shrinkage=N0)
    for study, weights in zip(both, values, strict=True):
        for i, weight in enumerate(weights):
            assert_equal(study, i, areas(embeddings, weight=weight))
    np.testing.assert_array_equal(both[0].series["bliss"][0], both[0].series["internal"][0])


@pytest.mark.slow
@pytest.mark.parity
def test_a_study_of_k_equals_numpy_and_compiles_once(embeddings):
    values = ((1, 30, 5, M), (2, 7, 10, M))  # The largest k is static.
    subsets = studies._aurocs_of_subsets
    both = run_twice(k_study, subsets, embeddings, *values, weight=0.4, shrinkage=N0)
    for study, ks in zip(both, values, strict=True):
        for i, k in enumerate(ks):
            assert_equal(study, i, areas(embeddings, k=k, weight=0.4))


@pytest.mark.parity
def test_a_study_of_the_dictionary_equals_numpy_and_compiles_once(embeddings):
    values, options = ((4, 50, M), (5, 20, 60)), {"repeats": 2, "seed": 3}
    compiled = studies._aurocs_of_subsets
    both = run_twice(dictionary_study, compiled, embeddings, *values, k=4, shrinkage=N0, **options)
    for study, sizes in zip(both, values, strict=True):
        subsets = dictionary_subsets(M, sizes, **options)
        assert subsets.sum(axis=2).tolist() == [[size] * 2 for size in sizes]
        for i in range(len(sizes)):
            for repeat, subset in enumerate(subsets[i]):
                assert_equal(study, i, areas(embeddings, k=4, words=subset), repeat)


@pytest.mark.parity
def test_a_few_shot_study_equals_numpy_and_compiles_once(embeddings):
    """The draws are those of `training_rows`, and therefore those of `evaluate`."""
    values, options = ((1, 3, 10), (2, 5, 10)), {"draws": 4, "seed": 5}
    compiled = studies._aurocs_of_draws
    both = run_twice(few_shot_study, compiled, embeddings, *values, k=6, shrinkage=N0, **options)
    normal = np.arange(6) < 5
    for study, shots in zip(both, values, strict=True):
        for i, number in enumerate(shots):
            for draw, rows in enumerate(training_rows(embeddings, normal, shots=number, **options)):
                assert_equal(study, i, areas(embeddings, k=6, rows=rows), draw)


@pytest.mark.parity
def test_a_grid_contains_the_studies_of_lambda_and_of_k(embeddings):
    weights, ks = (0.0, 0.7), (1, 30)
    grid = grid_studies(embeddings, PROTOCOL, weights, ks, shrinkage=N0)
    of_k = at_weight(grid, 0.7)
    assert (of_k.name, of_k.values) == ("k", (1.0, 30.0))
    assert of_k.provenance["settings"] == {"study": "k", "lambda": 0.7, "shrinkage": N0}
    for i, (k, of_weight) in enumerate(grid.items()):
        assert (of_weight.name, of_weight.values) == ("lambda", weights)
        assert of_weight.provenance["settings"] == {"study": "lambda", "k": k, "shrinkage": N0}
        for j, weight in enumerate(weights):
            assert_equal(of_weight, j, areas(embeddings, k=k, weight=weight))
        assert_equal(of_k, i, areas(embeddings, k=k, weight=0.7))
    with pytest.raises(ValueError, match=r"expected one of \(0\.0, 0\.7\), got 0\.6"):
        at_weight(grid, 0.6)


@pytest.mark.slow
@pytest.mark.parity
def test_a_study_of_the_parts_equals_numpy(embeddings):
    study = parts_study(embeddings, PROTOCOL, k=7, weight=0.3, shrinkage=N0)
    assert (study.name, study.setting, study.values) == ("parts", "lambda", (0.3,))
    assert_equal(study, 0, areas(embeddings, k=7, weight=0.3))


def test_default_sizes_are_from_k_to_the_size_of_the_dictionary():
    assert default_sizes(120, 10) == (10, 20, 50, 100, 120)
    assert default_sizes(120, 30) == (50, 100, 120)
    assert default_sizes(5, 1) == (5,)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda e: weight_study(e, PROTOCOL, ()), "weights: expected at least one value"),
        (lambda e: weight_study(e, PROTOCOL, (float("nan"),)), "weight: expected a finite"),
        (lambda e: k_study(e, PROTOCOL, ()), "ks: expected at least one value"),
        (lambda e: k_study(e, PROTOCOL, (1, M + 1)), r"k: expected an integer in 1\.\.120"),
        (lambda e: k_study(e, PROTOCOL, (0,)), "k: expected"),
        (lambda e: parts_study(e, PROTOCOL, shrinkage=-1.0), "shrinkages: expected finite"),
        (lambda e: dictionary_study(e, PROTOCOL, (9,)), "sizes: expected k = 10 to 120 texts"),
        (lambda e: dictionary_study(e, PROTOCOL, (M + 1,)), "sizes: expected k = 10 to 120"),
        (lambda e: dictionary_study(e, PROTOCOL, ()), "sizes: expected at least one value"),
        (lambda e: dictionary_study(e, PROTOCOL, repeats=0), "repeats: expected at least 1"),
        (lambda e: few_shot_study(e, PROTOCOL, ()), "shots: expected at least one value"),
        (lambda e: few_shot_study(e, PROTOCOL, (0,)), "shots: expected at least 1"),
        (lambda e: few_shot_study(e, PROTOCOL, (1, 60)), "expected at least 60 training images"),
        (lambda e: few_shot_study(e, PROTOCOL, (1,), draws=0), "draws: expected at least 1"),
    ],
)
def test_invalid_arguments_are_rejected(embeddings, run, message):
    with pytest.raises(ValueError, match=message):
        run(embeddings)


def random_study(seed: int, repeats: int = 3) -> Study:
    areas = np.random.default_rng(seed).random((2, 2, repeats, 4))
    series = {"bliss": areas[0], "internal": areas[1]}
    return Study("shots", "normal images per class", (2.0, 5.0), series, "three", {"seed": seed})


def test_mean_and_std_equal_numpy_and_json_can_be_read_back():
    study = random_study(0)
    of_repeats = study.series["bliss"].mean(axis=2)
    np.testing.assert_allclose(study.mean("bliss"), of_repeats.mean(axis=1))
    np.testing.assert_allclose(study.std("bliss"), of_repeats.std(axis=1))
    read = Study.from_json(study.to_json())
    assert read.to_json() == study.to_json()
    assert read.provenance["seed"] == 0
    with pytest.raises(ValueError, match="expected a study"):
        Study.from_json({"name": "shots"})
    with pytest.raises(ValueError, match=r"series: expected arrays \[3, repeats, splits\]"):
        replace(study, values=(1.0, 2.0, 3.0))


def test_studies_that_differ_only_in_their_repeats_are_joined():
    first, second = random_study(0), random_study(1)
    joined = join_repeats((first, second))
    assert joined.series["bliss"].shape == (2, 6, 4)
    np.testing.assert_allclose(
        joined.mean("bliss"), (first.mean("bliss") + second.mean("bliss")) / 2
    )
    assert joined.provenance == {"seed": 0, "joined": 2}
    with pytest.raises(ValueError, match="differ in values"):
        join_repeats((first, replace(second, values=(2.0, 6.0))))
    with pytest.raises(ValueError, match="differ in name"):
        join_repeats((first, replace(second, name="parts")))
    with pytest.raises(ValueError, match="at least one"):
        join_repeats(())
