"""A data set against out-of-distribution sets: numbers, conventions, groups, tables and files."""

import csv
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_embeddings
from rich.console import Console

import bliss_jax as bj
from bliss_jax.evaluation import Settings, ood_tables, to_csv, to_json
from bliss_jax.evaluation.ood import group_means
from bliss_jax.report import print_ood

C, D, M = 3, 8, 30
SCORES = ("bliss", "max_cosine")


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
    centres = random_embeddings(rng, C, D, around=images)
    near = lambda labels: reference.unit(
        centres[labels] + 0.3 * rng.normal(size=(len(labels), D))
    ).astype(np.float32)
    train, test = np.arange(90) % C, np.arange(60) % C
    embeddings = bj.EmbeddingSet(
        train_embeddings=near(train), train_labels=train, test_embeddings=near(test), test_labels=test,
        class_names=("ant", "bee", "cat"), label_embeddings=random_embeddings(rng, C, D, around=texts),
        dictionary=tuple(f"word {i}" for i in range(M)),
        dictionary_embeddings=random_embeddings(rng, M, D, around=texts), provenance={},
    )  # fmt: skip
    sets = [
        bj.OodSet("alike", near(np.arange(40) % C), "near", "made for this test"),
        bj.OodSet("others", random_embeddings(rng, 50, D, around=images), "far"),
        bj.OodSet("noise", random_embeddings(rng, 20, D), "far"),
    ]
    return embeddings, sets


@pytest.fixture(scope="module")
def evaluated(problem):
    return bj.evaluate_ood(*problem, Settings(scores=SCORES), name="mine")


def scores_of(embeddings, x):
    moments = bj.fit_moments(embeddings.train_embeddings, embeddings.train_labels, num_classes=C)
    e = embeddings
    return {
        "bliss": bj.bliss_score(x, e.label_embeddings, e.dictionary_embeddings, moments),
        "max_cosine": bj.max_cosine_score(x, e.label_embeddings),
    }


@pytest.mark.parametrize("convention", ["openood", pytest.param("mcm", marks=pytest.mark.slow)])
def test_metrics_are_those_of_the_pure_functions_on_each_set(problem, convention):
    embeddings, sets = problem
    found = bj.evaluate_ood(embeddings, sets, Settings(scores=SCORES), convention=convention)
    normal = scores_of(embeddings, embeddings.test_embeddings)
    for row in found.rows:
        assert row.settings["convention"] == convention
        for split, ood in zip(row.splits, sets, strict=True):
            own = scores_of(embeddings, ood.embeddings)[row.score]
            scores = np.concatenate([normal[row.score], own])
            is_anomaly = np.arange(len(scores)) >= len(embeddings.test_labels)
            expected = bj.ood_metrics(scores, is_anomaly, convention)
            values = split.auroc, split.aupr_normal, split.aupr_anomaly, split.fpr95
            np.testing.assert_allclose(values, expected, atol=2e-5)
            assert (split.name, split.group) == (ood.name, ood.group)
            assert split.interval[0] <= split.auroc <= split.interval[1]


def test_a_score_that_adapts_to_the_images_sees_one_set_at_a_time(problem):
    embeddings, sets = problem

    def surprise(embeddings, counted):
        """Distance from the mean of the images that count."""
        mean = jnp.mean(embeddings, axis=0, where=counted[:, None])
        return ((embeddings - mean[None, :]) ** 2).sum(axis=1)

    scores = bj.Score("surprise", surprise, transductive=True), "max_cosine"
    found = bj.evaluate_ood(embeddings, sets, Settings(scores=scores))
    x = embeddings.test_embeddings
    for row in found.rows:
        for split, ood in zip(row.splits, sets, strict=True):
            both = np.concatenate([x, ood.embeddings])
            own = surprise(both, np.ones(len(both), bool))
            if row.score == "max_cosine":
                own = scores_of(embeddings, both)["max_cosine"]
            expected = bj.auroc(own, np.arange(len(both)) >= len(x))
            assert split.auroc == pytest.approx(float(expected), abs=1e-5)


def test_groups_have_means_and_each_metric_a_table_with_a_column_per_set(evaluated):
    row = evaluated.rows[0]
    by_name = {split.name: split.auroc for split in row.splits}
    means = group_means(row, "auroc")
    assert means["near"] == by_name["alike"]
    assert means["far"] == pytest.approx((by_name["others"] + by_name["noise"]) / 2)
    assert means["all"] == pytest.approx(row.auroc)
    tables = ood_tables(evaluated)
    assert [table.title.split(" x")[0] for table in tables] == [
        "AUROC",
        "AUPR-in",
        "AUPR-out",
        "FPR95",
    ]
    columns = ("score", "alike", "others", "noise", "mean of near", "mean of far", "mean of all")
    assert all(table.headings == columns for table in tables)
    assert tables[0].rows[0][1] == f"{100 * by_name['alike']:.1f}"
    console = Console(record=True, width=200, file=io.StringIO())
    print_ood(evaluated, console)
    assert "FPR95 x 100 (openood)" in console.export_text()


def test_files_name_the_sets_and_their_groups(evaluated):
    document = json.loads(to_json([evaluated]))
    splits = document["rows"][0]["splits"]
    assert [(s["name"], s["group"]) for s in splits] == [
        ("alike", "near"),
        ("others", "far"),
        ("noise", "far"),
    ]
    made = document["provenance"]["evaluations"][0]
    assert made["ood"][0] == {
        "name": "alike",
        "group": "near",
        "images": 40,
        "source": "made for this test",
    }
    assert made["protocol"]["name"] == "mine"
    rows = list(csv.DictReader(io.StringIO(to_csv([evaluated]))))
    assert [row["split"] for row in rows[:3]] == ["alike", "others", "noise"]


def test_few_shot_draws_are_averaged(problem):
    few = Settings(scores=("bliss",), shots=5, draws=3)
    split = bj.evaluate_ood(*problem, few).rows[0].splits[1]
    assert len(split.draws) == 3
    assert split.auroc == pytest.approx(np.mean(split.draws))


def test_wrong_sets_are_refused(problem):
    embeddings, sets = problem
    one = sets[0]
    for given, message in [
        ([], "expected at least one out-of-distribution set"),
        ([one, one], "got twice: alike"),
        (
            [one._replace(embeddings=one.embeddings[:0])],
            r"embeddings \[images, 8\] of at least one",
        ),
        ([one._replace(embeddings=one.embeddings[:, :4])], r"of alike, got \[40, 4\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            bj.evaluate_ood(embeddings, given)
    with pytest.raises(ValueError, match="convention: expected one of bliss-jax, openood"):
        bj.evaluate_ood(embeddings, sets, convention="ours")
