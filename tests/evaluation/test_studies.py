"""Each value of a study equals one evaluation with that value; arguments are checked."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from clusters import PROTOCOL, M, clusters

from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import (
    Settings,
    Study,
    at_weight,
    dictionary_study,
    evaluate,
    few_shot_study,
    grid_studies,
    studies,
)
from bliss_jax.evaluation.studies import (
    dictionary_subsets,
    join_repeats,
    k_study,
    parts_study,
    weight_study,
)

N0 = 20.0


@pytest.fixture(scope="module")
def embeddings() -> EmbeddingSet:
    return clusters()


def areas(e, scores=("internal", "external", "bliss"), **settings):
    """Returns the AUROCs [draws, splits] of an evaluation, by the names of a study's series."""
    settings = Settings(scores=scores, shrinkages=(0.0, N0), **settings)
    found = {}
    for row in evaluate(e, PROTOCOL, settings).rows:
        shrunk = row.settings.get("shrinkage")
        name = f"{row.score}, shrinkage {shrunk:g}" if shrunk else row.score
        found[name] = np.array([split.draws or (split.auroc,) for split in row.splits]).T
    return found


def assert_same(study: Study, value: int, expected: dict[str, np.ndarray], repeat=slice(None)):
    assert set(study.series) == set(expected)
    for score, array in expected.items():
        np.testing.assert_allclose(study.series[score][value][repeat], array, rtol=0, atol=1e-6)


@pytest.mark.parity
def test_parts_study_equals_an_evaluation(embeddings):
    study = parts_study(embeddings, PROTOCOL, k=7, weight=0.3, shrinkage=N0)
    assert (study.name, study.setting, study.values) == ("parts", "lambda", (0.3,))
    assert_same(study, 0, areas(embeddings, k=7, weight=0.3))


@pytest.mark.parity
def test_every_lambda_equals_one_evaluation(embeddings):
    weights = (0.0, 0.5, 2.0)
    study = weight_study(embeddings, PROTOCOL, weights, shrinkage=N0)
    assert (study.name, study.values) == ("lambda", weights)
    for i, weight in enumerate(weights):
        assert_same(study, i, areas(embeddings, weight=weight))
    np.testing.assert_array_equal(study.series["bliss"][0], study.series["internal"][0])


@pytest.mark.parity
def test_every_k_equals_one_evaluation(embeddings):
    ks = (1, 30, 5, M)
    study = k_study(embeddings, PROTOCOL, ks, weight=0.7, shrinkage=N0)
    assert (study.name, study.values) == ("k", (1.0, 30.0, 5.0, float(M)))
    for i, k in enumerate(ks):
        assert_same(study, i, areas(embeddings, k=k, weight=0.7))


@pytest.mark.parity
def test_a_grid_contains_the_studies_of_lambda_and_of_k(embeddings):
    weights, ks = (0.0, 0.7), (1, 30)
    grid = grid_studies(embeddings, PROTOCOL, weights, ks, shrinkage=N0)
    of_weight = {k: weight_study(embeddings, PROTOCOL, weights, k=k, shrinkage=N0) for k in ks}
    of_k = k_study(embeddings, PROTOCOL, ks, weight=0.7, shrinkage=N0)
    assert set(grid) == set(ks)
    for found, expected in [*((grid[k], of_weight[k]) for k in ks), (at_weight(grid, 0.7), of_k)]:
        assert (found.name, found.values) == (expected.name, expected.values)
        assert found.provenance["settings"] == expected.provenance["settings"]
        for score, array in expected.series.items():
            np.testing.assert_allclose(found.series[score], array, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected one of \(0\.0, 0\.7\), got 0\.6"):
        at_weight(grid, 0.6)


@pytest.mark.parity
def test_a_subset_of_the_dictionary_equals_an_evaluation_with_that_dictionary(embeddings):
    sizes = (4, 50, M)
    options = {"repeats": 2, "seed": 3}
    study = dictionary_study(embeddings, PROTOCOL, sizes, k=4, shrinkage=N0, **options)
    assert (study.name, study.values) == ("dictionary", (4.0, 50.0, float(M)))
    subsets = dictionary_subsets(M, sizes, **options)
    assert subsets.sum(axis=2).tolist() == [[size] * 2 for size in sizes]
    for i in range(len(sizes)):
        for repeat, subset in enumerate(subsets[i]):
            words = tuple(np.array(embeddings.dictionary)[subset].tolist())
            vectors = embeddings.dictionary_embeddings[subset]
            e = replace(embeddings, dictionary=words, dictionary_embeddings=vectors)
            assert_same(study, i, areas(e, k=4), slice(repeat, repeat + 1))


@pytest.mark.parity
def test_every_number_of_shots_equals_an_evaluation_with_the_same_draws(embeddings):
    shots = (1, 3, 10)
    study = few_shot_study(embeddings, PROTOCOL, shots, draws=4, seed=5, k=6, shrinkage=N0)
    assert (study.name, study.values) == ("shots", (1.0, 3.0, 10.0))
    for i, number in enumerate(shots):
        assert_same(study, i, areas(embeddings, shots=number, draws=4, seed=5, k=6))


@pytest.mark.parametrize(
    ("run", "first", "second"),
    [
        (weight_study, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (k_study, (2, 3, 10), (4, 7, 10)),
        (dictionary_study, (10, 40, 120), (20, 30, 60)),
        (few_shot_study, (1, 2, 5), (3, 4, 5)),
    ],
)
def test_all_values_are_traced_once_and_other_values_not_again(
    embeddings, monkeypatch, run, first, second
):
    traces = []

    def counted(*args, **kwargs):
        traces.append(run.__name__)
        return split_aurocs(*args, **kwargs)

    split_aurocs = studies.split_aurocs
    monkeypatch.setattr(studies, "split_aurocs", counted)
    jax.clear_caches()
    run(embeddings, PROTOCOL, first)
    assert len(traces) == 1
    run(embeddings, PROTOCOL, second)
    assert len(traces) == 1


def test_default_sizes_are_from_k_to_the_size_of_the_dictionary(embeddings):
    assert dictionary_study(embeddings, PROTOCOL, repeats=1).values == (10, 20, 50, 100, 120)
    assert dictionary_study(embeddings, PROTOCOL, repeats=1, k=30).values == (50, 100, 120)


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


def test_mean_and_std_equal_numpy_and_json_can_be_read_back(embeddings):
    study = few_shot_study(embeddings, PROTOCOL, (2, 5), draws=3)
    of_draws = study.series["bliss"].mean(axis=2)
    np.testing.assert_allclose(study.mean("bliss"), of_draws.mean(axis=1))
    np.testing.assert_allclose(study.std("bliss"), of_draws.std(axis=1))
    read = Study.from_json(study.to_json())
    assert read.to_json() == study.to_json()
    assert read.provenance["settings"]["draws"] == 3
    with pytest.raises(ValueError, match="expected a study"):
        Study.from_json({"name": "shots"})
    with pytest.raises(ValueError, match=r"series: expected arrays \[3, repeats, splits\]"):
        replace(study, values=(1.0, 2.0, 3.0))


def test_studies_that_differ_only_in_their_repeats_are_joined(embeddings):
    first, second = (few_shot_study(embeddings, PROTOCOL, (2, 5), draws=2, seed=s) for s in (0, 1))
    joined = join_repeats((first, second))
    assert joined.series["bliss"].shape == (2, 4, 3)
    np.testing.assert_allclose(
        joined.mean("bliss"), (first.mean("bliss") + second.mean("bliss")) / 2
    )
    assert joined.provenance["joined"] == 2
    with pytest.raises(ValueError, match="differ in values"):
        join_repeats((first, few_shot_study(embeddings, PROTOCOL, (2, 6), draws=2)))
    with pytest.raises(ValueError, match="differ in name"):
        join_repeats((first, parts_study(embeddings, PROTOCOL)))
    with pytest.raises(ValueError, match="at least one"):
        join_repeats(())
