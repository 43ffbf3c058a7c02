"""`evaluate` equals scores and metrics that are computed by hand for each split; inputs are checked."""

import csv
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_embeddings
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from bliss_jax.datasets import Protocol, Split
from bliss_jax.embedding import EmbeddingSet, load_embeddings, save_embeddings
from bliss_jax.evaluation import (
    Settings,
    default_scores,
    evaluate,
    score_split,
    score_table,
    training_rows,
)
from bliss_jax.evaluation import runner as evaluation
from bliss_jax.evaluation.results import to_csv, to_json
from bliss_jax.scores import Score, neglabel_score

C, D, M = 5, 24, 120
PROTOCOL = Protocol(
    "three",
    "custom",
    None,
    (Split((0, 1), (2, 3, 4)), Split((3, 4), (0, 1)), Split((0, 2, 4), (1, 3))),
)


@pytest.fixture(scope="module")
def embeddings() -> EmbeddingSet:
    rng = np.random.default_rng(0)
    images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
    centres = random_embeddings(rng, C, D, around=images)

    def sample(size):
        labels = rng.integers(0, C, size)
        x = centres[labels] + 0.15 * rng.normal(size=(size, D))
        return reference.unit(x).astype(np.float32), labels

    train, train_labels = sample(150)
    test, test_labels = sample(90)
    return EmbeddingSet(
        train,
        train_labels,
        test,
        test_labels,
        tuple("abcde"),
        random_embeddings(rng, C, D, around=texts),
        tuple(f"word {i}" for i in range(M)),
        random_embeddings(rng, M, D, around=texts),
        mcm_label_embeddings=random_embeddings(rng, C, D, around=texts),
        something_embedding=random_embeddings(rng, D),
        provenance={"model": {"name": "none"}},
    )


ALL = Settings(shrinkages=(0.0, 20.0))
"""All default scores, and BLISS with shrinkage."""


@pytest.fixture(scope="module")
def evaluated(embeddings):
    return evaluate(embeddings, PROTOCOL, ALL)


def in_split(e, split):
    """Masks of the test images that count in a split, and of the anomalies."""
    anomalous = np.isin(e.test_labels, split.anomalous)
    return anomalous | np.isin(e.test_labels, split.normal), anomalous


@pytest.mark.parity
def test_metrics_of_bliss_equal_numpy_and_scikit_learn_on_every_split(embeddings, evaluated):
    e = embeddings
    for row in evaluated.rows[:2]:
        assert row.score == "bliss"
        for split, result in zip(PROTOCOL.splits, row.splits, strict=True):
            *_, score = reference.bliss(
                e.test_embeddings,
                e.label_embeddings,
                e.dictionary_embeddings,
                e.train_embeddings,
                e.train_labels,
                split.normal,
                shrinkage=row.settings["shrinkage"],
            )
            counted, anomalous = in_split(e, split)
            assert result.normal == split.normal
            assert result.auroc == pytest.approx(
                roc_auc_score(anomalous[counted], score[counted]), abs=1e-5
            )
            expected = average_precision_score(anomalous[counted], score[counted])
            assert result.aupr_anomaly == pytest.approx(expected, abs=1e-5)
            expected = average_precision_score(~anomalous[counted], -score[counted])
            assert result.aupr_normal == pytest.approx(expected, abs=1e-5)
            assert result.interval[0] <= result.auroc <= result.interval[1]


def scores_in_numpy(e, split) -> dict[str, np.ndarray]:
    """Every score of the test images but BLISS, from the equations in the modules of `bliss_jax.scores`."""
    normal = np.array(split.normal)
    arrays = (e.test_embeddings, e.label_embeddings[normal], e.mcm_label_embeddings[normal])
    x, labels, mcm_labels = (np.asarray(a, np.float64) for a in arrays)
    of_class = [e.train_embeddings[e.train_labels == c].astype(np.float64) for c in normal]
    train, means = np.concatenate(of_class), [own.mean(axis=0) for own in of_class]
    centred = np.concatenate([own - mean for own, mean in zip(of_class, means, strict=True)])
    within = centred.T @ centred / len(centred)
    inverse = np.linalg.inv(within + 1e-3 * np.trace(within) / D * np.eye(D))
    internal, external, _ = reference.bliss(
        x, e.label_embeddings, e.dictionary_embeddings, e.train_embeddings, e.train_labels, normal
    )
    cosines = x @ labels.T
    texts = np.concatenate([labels, e.something_embedding[None]])
    # In float32 as in the library, because probabilities near 1 are equal to 1 there.
    p, with_something = (
        softmax((100 * x @ t.T).astype(np.float32), axis=1) for t in (labels, texts)
    )
    return {
        "internal": internal.min(axis=1),
        "external": external.min(axis=1),
        "max_cosine": -cosines.max(axis=1),
        "msp": -p.max(axis=1),
        "mcm": -softmax(x @ mcm_labels.T, axis=1).max(axis=1),
        "max_logit": -100 * cosines.max(axis=1),
        "energy": -logsumexp(100 * cosines, axis=1) / 100,
        "entropy": -(p * np.log(p)).sum(axis=1),
        "clip_ad": with_something[:, -1],
        "mahalanobis": np.min(
            [np.einsum("nd,de,ne->n", x - m, inverse, x - m) for m in means], axis=0
        ),
        "knn": -np.sort(x @ train.T, axis=1)[:, -10:].mean(axis=1),
    }


@pytest.mark.parity
def test_every_score_uses_the_normal_classes_alone(embeddings, evaluated):
    """The AUROCs equal those of the equations in NumPy (and of `neglabel_score`, whose groups are random)."""
    e = embeddings
    assert [row.score for row in evaluated.rows] == ["bliss", *default_scores()]
    assert [row.settings.get("shrinkage") for row in evaluated.rows[:3]] == [0.0, 20.0, None]
    for number, split in enumerate(PROTOCOL.splits):
        by_hand = scores_in_numpy(e, split)
        by_hand["neglabel"] = neglabel_score(
            e.test_embeddings, e.label_embeddings, e.dictionary_embeddings, jax.random.key(0),
            normal=np.isin(np.arange(C), split.normal),
        )  # fmt: skip
        counted, anomalous = in_split(e, split)
        for row in evaluated.rows[2:]:
            expected = roc_auc_score(anomalous[counted], np.asarray(by_hand[row.score])[counted])
            assert row.splits[number].auroc == pytest.approx(expected, abs=2e-3), row.score


def test_score_split_returns_the_scores_behind_the_aurocs(embeddings, evaluated):
    split = PROTOCOL.splits[1]
    chosen = ("bliss", "mcm", "mahalanobis", "knn", "neglabel")
    of_images = score_split(embeddings, split, replace(ALL, scores=chosen))
    counted, anomalous = in_split(embeddings, split)
    np.testing.assert_array_equal(of_images.rows, np.flatnonzero(counted))
    np.testing.assert_array_equal(of_images.is_anomaly, anomalous[counted])
    assert list(of_images.scores) == ["bliss", "bliss, shrinkage 20", *chosen[1:]]
    rows = [row for row in evaluated.rows if row.score in chosen]
    for row, score in zip(rows, of_images.scores.values(), strict=True):
        expected = roc_auc_score(of_images.is_anomaly, score)
        assert row.splits[1].auroc == pytest.approx(expected, abs=2e-3), row.score


def test_a_score_that_adapts_to_the_images_sees_those_of_its_split(embeddings):
    """Images of classes that are neither normal nor anomalous do not count."""

    def distance(embeddings, counted):
        return abs(embeddings[:, 0] - jax.numpy.mean(embeddings[:, 0], where=counted))

    score = Score("distance", distance, transductive=True)
    found = evaluate(embeddings, PROTOCOL, Settings(scores=(score,))).rows[0]
    for split, result in zip(PROTOCOL.splits, found.splits, strict=True):
        in_test, anomalous = in_split(embeddings, split)
        x, is_anomaly = embeddings.test_embeddings[in_test], anomalous[in_test]
        expected = abs(x[:, 0] - x[:, 0].mean())
        assert result.auroc == pytest.approx(roc_auc_score(is_anomaly, expected), abs=1e-5)
        by_image = score_split(embeddings, split, Settings(scores=(score,))).scores["distance"]
        np.testing.assert_allclose(by_image, expected, atol=1e-6)


@pytest.mark.parity
def test_few_shot_draws_equal_numpy_and_depend_only_on_the_seed(embeddings):
    e, n0 = embeddings, (0.0, 20.0)
    settings = Settings(scores=("bliss", "knn"), shrinkages=n0, shots=4, draws=6, seed=1)
    rows = evaluate(e, PROTOCOL, settings).rows
    assert rows == evaluate(e, PROTOCOL, settings).rows
    other = evaluate(e, PROTOCOL, replace(settings, seed=2)).rows
    assert rows[0].splits[0].draws != other[0].splits[0].draws
    assert [(row.score, row.settings.get("shrinkage")) for row in rows] == [
        ("bliss", 0.0),
        ("bliss", 20.0),
        ("knn", None),
    ]
    assert rows[2].settings["k"] == 8, "k of knn: the smallest split has two classes of four images"
    drawn = training_rows(e, np.ones(C, bool), shots=4, draws=6, seed=1)
    for i, split in enumerate(PROTOCOL.splits):
        counted, anomalous = in_split(e, split)
        for row, shrinkage in zip(rows, n0, strict=False):
            expected = []
            for chosen in drawn:
                *_, score = reference.bliss(
                    e.test_embeddings, e.label_embeddings, e.dictionary_embeddings,
                    e.train_embeddings[chosen], e.train_labels[chosen], split.normal,
                    shrinkage=shrinkage,
                )  # fmt: skip
                expected.append(roc_auc_score(anomalous[counted], score[counted]))
            assert row.splits[i].draws == pytest.approx(expected, abs=1e-5)
            assert row.splits[i].auroc == pytest.approx(np.mean(expected), abs=1e-5)


def test_as_many_shots_as_images_select_the_whole_training_set(embeddings):
    e = embeddings
    keep = np.concatenate([np.flatnonzero(e.train_labels == c)[:15] for c in range(C)])
    e = replace(e, train_embeddings=e.train_embeddings[keep], train_labels=e.train_labels[keep])
    [whole] = training_rows(e, np.ones(C, bool), shots=None, draws=1, seed=0)
    for rows in training_rows(e, np.ones(C, bool), shots=15, draws=3, seed=0):
        np.testing.assert_array_equal(np.sort(rows), whole)


def test_other_splits_and_weights_of_the_same_shape_compile_nothing(embeddings, evaluated):
    compiled = evaluation._evaluate_draws._cache_size
    before = compiled()
    other = Protocol("other", "custom", None, PROTOCOL.splits[::-1])
    reverse = evaluate(embeddings, other, replace(ALL, weight=0.7))
    assert compiled() == before
    of_split = [[split.auroc for split in e.rows[2].splits] for e in (evaluated, reverse)]
    assert of_split[0] == of_split[1][::-1]


def test_anomalous_classes_need_no_training_images(embeddings, evaluated):
    """CIFAR+10 is fitted on CIFAR-10 only, because the anomalous classes have no training images."""
    e = embeddings
    keep = np.isin(e.train_labels, PROTOCOL.splits[0].normal)
    without = replace(
        e, train_embeddings=e.train_embeddings[keep], train_labels=e.train_labels[keep]
    )
    one = Protocol("one", "custom", None, PROTOCOL.splits[:1])
    rows = evaluate(without, one, Settings(scores=("bliss", "knn"))).rows
    expected = {row.score: row for row in evaluated.rows[1:]} | {"bliss": evaluated.rows[0]}
    for row in rows:
        assert row.auroc == pytest.approx(expected[row.score].splits[0].auroc, abs=2e-3), row.score


def test_scores_that_lack_an_input_are_listed_with_the_reason(embeddings):
    without = replace(embeddings, something_embedding=None)
    result = evaluate(without, PROTOCOL, Settings(scores=("clip_ad", "max_cosine")))
    assert [row.score for row in result.rows] == ["max_cosine"]
    assert result.left_out == {"clip_ad": "the embeddings have no array something_embedding"}
    with pytest.raises(ValueError, match="can be computed"):
        evaluate(without, PROTOCOL, Settings(scores=("clip_ad",)))


def test_one_image_per_class_gives_finite_scores_and_no_mahalanobis_distance(embeddings):
    fitted = ("bliss", "mahalanobis", "knn")
    result = evaluate(embeddings, PROTOCOL, Settings(scores=fitted, shots=1, draws=2))
    assert result.left_out == {"mahalanobis": "a covariance needs more than one image per class"}
    assert all(np.isfinite(split.auroc) for row in result.rows for split in row.splits)


def test_a_small_dictionary_excludes_only_the_scores_that_need_a_larger_one(embeddings):
    small = replace(
        embeddings, dictionary=("a",), dictionary_embeddings=embeddings.dictionary_embeddings[:1]
    )
    result = evaluate(small, PROTOCOL, Settings(scores=("max_cosine", "neglabel")))
    assert [row.score for row in result.rows] == ["max_cosine"]
    assert result.left_out == {
        "neglabel": "it uses 15 % of the dictionary, which is less than one of 1 texts"
    }


def test_json_and_csv_contain_every_row_with_its_provenance(evaluated):
    document = json.loads(to_json([evaluated], command="a command"))
    assert document["provenance"]["command"] == "a command"
    assert [row["score"] for row in document["rows"]] == ["bliss", *default_scores()]
    row = document["rows"][0]
    assert row["protocol"] == "three"
    assert row["auroc"] == pytest.approx(np.mean([s["auroc"] for s in row["splits"]]))
    assert row["auroc_std"] == pytest.approx(np.std([s["auroc"] for s in row["splits"]]))
    assert [split["normal"] for split in row["splits"]] == [[0, 1], [3, 4], [0, 2, 4]]
    [provenance] = document["provenance"]["evaluations"]
    assert provenance["protocol"]["family"] == "custom"
    assert provenance["settings"]["lambda"] == 0.5
    assert provenance["embeddings"]["model"] == {"name": "none"}
    lines = list(csv.DictReader(to_csv([evaluated]).splitlines()))
    assert len(lines) == (1 + len(default_scores())) * 3
    assert lines[0]["family"] == row["family"] == "custom"
    assert json.loads(lines[0]["provenance"])["embeddings"]["model"] == {"name": "none"}
    assert provenance["class_names"] == list("abcde")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ("blis",)}, r"unknown score 'blis' \(did you mean bliss\?\)"),
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"shots": 0}, "shots: expected at least 1, got 0"),
        ({"draws": 3}, "draws: expected 1 without shots.*got 3"),
        ({"shrinkages": (-1.0,)}, "shrinkages: expected finite numbers"),
        ({"scores": ()}, "expected at least one value of each"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


@pytest.mark.parametrize(
    ("split", "settings", "message"),
    [
        (Split((0,), (7,)), {}, "names class 7, but the embeddings have 5 classes"),
        (Split((0,), (1,)), {"shots": 100}, r"normal class 0 \(a\): expected at least 100"),
        (Split((0,), (1,)), {"k": 121}, r"k: expected an integer in 1..120"),
    ],
)
def test_evaluations_that_do_not_fit_the_embeddings_are_rejected(
    embeddings, split, settings, message
):
    with pytest.raises(ValueError, match=message):
        evaluate(embeddings, Protocol("p", "custom", None, (split,)), Settings(**settings))


def test_a_split_without_anomalous_test_images_is_rejected(embeddings):
    keep = embeddings.test_labels != 4
    without = replace(
        embeddings,
        test_embeddings=embeddings.test_embeddings[keep],
        test_labels=embeddings.test_labels[keep],
    )
    with pytest.raises(ValueError, match="split 0: expected at least one anomalous image"):
        evaluate(without, Protocol("p", "custom", None, (Split((0,), (4,)),)))


def test_saved_embeddings_are_loaded_unchanged(embeddings, tmp_path):
    file = tmp_path / "e.npz"
    save_embeddings(embeddings, file)
    read = load_embeddings(file)
    for name in ("train_embeddings", "test_labels", "dictionary_embeddings", "something_embedding"):
        np.testing.assert_array_equal(getattr(read, name), getattr(embeddings, name))
    assert (read.class_names, read.dictionary) == (embeddings.class_names, embeddings.dictionary)
    assert read.provenance["model"] == {"name": "none"}
    assert read.provenance["read"]["normalised_on_reading"] == []
    assert list(tmp_path.iterdir()) == [file]


def arrays_of(embeddings) -> dict[str, np.ndarray]:
    names = "train_embeddings train_labels test_embeddings test_labels class_names label_embeddings"
    names += " dictionary dictionary_embeddings"
    return {name: np.asarray(getattr(embeddings, name)) for name in names.split()}


def test_rows_are_normalised_on_reading_and_the_provenance_records_it(embeddings, tmp_path):
    arrays = arrays_of(embeddings)
    arrays["train_embeddings"] = 3 * arrays["train_embeddings"].astype(np.float64)
    np.savez(tmp_path / "e.npz", **arrays)
    read = load_embeddings(tmp_path / "e.npz")
    np.testing.assert_allclose(read.train_embeddings, embeddings.train_embeddings, atol=1e-7)
    assert read.train_embeddings.dtype == np.float32
    assert read.provenance["read"]["normalised_on_reading"] == ["train_embeddings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("dictionary"), r"missing arrays \['dictionary'\]"),
        (lambda a: a.update(extra=np.zeros(3)), r"unknown arrays \['extra'\]"),
        (
            lambda a: a.update(train_labels=a["train_labels"] + 9),
            "train_labels: expected positions",
        ),
        (
            lambda a: a.update(test_embeddings=a["test_embeddings"][:3]),
            "test_embeddings: expected float",
        ),
        (
            lambda a: a.update(class_names=np.array(list("abcde"), object)),
            "not an .npz file of plain",
        ),
        (lambda a: a.update(class_names=np.arange(5)), "class_names: expected strings"),
        (lambda a: a["test_embeddings"].fill(np.nan), "test_embeddings must contain finite"),
        (lambda a: a["test_embeddings"].fill(0), "test_embeddings contains a row of zeros"),
        (lambda a: a.update(provenance=np.asarray("[1]")), "provenance is not a JSON object"),
        (lambda a: a.update(provenance=np.asarray("{")), "e.npz: Expecting"),
    ],
)
def test_invalid_embedding_files_are_rejected(embeddings, tmp_path, change, message, unchecked):
    arrays = {name: array.copy() for name, array in arrays_of(embeddings).items()}
    change(arrays)
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "e.npz")


def test_damaged_files_are_rejected_with_the_name_of_the_file(embeddings, tmp_path):
    save_embeddings(embeddings, tmp_path / "e.npz")
    whole = (tmp_path / "e.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 8):
            damaged[position] = rng.integers(256)
        (tmp_path / "e.npz").write_bytes(damaged)
        try:
            load_embeddings(tmp_path / "e.npz")
        except ValueError as error:
            assert str(error).startswith("e.npz: ")
            refused += 1
    assert refused > 250


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x93NUMPY", b"hello"])
def test_files_that_are_not_archives_are_rejected_with_their_name(tmp_path, content):
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.npz: not an \.npz file"):
        load_embeddings(tmp_path / "broken.npz")


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
def test_blocks_of_splits_do_not_change_the_scores(rows):
    masks = np.random.default_rng(0).random((7, 5)) < 0.5
    counted = np.random.default_rng(1).random((7, 4)) < 0.5

    def score(normal, counted):
        return normal.sum(dtype=jnp.float32) + jnp.where(counted, 10.0, 0.0)

    found = score_table._in_equal_blocks(score, jnp.asarray(masks), jnp.asarray(counted), rows=rows)
    np.testing.assert_array_equal(found, masks.sum(axis=1)[:, None] + 10 * counted)
