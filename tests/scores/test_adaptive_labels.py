"""Tests of the scores that count predictions (CLIPScope) or choose negative labels (TANL) on the test images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import random_embeddings, unit
from scipy.special import logsumexp, softmax

import bliss_jax as bj

C, D, N, M = 4, 10, 50, 30
NORMAL = np.array([0, 1, 3])
MASK = np.isin(np.arange(C), NORMAL)
RNG = np.random.default_rng(0)
X = random_embeddings(RNG, N, D)
LABELS, WORDS = random_embeddings(RNG, C, D), random_embeddings(RNG, M, D)
T, FRACTION, GAP = 0.2, 0.2, 0.3
S = unit(X) @ unit(LABELS[NORMAL]).T / T
W = unit(X) @ unit(WORDS).T / T


def scope_by_hand():
    """Scores image by image, each with the predictions before it."""
    counts, scores = np.ones(len(NORMAL)), []
    for s, w in zip(S, W, strict=True):
        q, c = softmax(s), int(np.argmax(s))
        mass = np.exp(s).sum() / (np.exp(s).sum() + np.exp(w).sum())
        scores.append(-q[c] * mass / (counts[c] / counts.sum()))
        counts[c] += 1
    return counts, np.array(scores)


def scope_update(state, x, *, where):
    return bj.update_clip_scope(
        state, x, LABELS, WORDS, normal=MASK, temperature=T, where=where, chunk_size=7
    )


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [1, 16, N])
def test_clip_scope_agrees_with_its_equation_for_every_batch_size(batch_size):
    counts, expected = scope_by_hand()
    end, scores = bj.scan_stream(scope_update, bj.init_clip_scope(C), X, batch_size=batch_size)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(end[NORMAL], counts)


@pytest.mark.parity
def test_with_a_given_histogram_all_images_have_the_same_prior():
    histogram = np.array([1.0, 5.0, 100.0, 2.0], np.float32)
    scores = bj.clip_scope_score(X, LABELS, WORDS, histogram, normal=MASK, temperature=T)
    total = logsumexp(np.concatenate([S, W], axis=1), axis=1)
    prior = histogram[NORMAL] / histogram[NORMAL].sum()
    expected = -np.exp(S.max(axis=1) - total) / prior[S.argmax(axis=1)]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_with_one_class_clip_scope_is_the_mass_of_its_label():
    _, scores = bj.update_clip_scope(bj.init_clip_scope(1), X, LABELS[:1], WORDS, temperature=T)
    s = unit(X) @ unit(LABELS[0]) / T
    np.testing.assert_allclose(scores, -1 / (1 + np.exp(W - s[:, None]).sum(axis=1)), rtol=1e-4)


def best_bound(values):
    """Returns the bound on the grid with the least variance within groups; the middle one of several."""
    bounds = np.arange(1, 100) / 100
    within = []
    for bound in bounds:
        below = np.floor(values * 100) < round(bound * 100)
        if below.all() or not below.any():
            within.append(np.inf)
        else:
            within.append(
                below.mean() * values[below].var() + (1 - below.mean()) * values[~below].var()
            )
    least = np.flatnonzero(np.isclose(within, np.min(within), rtol=1e-6, atol=0))
    return bounds[least[len(least) // 2]]


def tanl_by_hand(batches):
    taken = int(FRACTION * M)
    texts = np.concatenate([LABELS[NORMAL], WORDS])
    start = softmax(unit(LABELS[NORMAL]) @ unit(texts).T / T, axis=1)[:, len(NORMAL) :]
    shares = {"normal": list(start), "anomalous": [np.full(M, 1 / M)]}
    every, scores = [], []

    def confidence(rows):
        act = np.mean(shares["anomalous"], axis=0) - np.mean(shares["normal"], axis=0)
        chosen = np.argsort(-act, kind="stable")[:taken]
        positive = np.exp(S[rows]).sum(axis=1)[:, None]
        cumulated = np.cumsum(np.exp(W[rows][:, chosen]), axis=1)
        return (positive / (positive + cumulated)).mean(axis=1)

    for rows in map(list, batches):
        values = confidence(rows)
        every += list(values)
        bound = best_bound(np.array(every))
        p = softmax(np.concatenate([S[rows], W[rows]], axis=1), axis=1)[:, len(NORMAL) :]
        shares["normal"] += list(p[values > bound + (1 - bound) * GAP])
        shares["anomalous"] += list(p[values < bound - bound * GAP])
        scores += list(1 - confidence(rows))
    return np.array(scores), shares


def tanl_update(state, x, *, where):
    return bj.update_tanl(
        state, x, LABELS, WORDS, normal=MASK, fraction=FRACTION, gap=GAP, temperature=T, where=where
    )


def start():
    return bj.init_tanl(LABELS, WORDS, normal=MASK, temperature=T)


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [16, N])
def test_tanl_agrees_with_its_equations(batch_size):
    batches = [range(i, min(i + batch_size, N)) for i in range(0, N, batch_size)]
    expected, shares = tanl_by_hand(batches)
    assert len(shares["normal"]) > len(NORMAL)
    assert len(shares["anomalous"]) > 1
    end, scores = bj.scan_stream(tanl_update, start(), X, batch_size=batch_size)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end.normal, np.sum(shares["normal"], axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end.anomalous_images, len(shares["anomalous"]))


def test_tanl_chooses_words_that_anomalies_activate():
    """Half of the images are near a label, half near word 0, which then is the first negative label."""
    rng = np.random.default_rng(3)
    near = np.where(np.arange(N)[:, None] < N // 2, LABELS[rng.integers(0, C, N)], WORDS[:1])
    x = unit(near + 0.1 * rng.normal(size=(N, D))).astype(np.float32)
    state = bj.init_tanl(LABELS, WORDS, temperature=T)
    state, scores = bj.update_tanl(state, x, LABELS, WORDS, temperature=T)
    activation = state.anomalous / state.anomalous_images - state.normal / state.normal_images
    assert int(np.argmax(activation)) == 0
    assert scores[N // 2 :].min() > scores[: N // 2].max()


UPDATES = {
    "clip_scope": lambda x: bj.update_clip_scope(
        bj.init_clip_scope(C), x, LABELS, WORDS, normal=MASK, temperature=T
    )[1],
    "tanl": lambda x: bj.update_tanl(
        start(), x, LABELS, WORDS, normal=MASK, fraction=FRACTION, temperature=T
    )[1],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "clip_scope" else pytest.mark.slow)
        for name in UPDATES
    ],
)
def test_updates_compose_with_jit_vmap_and_grad_and_spare_other_images_of_nan(name):
    update = UPDATES[name]
    np.testing.assert_allclose(jax.jit(update)(X), update(X), rtol=1e-4, atol=1e-5)
    halves = jax.jit(jax.vmap(update))(X.reshape(2, 25, D))
    np.testing.assert_allclose(halves[1], update(X[25:]), rtol=1e-4, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: update(x).sum())(jnp.asarray(X))).all()
    with_nan = jax.jit(update)(jnp.asarray(X).at[3].set(jnp.nan))
    assert np.flatnonzero(np.isnan(with_nan)).tolist() == [3]
    without = update(np.delete(X, 3, axis=0))
    np.testing.assert_allclose(np.delete(with_nan, 3), without, rtol=1e-4, atol=1e-5)
    assert update(X[:0]).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", UPDATES)
def test_sharded_images_have_the_scores_of_one_device(name, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    x = jax.device_put(X[:48], NamedSharding(mesh, PartitionSpec("data")))
    expected = UPDATES[name](X[:48])
    np.testing.assert_allclose(jax.jit(UPDATES[name])(x), expected, rtol=1e-4, atol=1e-5)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(UPDATES[name](x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bj.init_clip_scope(0), "num_classes: expected an integer of at least 1"),
        (
            lambda: bj.clip_scope_score(X, LABELS, WORDS, np.ones(3, np.float32)),
            r"histogram: expected a \[4\] array, one number per class, got \[3\]",
        ),
        (
            lambda: bj.update_tanl(start(), X, LABELS, WORDS, fraction=0.01),
            "fraction: 0.01 of 30 words is less than one word",
        ),
        (
            lambda: bj.update_tanl(start(), X, LABELS, WORDS[:20]),
            r"state: expected the activations of 20 words, got \[30\]",
        ),
        (lambda: bj.update_tanl(start(), X, LABELS, WORDS, gap=-1.0), "gap: expected a finite"),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
