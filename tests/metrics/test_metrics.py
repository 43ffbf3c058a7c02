import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bliss_jax.metrics import aupr, auroc, auroc_interval, bootstrap_interval, fpr_at_tpr

METRICS = [auroc, aupr, fpr_at_tpr]


def sample(seed=0, size=500, ties=True):
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(size) < 0.3
    scores = rng.normal(size=size) + is_anomaly
    return (np.round(scores, 1) if ties else scores).astype(np.float32), is_anomaly


def sklearn_fpr(is_anomaly, scores, tpr=0.95):
    fprs, tprs, _ = roc_curve(is_anomaly, scores, drop_intermediate=False)
    return fprs[np.argmax(tprs >= tpr)]


labelled_scores = st.lists(
    st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({anomalous for _, anomalous in rows}) == 2)


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(labelled_scores)
def test_agrees_with_scikit_learn_on_any_ties(rows):
    # Padded to one length, so that one compilation serves all examples.
    scores, is_anomaly = (np.array(column) for column in zip(*rows, strict=True))
    length = 40 - len(rows)
    where = np.arange(40) < len(rows)
    padded = np.pad(scores, (0, length)).astype(np.float32), np.pad(is_anomaly, (0, length))
    assert auroc(*padded, where=where) == pytest.approx(roc_auc_score(is_anomaly, scores), abs=1e-6)
    expected = average_precision_score(is_anomaly, scores)
    assert aupr(*padded, where=where) == pytest.approx(expected, abs=1e-6)
    expected = average_precision_score(~is_anomaly, -scores)
    assert aupr(*padded, where=where, positive="normal") == pytest.approx(expected, abs=1e-6)
    assert fpr_at_tpr(*padded, where=where) == pytest.approx(
        sklearn_fpr(is_anomaly, scores), abs=1e-6
    )


@pytest.mark.parity
@pytest.mark.parametrize("ties", [True, False])
def test_agrees_with_scikit_learn(ties):
    scores, is_anomaly = sample(ties=ties)
    assert auroc(scores, is_anomaly) == pytest.approx(roc_auc_score(is_anomaly, scores), abs=1e-6)
    expected = average_precision_score(is_anomaly, scores)
    assert aupr(scores, is_anomaly) == pytest.approx(expected, abs=1e-6)
    expected = average_precision_score(~is_anomaly, -scores)
    assert aupr(-scores, ~is_anomaly) == pytest.approx(expected, abs=1e-6)
    assert aupr(scores, is_anomaly, positive="normal") == pytest.approx(expected, abs=1e-6)
    for tpr in (0.5, 0.95, 1.0):
        expected = sklearn_fpr(is_anomaly, scores, tpr)
        assert fpr_at_tpr(scores, is_anomaly, tpr) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(("size", "tpr"), [(460, 0.95), (920, 0.95), (100, 0.99), (100, 0.8)])
def test_the_threshold_is_exact_if_a_quotient_in_float32_is_not(size, tpr):
    rng = np.random.default_rng(size)
    is_anomaly = np.arange(2 * size) < size
    scores = (rng.normal(size=2 * size) + is_anomaly).astype(np.float32)
    expected = sklearn_fpr(is_anomaly, scores, tpr)
    assert fpr_at_tpr(scores, is_anomaly, tpr) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parity
def test_a_million_images_lose_no_digits():
    rng = np.random.default_rng(0)
    is_anomaly = rng.random(1_000_000) < 0.5
    scores = (rng.normal(size=1_000_000) + is_anomaly).astype(np.float32)
    area = jax.jit(auroc)(scores, is_anomaly)
    assert area == pytest.approx(roc_auc_score(is_anomaly, scores), abs=1e-6)


def delong_by_pairs(scores, is_anomaly, z=1.959963984540054):
    """Computes DeLong's interval from the full table of pairs, as the paper defines it."""
    a, n = scores[is_anomaly].astype(float), scores[~is_anomaly].astype(float)
    wins = (a[:, None] > n[None, :]) + 0.5 * (a[:, None] == n[None, :])
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    half = z * np.sqrt(v10.var(ddof=1) / len(a) + v01.var(ddof=1) / len(n))
    return np.clip([wins.mean() - half, wins.mean() + half], 0, 1)


@pytest.mark.parity
@pytest.mark.parametrize("size", [20, 500])
def test_delong_agrees_with_its_definition_over_pairs(size):
    scores, is_anomaly = sample(size=size)
    np.testing.assert_allclose(
        auroc_interval(scores, is_anomaly), delong_by_pairs(scores, is_anomaly), atol=1e-6
    )


def test_delong_intervals_have_their_nominal_coverage():
    """Two normal distributions with means one apart have the AUROC Phi(1 / sqrt 2); there are 1,000 samples."""
    rng = np.random.default_rng(0)
    is_anomaly = np.tile(np.arange(300) < 100, (1000, 1))
    scores = (rng.normal(size=(1000, 300)) + is_anomaly).astype(np.float32)
    low, high = jax.jit(jax.vmap(auroc_interval))(scores, is_anomaly)
    true = 0.7602499389065233
    assert 0.935 < np.mean((low <= true) & (true <= high)) < 0.965


def test_bootstrap_is_seeded_and_agrees_with_delong():
    scores, is_anomaly = sample(size=2000)
    interval = lambda key, draws: bootstrap_interval(
        auroc, scores, is_anomaly, key=jax.random.key(key), draws=draws
    )
    assert interval(0, 20) == interval(0, 20)
    assert interval(0, 20) != interval(1, 20)
    np.testing.assert_allclose(interval(0, 1000), auroc_interval(scores, is_anomaly), atol=5e-3)
    for metric in (aupr, fpr_at_tpr):
        low, high = bootstrap_interval(metric, scores, is_anomaly, key=jax.random.key(0), draws=200)
        assert low < metric(scores, is_anomaly) < high


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_scores_are_best_and_inverted_scores_are_bad(metric):
    is_anomaly = np.array([False] * 6 + [True] * 4)
    scores = np.arange(10, dtype=np.float32)
    best, worst = metric(scores, is_anomaly), metric(-scores, is_anomaly)
    if metric is fpr_at_tpr:
        best, worst = 1 - best, 1 - worst
    assert best == 1
    assert worst < 0.4


def test_constant_scores_are_at_chance_level():
    scores, is_anomaly = np.zeros(500, np.float32), sample()[1]
    assert auroc(scores, is_anomaly) == 0.5
    assert aupr(scores, is_anomaly) == pytest.approx(is_anomaly.mean())
    assert fpr_at_tpr(scores, is_anomaly) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_images_and_monotone_maps_do_not_change_a_metric(metric):
    scores, is_anomaly = sample()
    order = np.random.default_rng(1).permutation(len(scores))
    expected = pytest.approx(
        float(metric(scores, is_anomaly)), rel=1e-6
    )  # up to the rounding of a float32 sum
    assert metric(scores[order], is_anomaly[order]) == expected
    assert metric(np.exp(scores), is_anomaly) == expected


@pytest.mark.parametrize("metric", [*METRICS, auroc_interval])
@pytest.mark.parametrize("left_out", [np.inf, -np.inf, np.nan, 0.0])
def test_excluded_images_do_not_count(metric, left_out):
    scores, is_anomaly = sample()
    scores[:3] = np.inf
    where = np.random.default_rng(2).random(500) < 0.6
    masked = metric(np.where(where, scores, np.float32(left_out)), is_anomaly, where=where)
    np.testing.assert_allclose(masked, metric(scores[where], is_anomaly[where]), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_vmap_over_splits_agrees_with_single_calls(metric):
    scores, _ = sample()
    splits = np.random.default_rng(3).random((7, 500)) < 0.4
    together = jax.jit(jax.vmap(metric, in_axes=(None, 0)))(scores, splits)
    np.testing.assert_allclose(together, [metric(scores, split) for split in splits], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_metrics_are_nan_under_tracing_and_an_error_otherwise(metric):
    scores, is_anomaly = sample()
    with_nan = np.where(np.arange(500) == 9, np.float32(np.nan), scores)
    for inputs, message in [
        ((with_nan, is_anomaly), "scores: 1 of 500 are NaN"),
        ((scores, np.ones(500, bool)), "got 500 anomalous and 0 normal"),
        ((scores, np.zeros(500, bool)), "got 0 anomalous and 500 normal"),
    ]:
        assert np.isnan(jax.jit(metric)(*inputs))
        with pytest.raises(ValueError, match=message):
            metric(*inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, a: auroc(s[None], a), r"scores: expected a floating \[n\] array"),
        (lambda s, a: auroc(a, a), r"scores: expected a floating \[n\] array, got bool"),
        (lambda s, a: auroc(a.astype(int), s), r"scikit-learn's \(labels, scores\)"),
        (lambda s, a: auroc(s.tolist(), a), "scores: expected an array, got a list"),
        (
            lambda s, a: auroc(s, 2 * a.astype(int)),
            r"is_anomaly: expected values in 0\.\.1, got 0\.\.2",
        ),
        (lambda s, a: auroc(s, s), r"is_anomaly: expected a bool \[500\] array, got float"),
        (lambda s, a: auroc(s, a[:-1]), r"is_anomaly: expected a bool \[500\] array"),
        (lambda s, a: auroc(s, a, where=a[:4]), r"where: expected a bool \[500\] array"),
        (lambda s, a: fpr_at_tpr(s, a, 0.0), r"tpr: expected a share in \(0, 1\], got 0"),
        (lambda s, a: auroc_interval(s, a, confidence=1.0), "confidence: expected a share"),
        (lambda s, a: bootstrap_interval(auroc, s, a, key=jax.random.key(0), draws=0), "draws"),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(*sample())


def test_integer_labels_and_float64_scores_are_accepted():
    scores, is_anomaly = sample()
    for metric in METRICS:
        assert metric(scores, is_anomaly.astype(int)) == metric(scores, is_anomaly)
    with pytest.warns(UserWarning, match="scores: float64 is rounded"):
        assert auroc(scores.astype(np.float64), is_anomaly) == auroc(scores, is_anomaly)


def test_bfloat16_scores_give_the_auroc_of_their_values():
    scores, is_anomaly = sample()
    half = jnp.asarray(scores).astype("bfloat16")
    expected = roc_auc_score(is_anomaly, np.asarray(half.astype("float32")))
    assert auroc(half, is_anomaly) == pytest.approx(expected, abs=1e-6)
