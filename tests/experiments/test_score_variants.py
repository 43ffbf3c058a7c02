"""Each score variant equals BLISS or NumPy in known cases, and settings are chosen without test data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from click.testing import CliRunner
from reference import random_embeddings
from sklearn.metrics import roc_auc_score

from bliss_jax import metrics
from bliss_jax.datasets import load_protocol
from bliss_jax.embedding import EmbeddingSet, save_embeddings
from bliss_jax.scores import fit_moments, whitened_bliss_score
from experiments.score_variants import compare as study
from experiments.score_variants import directions, paired_differences, parts, variants

C, D, M = 4, 24, 130


def make_set(seed=0, train=60, test=48) -> EmbeddingSet:
    """Returns embeddings with images and texts in separate cones, as in CLIP."""
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
    """Returns the task of a split with these normal classes, padded to three classes."""
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
    return jax.jit(study._task)(data, first, data.test, fit, jnp.float32(n0))


def scores_of(variant, task: parts.Task, *setting: float) -> np.ndarray:
    """Runs a variant as the study does: compiled once, with traced settings."""
    return np.asarray(jax.jit(variant)(task, *map(jnp.float32, setting)))


@pytest.mark.parity
@pytest.mark.parametrize("n0", [0.0, 20.0])
@pytest.mark.parametrize("normal", [(0, 2, 3), (1,)])
def test_the_first_variant_equals_the_equations_in_numpy(embeddings, normal, n0):
    e, fitted = embeddings, slice(0, 44)
    *_, expected = reference.bliss(
        e.test_embeddings, e.label_embeddings, e.dictionary_embeddings,
        e.train_embeddings[fitted], e.train_labels[fitted], normal, shrinkage=n0,
    )  # fmt: skip
    task = make_task(e, normal, fitted, n0)
    np.testing.assert_allclose(scores_of(variants.bliss, task), expected, atol=2e-3)
    plain = task._replace(n0=jnp.float32(0))
    np.testing.assert_allclose(scores_of(variants.shrunk, plain, n0), expected, atol=2e-3)


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
def test_variants_with_a_neutral_setting_equal_bliss(embeddings, variant, setting, n0):
    task = make_task(embeddings, n0=n0)
    expected = scores_of(variants.bliss, task)
    np.testing.assert_allclose(scores_of(variant, task, *setting), expected, atol=2e-3)


@jax.jit
def z_and_internal(task: parts.Task) -> tuple[jax.Array, jax.Array]:
    """Computes the z-scores of all words [images, words, classes], and the internal class scores."""
    words, labels = parts.of_words(task), parts.of_labels(task)
    mean, deviation = words.mean.T[None], parts.deviation(words.variance).T[None]
    z = (task.test.to_words[:, :, None] - mean) / deviation
    return z, parts.internal(task, task.test, labels)


def test_soft_top_k_at_a_high_temperature_is_the_mean_over_the_dictionary(embeddings):
    task = make_task(embeddings)
    z, internal = map(np.asarray, z_and_internal(task))
    expected = (internal + 0.5 * z.mean(axis=1)).min(axis=1)
    np.testing.assert_allclose(scores_of(variants.soft_top_k, task, 1e5), expected, atol=2e-3)


def test_top_k_by_z_uses_the_largest_z_scores(embeddings):
    task = make_task(embeddings)
    z, internal = map(np.asarray, z_and_internal(task))
    expected = (internal + 0.5 * np.sort(z, axis=1)[:, -5:].mean(axis=1)).min(axis=1)
    np.testing.assert_allclose(scores_of(variants.top_k_by_z, task, 5.0), expected, atol=2e-3)


@pytest.mark.parity
@pytest.mark.parametrize("n0", [0.0, 3.0])
def test_closed_form_of_leaving_an_image_out_equals_a_fit_without_it(embeddings, n0):
    """Only the pooled variance differs, and only slightly, because it includes the image."""
    task = make_task(embeddings, normal=(1,), n0=n0)
    inside, outside = jax.jit(variants.own_class_left_out)(task)
    row = int(np.flatnonzero(task.member[0])[3])
    member = np.array(task.member)
    member[0, row] = 0
    alone = task._replace(member=jnp.asarray(member))
    labels, words = jax.jit(lambda t: (parts.of_labels(t), parts.of_words(t)))(alone)
    expected = -(task.train.to_labels[row, 0] - labels.mean[0, 0]) / np.sqrt(labels.variance[0, 0])
    tolerance = 1e-3 if n0 == 0 else 0.1
    assert abs(inside[row, 0] - expected) < tolerance
    z = np.asarray(jax.jit(parts.z_nearest, static_argnames="k")(task.train, words, k=10))
    z = z[row, :, 0].mean()
    assert abs(outside[row, parts.SIZES.index(10), 0] - z) < tolerance


def test_variances_of_the_mean_word_include_correlations(embeddings):
    """They equal the variances of the cosines to the mean word and to lambda (mean word) - t_c."""
    e = embeddings
    task = make_task(e, normal=(0, 2, 3))
    own = e.train_embeddings[e.train_labels == 2]
    nearest = np.argsort(-(e.test_embeddings @ e.dictionary_embeddings.T), axis=1)[:, :10]
    word = e.dictionary_embeddings[nearest].mean(axis=1)
    difference, variance, covariance = jax.jit(directions.mean_word_parts)(task)
    np.testing.assert_allclose(variance[:, 1], (own @ word.T).var(axis=0), rtol=1e-3)
    direction = 0.5 * word - e.label_embeddings[2]
    label = (own @ e.label_embeddings[2]).var()
    expected = (own @ direction.T).var(axis=0)
    got = 0.25 * variance[:, 1] + label - covariance[:, 1]
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    expected = (e.test_embeddings * word).sum(axis=1) - (own @ word.T).mean(axis=0)
    np.testing.assert_allclose(difference[:, 1], expected, atol=1e-5)


@jax.jit
def whitened(train, labels, arrays, normal, ridge):
    moments = fit_moments(train, labels, num_classes=C)
    return whitened_bliss_score(*arrays, moments, normal=normal, ridge=ridge)


@pytest.mark.parity
@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize("normal", [(0, 2, 3), (1,)])
def test_whitened_texts_equal_the_librarys_score(embeddings, normal, ridge):
    e = embeddings
    expected = whitened(e.train_embeddings, e.train_labels, (e.test_embeddings, e.label_embeddings,
                        e.dictionary_embeddings), np.isin(np.arange(C), normal), ridge)  # fmt: skip
    got = scores_of(variants.whitened_texts, make_task(e, normal), ridge)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("images", [20, 60])  # fewer than dimensions, and more
def test_whitened_words_are_matched_filters(embeddings, images):
    """z = t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t), where S is the covariance within the normal classes."""
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
    got = scores_of(variants.whitened_words, task, 0.5, 0.7)
    np.testing.assert_allclose(got, np.min(per_class, axis=0), rtol=2e-3, atol=2e-3)


def test_with_one_normal_class_pseudo_anomalies_keep_the_papers_values(embeddings):
    task = make_task(embeddings, normal=(1,))
    got = scores_of(variants.chosen_by_pseudo_anomalies, task)
    np.testing.assert_allclose(got, scores_of(variants.bliss, task), atol=2e-3)


@pytest.mark.parity
def test_areas_equal_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 60).astype(np.float32)  # with ties
    anomaly, counted = rng.random(60) < 0.4, rng.random(60) < 0.8
    sides = jnp.asarray(anomaly & counted), jnp.asarray(~anomaly & counted)
    expected = roc_auc_score(anomaly[counted], scores[counted])
    area = jax.jit(variants.area)(scores, *sides)
    mean, _ = area_and_influence(scores, *sides)
    np.testing.assert_allclose([area, mean], expected, atol=1e-6)


def test_influences_equal_finite_differences_by_the_weight_of_an_image():
    """The weighted AUROC is computed as a sum over pairs."""
    rng = np.random.default_rng(1)
    scores, anomaly = rng.integers(0, 9, 30).astype(np.float32), rng.random(30) < 0.4

    def weighted(w):
        won = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        a, n = w * anomaly, w * ~anomaly
        return a @ won @ n / a.sum() / n.sum()

    _, influence = area_and_influence(jnp.asarray(scores), anomaly, ~anomaly)
    for i in range(0, 30, 7):
        h = 1e-6 * np.eye(30)[i]
        np.testing.assert_allclose(
            influence[i], (weighted(1 + h) - weighted(1 - h)) / 2e-6, atol=1e-5
        )


area_and_influence = jax.jit(study._area_and_influence)
NAMES = ("BLISS", "lambda", "softmin over classes")


@pytest.fixture(scope="module")
def protocols():
    return [load_protocol("leave-one-out", dataset="abcd", num_classes=C)]


@pytest.fixture(scope="module")
def measured(embeddings, protocols):
    return study.measure([embeddings], protocols, names=NAMES)


def test_settings_are_chosen_without_the_test_images(embeddings, protocols, measured):
    other = make_set(seed=5)
    swapped = EmbeddingSet(
        **{**vars(embeddings), "test_embeddings": other.test_embeddings},
    )
    assert study.measure([swapped], protocols, names=NAMES).choices == measured.choices


def test_settings_are_chosen_on_the_used_splits_only():
    """The chosen setting is the better one on the used splits and the worse one on all others."""
    areas = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])[None]  # [fits, splits, settings]
    rows, compared = np.array([0, 0]), np.array([True])
    first = np.array([True, False, False])
    assert study.choose([areas], [first], rows, compared).tolist() == [0, 0]
    assert study.choose([areas], [~first], rows, compared).tolist() == [1, 1]


def test_the_best_of_all_excludes_the_second_look():
    areas = np.array([[0.6, 0.9]])[None]
    used, rows, compared = [np.array([True])], np.array([0, 1]), np.array([True, False])
    assert study.choose([areas], used, rows, compared).tolist() == [0, 1, 0]


def test_the_best_of_all_is_one_of_the_compared_settings(measured):
    assert set(measured.choices[-1]) <= {
        f"{name}: {label}" for name in NAMES for label in study._settings([name])[0]
    }


def test_reported_areas_with_all_images_equal_numpy(embeddings, protocols, measured):
    e = embeddings
    for p, protocol in enumerate(protocols):
        for s, split in enumerate(protocol.splits):
            *_, score = reference.bliss(
                e.test_embeddings, e.label_embeddings, e.dictionary_embeddings,
                e.train_embeddings, e.train_labels, split.normal,
            )  # fmt: skip
            expected = roc_auc_score(~np.isin(e.test_labels, split.normal), score)
            assert abs(measured.areas[p][-1, s, 0] - expected) < 2e-3


def test_differences_to_itself_are_zero_and_intervals_contain_the_mean(measured):
    found = paired_differences.differences(measured, 0, samples=200, seed=0)
    assert not found.mean[:, 0].any()
    assert not found.interval[:, :, 0].any()
    low, high = found.interval
    assert (low <= found.mean + 1e-9).mean() > 0.9
    assert (found.mean <= high + 1e-9).mean() > 0.9
    assert (found.together[0] <= found.mean[-1]).all()
    # An interval that is simultaneous for all rows is wider than the interval of a single row.
    assert (found.together[1] - found.together[0] >= 0.9 * (high - low)[-1]).all()


def test_the_table_has_a_row_for_each_variant_with_its_setting_and_interval(measured, protocols):
    names, columns = [*NAMES, study.BEST], study.headings(protocols)
    found = paired_differences.differences(measured, 0, samples=50, seed=0)
    lines = paired_differences.table(measured, found, names, 0, columns).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert [row[0] for row in rows] == ["score", "---", f"**{NAMES[0]}**", *names[1:]]
    assert {len(line.split("|")) for line in lines} == {len(columns) + 6}
    mean, (low, high) = found.mean[-1, 1], found.interval[:, -1, 1]
    assert rows[3][1 + len(columns)] == f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    assert rows[3][1].startswith("k = 10, lambda = ")


def test_bootstrap_over_images_agrees_with_delong():
    """For one split and the difference to a constant score, the interval is DeLong's."""
    rng = np.random.default_rng(3)
    anomaly = np.arange(400) < 150
    scores = (rng.normal(size=400) + anomaly).astype(np.float32)
    mean, influence = area_and_influence(jnp.asarray(scores), anomaly, ~anomaly)
    areas = np.array([0.5, float(mean)]).reshape(1, 1, 2)
    influences = np.stack([np.zeros(400), np.asarray(influence)]).reshape(1, 1, 2, 400)
    one = paired_differences.Measured([areas], [influences.astype(np.float32)], [])
    found = paired_differences.differences(one, 0, samples=2000, seed=0)
    low, high = metrics.auroc_interval(scores, anomaly)
    np.testing.assert_allclose(found.interval[:, -1, 1] / 100 + 0.5, [low, high], atol=4e-3)


@pytest.mark.slow
def test_the_command_writes_the_table_and_the_numbers(tmp_path, embeddings, monkeypatch):
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
