"""The study of variants: each variant where it must equal BLISS, and the protocol it is judged by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from click.testing import CliRunner
from reference import random_embeddings

from bliss_jax import metrics
from bliss_jax.datasets import load_protocol
from bliss_jax.embedding import EmbeddingSet, save_embeddings
from bliss_jax.scores import bliss_score, fit_moments, whitened_bliss_score
from experiments.score_variants import compare as study
from experiments.score_variants import directions, paired_differences, parts, variants

C, D, M = 4, 24, 130


def make_set(seed=0, train=60, test=48) -> EmbeddingSet:
    """Embeddings with the geometry of CLIP's: images in one cone, texts in another."""
    rng = np.random.default_rng(seed)
    image_cone, text_cone = random_embeddings(rng, D), random_embeddings(rng, D)
    centres = random_embeddings(rng, C, D, around=image_cone, spread=0.4)

    def images(n):
        labels = np.arange(n) % C
        x = centres[labels] + 0.12 * rng.normal(size=(n, D))
        return reference.unit(x).astype(np.float32), labels

    return EmbeddingSet(
        *images(train), *images(test), tuple("abcd"),
        random_embeddings(rng, C, D, around=text_cone),
        tuple(map(str, range(M))), random_embeddings(rng, M, D, around=text_cone),
    )  # fmt: skip


@pytest.fixture(scope="module")
def embeddings():
    return make_set()


def make_task(e: EmbeddingSet, normal=(0, 2, 3), fitted=slice(None), n0=0.0) -> parts.Task:
    """The first split of a protocol with these normal classes; one class more as padding."""
    protocol = load_protocol("leave-one-out", dataset="abcd", num_classes=C)
    split = protocol.splits[0].__class__(tuple(normal), tuple(set(range(C)) - set(normal)))
    splits = study._splits(
        protocol.__class__("one", "custom", None, (split, protocol.splits[0])),
        e.train_labels, C, len(e.train_labels),
    )  # fmt: skip
    used = np.zeros(len(e.train_labels), bool)
    used[fitted] = True
    data = study._data(e)
    fit = study.Fits(used, np.arange(len(e.test_labels)))
    first = jax.tree.map(lambda a: a[0], splits)
    return study._task(data, first, data.test, fit, jnp.float32(n0))


@pytest.mark.parity
@pytest.mark.parametrize("n0", [0.0, 20.0])
@pytest.mark.parametrize("normal", [(0, 2, 3), (1,)])
def test_the_row_compared_with_is_the_librarys_score(embeddings, normal, n0):
    e, fitted = embeddings, slice(0, 44)
    moments = fit_moments(e.train_embeddings[fitted], e.train_labels[fitted], num_classes=C)
    expected = bliss_score(
        e.test_embeddings, e.label_embeddings, e.dictionary_embeddings, moments,
        normal=np.isin(np.arange(C), normal), shrinkage=n0,
    )  # fmt: skip
    task = make_task(e, normal, fitted, n0)
    np.testing.assert_allclose(variants.bliss(task), expected, atol=2e-3)
    plain = task._replace(n0=jnp.float32(0))
    np.testing.assert_allclose(variants.shrunk(plain, n0), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        (variants.k_and_lambda, (10.0, 0.5)),
        (variants.weighted_words, (0.0,)),
        (variants.z_among_nearest, (10,)),
        (variants.without_synonyms, (0.0,)),
        (variants.shrunk_mean, (0.0,)),
        (variants.centred_texts, (0.0,)),
        (variants.softmin_class, (1e-4,)),
    ],
)
@pytest.mark.parametrize("n0", [0.0, 20.0])
def test_variants_with_a_neutral_setting_are_bliss_there(embeddings, variant, setting, n0):
    task = make_task(embeddings, n0=n0)
    np.testing.assert_allclose(variant(task, *setting), variants.bliss(task), atol=2e-3)


def all_z(task: parts.Task, m: parts.Moments) -> np.ndarray:
    """z-scores of all words [images, words, classes], in NumPy."""
    deviation = np.sqrt(np.asarray(m.variance)) + 1e-8
    return (np.asarray(task.test.to_words)[:, :, None] - np.asarray(m.mean).T) / deviation.T


def test_soft_top_k_of_a_high_temperature_is_the_mean_over_the_dictionary(embeddings):
    task = make_task(embeddings)
    m = parts.of_words(task)
    z = all_z(task, m)
    inside = parts.internal(task, task.test, parts.of_labels(task))
    expected = parts.combined(task, inside, z.mean(axis=1))
    np.testing.assert_allclose(variants.soft_top_k(task, 1e5), expected, atol=2e-3)


def test_top_k_by_z_takes_the_largest(embeddings):
    task = make_task(embeddings)
    m = parts.of_words(task)
    z = all_z(task, m)
    largest = np.sort(z, axis=1)[:, -5:].mean(axis=1)
    inside = parts.internal(task, task.test, parts.of_labels(task))
    expected = parts.combined(task, inside, largest)
    np.testing.assert_allclose(variants.top_k_by_z(task, 5.0), expected, atol=2e-3)


@pytest.mark.parity
@pytest.mark.parametrize("n0", [0.0, 3.0])
def test_leaving_an_image_out_of_its_class_has_a_closed_form(embeddings, n0):
    """Against a fit without the image (the pooled variance apart, which hardly moves)."""
    task = make_task(embeddings, normal=(1,), n0=n0)
    inside, outside = variants.own_class_left_out(task)
    row = int(np.flatnonzero(task.member[0])[3])
    alone = task._replace(member=task.member.at[0, row].set(0))
    m = parts.of_labels(alone)
    expected = -(task.train.to_labels[row, 0] - m.mean[0, 0]) / np.sqrt(m.variance[0, 0])
    tolerance = 1e-3 if n0 == 0 else 0.1
    assert abs(inside[row, 0] - expected) < tolerance
    z = parts.z_nearest(task.train, parts.of_words(alone), 10)[row, :, 0].mean()
    assert abs(outside[row, parts.SIZES.index(10), 0] - z) < tolerance


def test_the_mean_word_has_the_variance_of_its_own_cosines(embeddings):
    """And lambda (mean word) - t_c that of one text: correlations are in."""
    e = embeddings
    task = make_task(e, normal=(0, 2, 3))
    own = e.train_embeddings[e.train_labels == 2]
    nearest = np.argsort(-(e.test_embeddings @ e.dictionary_embeddings.T), axis=1)[:, :10]
    word = e.dictionary_embeddings[nearest].mean(axis=1)
    difference, variance, covariance = directions.mean_word_parts(task)
    np.testing.assert_allclose(variance[:, 1], (own @ word.T).var(axis=0), rtol=1e-3)
    direction = 0.5 * word - e.label_embeddings[2]
    label = (own @ e.label_embeddings[2]).var()
    expected = (own @ direction.T).var(axis=0)
    got = 0.25 * variance[:, 1] + label - covariance[:, 1]
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    expected = (e.test_embeddings * word).sum(axis=1) - (own @ word.T).mean(axis=0)
    np.testing.assert_allclose(difference[:, 1], expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize("normal", [(0, 2, 3), (1,)])
def test_whitened_texts_are_the_librarys(embeddings, normal, ridge):
    e = embeddings
    moments = fit_moments(e.train_embeddings, e.train_labels, num_classes=C)
    expected = whitened_bliss_score(
        e.test_embeddings, e.label_embeddings, e.dictionary_embeddings, moments,
        normal=np.isin(np.arange(C), normal), ridge=ridge,
    )  # fmt: skip
    got = variants.whitened_texts(make_task(e, normal), ridge)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("images", [20, 60])  # fewer than dimensions, and more
def test_whitened_words_are_matched_filters(embeddings, images):
    """t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t) with S the covariance within the normal classes."""
    e = EmbeddingSet(
        **{
            **vars(embeddings),
            "train_embeddings": embeddings.train_embeddings[:images],
            "train_labels": embeddings.train_labels[:images],
        }
    )
    task, normal = make_task(e, normal=(0, 2, 3)), (0, 2, 3)
    of_class = [e.train_embeddings[e.train_labels == c].astype(float) for c in normal]
    centred = np.concatenate([x - x.mean(axis=0) for x in of_class])
    cov = centred.T @ centred / len(centred)
    cov += 0.5 * np.trace(cov) / D * np.eye(D)

    def z(texts, mean):
        filtered = np.linalg.solve(cov, texts.T).T
        deviation = np.sqrt((filtered * texts).sum(axis=1))
        return (e.test_embeddings - mean) @ filtered.T / deviation

    nearest = np.argsort(-(e.test_embeddings @ e.dictionary_embeddings.T), axis=1)[:, :10]
    per_class = []
    for c, x in zip(normal, of_class, strict=True):
        words = np.take_along_axis(z(e.dictionary_embeddings, x.mean(axis=0)), nearest, axis=1)
        label = z(e.label_embeddings[[c]], x.mean(axis=0))[:, 0]
        per_class.append(-label + 0.7 * words.mean(axis=1))
    got = variants.whitened_words(task, 0.5, 0.7)
    np.testing.assert_allclose(got, np.min(per_class, axis=0), rtol=2e-3, atol=2e-3)


def test_pseudo_anomalies_of_one_class_leave_the_papers_values(embeddings):
    task = make_task(embeddings, normal=(1,))
    got = variants.chosen_by_pseudo_anomalies(task)
    np.testing.assert_allclose(got, variants.bliss(task), atol=2e-3)


@pytest.mark.parity
def test_areas_are_the_librarys_aurocs():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.integers(0, 9, 60).astype(np.float32))  # with ties
    anomaly, counted = rng.random(60) < 0.4, rng.random(60) < 0.8
    expected = metrics.auroc(scores, anomaly, where=counted)
    np.testing.assert_allclose(
        variants.area(scores, anomaly & counted, ~anomaly & counted), expected, atol=1e-6
    )
    mean, _ = study._area_and_influence(scores, anomaly & counted, ~anomaly & counted)
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_influences_are_derivatives_by_an_images_weight():
    """Weight 1 + h for one image, in the weighted AUROC written as a sum over pairs."""
    rng = np.random.default_rng(1)
    scores, anomaly = rng.integers(0, 9, 30).astype(np.float32), rng.random(30) < 0.4

    def weighted(w):
        won = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        a, n = w * anomaly, w * ~anomaly
        return a @ won @ n / a.sum() / n.sum()

    _, influence = study._area_and_influence(jnp.asarray(scores), anomaly, ~anomaly)
    for i in range(0, 30, 7):
        h = 1e-6 * np.eye(30)[i]
        np.testing.assert_allclose(
            influence[i], (weighted(1 + h) - weighted(1 - h)) / 2e-6, atol=1e-5
        )


NAMES = ("BLISS", "lambda", "softmin over classes")


@pytest.fixture(scope="module")
def protocols():
    return [
        load_protocol(name, dataset="abcd", num_classes=C)
        for name in ("one-class", "leave-one-out")
    ]


@pytest.fixture(scope="module")
def measured(embeddings, protocols):
    return study.measure([embeddings], protocols, names=NAMES)


def test_test_images_have_no_part_in_a_choice(embeddings, protocols, measured):
    other = make_set(seed=5)
    swapped = EmbeddingSet(
        **{**vars(embeddings), "test_embeddings": other.test_embeddings},
    )
    assert study.measure([swapped], protocols, names=NAMES).choices == measured.choices


def test_a_setting_is_chosen_on_other_splits_than_those_it_is_reported_on():
    """Of two settings the better one on the used splits is taken, though the worse on all others."""
    areas = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])[None]  # [fits, splits, settings]
    rows, compared = np.array([0, 0]), np.array([True])
    first = np.array([True, False, False])
    assert study.choose([areas], [first], rows, compared).tolist() == [0, 0]
    assert study.choose([areas], [~first], rows, compared).tolist() == [1, 1]


def test_a_second_look_has_no_part_in_the_best_of_all():
    areas = np.array([[0.6, 0.9]])[None]
    used, rows, compared = [np.array([True])], np.array([0, 1]), np.array([True, False])
    assert study.choose([areas], used, rows, compared).tolist() == [0, 1, 0]


def test_the_best_of_all_is_one_of_them(measured):
    assert set(measured.choices[-1]) <= {
        f"{name}: {label}" for name in NAMES for label in study._settings([name])[0]
    }


def test_reported_areas_of_all_images_are_the_librarys(embeddings, protocols, measured):
    e = embeddings
    moments = fit_moments(e.train_embeddings, e.train_labels, num_classes=C)
    for p, protocol in enumerate(protocols):
        for s, split in enumerate(protocol.splits):
            normal = np.isin(np.arange(C), split.normal)
            score = bliss_score(
                e.test_embeddings, e.label_embeddings, e.dictionary_embeddings, moments,
                normal=normal,
            )  # fmt: skip
            expected = metrics.auroc(score, ~normal[e.test_labels])
            assert abs(measured.areas[p][-1, s, 0] - expected) < 2e-3


def test_differences_of_a_row_to_itself_are_nothing_and_intervals_hold_the_mean(measured):
    found = paired_differences.differences(measured, 0, samples=200, seed=0)
    assert not found.mean[:, 0].any()
    assert not found.interval[:, :, 0].any()
    low, high = found.interval
    assert (low <= found.mean + 1e-9).mean() > 0.9
    assert (found.mean <= high + 1e-9).mean() > 0.9
    assert (found.together[0] <= found.mean[-1]).all()
    # What holds for all rows at once is wider than what holds for one.
    assert (found.together[1] - found.together[0] >= 0.9 * (high - low)[-1]).all()


def test_bootstrap_of_images_alone_agrees_with_delong():
    """One split, one row against a constant score: the spread is DeLong's standard error."""
    rng = np.random.default_rng(3)
    anomaly = np.arange(400) < 150
    scores = (rng.normal(size=400) + anomaly).astype(np.float32)
    mean, influence = study._area_and_influence(jnp.asarray(scores), anomaly, ~anomaly)
    areas = np.array([0.5, float(mean)]).reshape(1, 1, 2)
    influences = np.stack([np.zeros(400), np.asarray(influence)]).reshape(1, 1, 2, 400)
    one = paired_differences.Measured([areas], [influences.astype(np.float32)], [])
    found = paired_differences.differences(one, 0, samples=4000, seed=0)
    low, high = metrics.auroc_interval(scores, anomaly)
    np.testing.assert_allclose(found.interval[:, -1, 1] / 100 + 0.5, [low, high], atol=4e-3)


def test_the_command_writes_a_table_and_the_numbers(tmp_path, embeddings, monkeypatch):
    monkeypatch.setattr(study, "SHOTS", (5, None))
    monkeypatch.setattr(study, "DRAWS", 1)
    save_embeddings(embeddings, tmp_path / "set.npz")
    arguments = ["--embeddings", tmp_path / "set.npz", "--only", "lambda", "--samples", "50"]
    arguments += ["--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md"]
    result = CliRunner().invoke(study.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a.md").read_text()
    rows = ("| lambda |", "| shrinkage 20 + lambda |", f"| {study.BEST} |")
    assert all(row in text for row in rows)
    assert '"interval_of_mean_for_all_rows"' in (tmp_path / "a.json").read_text()
