"""Tests of the memories of test images (AdaNeg, OODD), each against its equation in NumPy, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import random_embeddings, unit
from scipy.special import expit, logsumexp, softmax
from scipy.stats import entropy

import bliss_jax as bj

C, D, N, M = 4, 10, 40, 12
NORMAL = np.array([0, 1, 3])
MASK = np.isin(np.arange(C), NORMAL)
RNG = np.random.default_rng(0)
CONE = random_embeddings(RNG, D)
X = random_embeddings(RNG, N, D, around=CONE)
CLASSES = random_embeddings(RNG, C, D, around=CONE)
WORDS = random_embeddings(RNG, M, D)
STATIC = RNG.normal(size=N).astype(np.float32)
PLACES, BETA, T, LOW, HIGH, WEIGHT = 2, 3.0, 0.1, -0.3, 0.4, 2.0
OPTIONS = {"low": LOW, "high": HIGH, "weight": WEIGHT, "beta": BETA, "temperature": T}


class MemoryByHand:
    """Slots as lists of (entropy, image); an image replaces the one with the largest entropy in a full slot."""

    def __init__(self, anchors):
        self.anchors = unit(anchors)
        self.slots = [[] for _ in anchors]

    def add(self, x):
        cosines = self.anchors @ x
        h, slot = entropy(softmax(cosines / T)), self.slots[int(np.argmax(cosines))]
        if len(slot) < PLACES:
            slot.append((h, x))
        elif h < max(slot, key=lambda stored: stored[0])[0]:
            slot[int(np.argmax([stored[0] for stored in slot]))] = (h, x)

    def log_mass(self, x, beta=BETA, with_images=False):
        cosines = []
        for anchor, slot in zip(self.anchors, self.slots, strict=True):
            images = np.array([anchor, *(image for _, image in slot)])
            attention = np.ones(len(images)) if beta is None else np.exp(-beta * (1 - images @ x))
            if slot or not with_images:
                cosines.append(unit(attention @ images) @ x)
        return logsumexp(np.array(cosines) / T)


def proxies_by_hand(batches, static, beta=BETA):
    classes, words = MemoryByHand(CLASSES[NORMAL]), MemoryByHand(WORDS)
    scores = []
    for rows in batches:
        for i in rows:
            if static[i] < LOW:
                classes.add(unit(X[i]))
            if static[i] > HIGH:
                words.add(unit(X[i]))
        for i in rows:
            x = unit(X[i])
            margin = words.log_mass(x, beta, with_images=True) - classes.log_mass(x, beta)
            scores.append(static[i] + WEIGHT * T * margin)
    return np.array(scores)


def memory():
    return bj.init_proxies(CLASSES, WORDS, places=PLACES)


@pytest.mark.parity
@pytest.mark.parametrize("beta", [None, BETA])
def test_one_update_agrees_with_images_stored_one_by_one(beta):
    options = {**OPTIONS, "beta": beta}
    found, scores = bj.update_proxies(memory(), X, STATIC, normal=MASK, **options)
    expected = proxies_by_hand([range(N)], STATIC, beta)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(found.negatives.entropy).any()
    assert not np.isfinite(found.classes.entropy[2]).any()  # the class that is not normal


def stream_update(state, x, static, *, where):
    return bj.update_proxies(state, x, static, normal=MASK, where=where, **OPTIONS)


@pytest.mark.parity
def test_a_stream_is_scored_batch_by_batch_and_ends_with_the_memory_of_all_images():
    end, scores = bj.scan_stream(stream_update, memory(), X, STATIC, batch_size=16)
    expected = proxies_by_hand([range(16), range(16, 32), range(32, N)], STATIC)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    whole, _ = bj.update_proxies(memory(), X, STATIC, normal=MASK, **OPTIONS)
    for found, expected in zip(jax.tree.leaves(end), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("beta", [None, BETA])
def test_without_stored_anomalies_the_static_scores_stay(beta):
    options = {**OPTIONS, "high": 9.0, "beta": beta}
    _, scores = bj.update_proxies(memory(), X, STATIC, **options)
    np.testing.assert_array_equal(scores, STATIC)
    gradient = jax.grad(lambda x: bj.update_proxies(memory(), x, STATIC, **options)[1].sum())(X)
    np.testing.assert_array_equal(gradient, 0)


def test_images_that_do_not_count_change_no_other_score():
    where = np.arange(N) < 25
    _, scores = bj.update_proxies(memory(), X, STATIC, where=where, **OPTIONS)
    _, alone = bj.update_proxies(memory(), X[:25], STATIC[:25], **OPTIONS)
    np.testing.assert_allclose(scores[:25], alone, rtol=1e-5, atol=1e-5)


def test_an_image_that_resembles_a_stored_anomaly_becomes_more_anomalous():
    static = np.where(np.arange(N) == 0, 9.0, 0.0).astype(np.float32)
    twin = np.concatenate([X[:1], X[:1], X[2:]])
    _, after = bj.update_proxies(memory(), twin, static, **{**OPTIONS, "low": -1.0, "high": 1.0})
    change = np.asarray(after - static)
    np.testing.assert_allclose(change[:2], change.max(), rtol=1e-5)  # the anomaly and its twin
    assert change[2:].max() < change[1] - 0.1


@pytest.mark.parity
def test_adaneg_adds_the_mass_of_the_negative_proxies_to_neglabel():
    bound, gap, weight = 0.6, 0.2, 0.5
    options = {"bound": bound, "gap": gap, "weight": weight, "beta": BETA, "temperature": T}
    labels = random_embeddings(np.random.default_rng(2), C, D)  # texts, so that both kinds occur
    _, scores = bj.update_adaneg(
        bj.init_proxies(labels, WORDS, places=PLACES), X, normal=MASK, **options
    )
    x, classes, words = unit(X), MemoryByHand(labels[NORMAL]), MemoryByHand(WORDS)
    logit = logsumexp(x @ words.anchors.T / T, axis=1) - logsumexp(
        x @ classes.anchors.T / T, axis=1
    )
    normal = 1 - expit(logit)
    assert (normal > bound + (1 - bound) * gap).any()
    assert (normal < bound - bound * gap).any()
    for image, share in zip(x, normal, strict=True):
        if share > bound + (1 - bound) * gap:
            classes.add(image)
        if share < bound - bound * gap:
            words.add(image)
    ada = [expit(words.log_mass(image) - classes.log_mass(image)) for image in x]
    np.testing.assert_allclose(scores, 1 - normal + weight * np.array(ada), rtol=1e-4, atol=1e-5)


def queue_by_hand(batches, capacity, k, weight):
    queue, scores = [], []
    for rows in batches:
        queue = sorted([*queue, *((-STATIC[i], i) for i in rows)])[:capacity]
        for i in rows:
            cosines = np.sort([unit(X[i]) @ unit(X[j]) for _, j in queue])[::-1]
            scores.append(STATIC[i] + weight * cosines[min(k, len(cosines)) - 1])
    return np.array(scores)


def queue_update(state, x, static, *, where):
    return bj.update_ood_queue(state, x, static, k=3, weight=2.0, where=where)


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_queue_agrees_with_a_sorted_list(batch_size):
    batches = [range(i, min(i + batch_size, N)) for i in range(0, N, batch_size)]
    start = bj.init_ood_queue(6, D)
    end, scores = bj.scan_stream(queue_update, start, X, STATIC, batch_size=batch_size)
    np.testing.assert_allclose(scores, queue_by_hand(batches, 6, 3, 2.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(end.scores, np.sort(STATIC)[::-1][:6], rtol=1e-6)


def test_the_queue_of_a_batch_does_not_depend_on_the_order_of_the_images():
    order = np.random.default_rng(1).permutation(N)
    _, scores = bj.update_ood_queue(bj.init_ood_queue(6, D), X, STATIC, k=3)
    _, shuffled = bj.update_ood_queue(bj.init_ood_queue(6, D), X[order], STATIC[order], k=3)
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-5)


def test_a_limit_shortens_the_queue_and_an_empty_queue_changes_nothing():
    queue, scores = bj.update_ood_queue(bj.init_ood_queue(6, D), X, STATIC, limit=4.0, k=3)
    _, shorter = bj.update_ood_queue(bj.init_ood_queue(4, D), X, STATIC, k=3)
    assert np.isfinite(queue.scores).sum() == 4
    np.testing.assert_allclose(scores, shorter, rtol=1e-6)
    nobody = np.zeros(N, bool)
    _, unchanged = bj.update_ood_queue(bj.init_ood_queue(6, D), X, STATIC, where=nobody)
    np.testing.assert_array_equal(unchanged, STATIC)


UPDATES = {
    "proxies": lambda x, s: bj.update_proxies(memory(), x, s, **OPTIONS)[1],
    "queue": lambda x, s: bj.update_ood_queue(bj.init_ood_queue(6, D), x, s, k=3)[1],
    "adaneg": lambda x, s: bj.update_adaneg(memory(), x, temperature=T)[1],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "queue" else pytest.mark.slow) for name in UPDATES],
)
def test_updates_compose_with_jit_vmap_and_grad_and_spare_other_images_of_nan(name):
    update = UPDATES[name]
    expected = update(X, STATIC)
    np.testing.assert_allclose(jax.jit(update)(X, STATIC), expected, rtol=1e-4, atol=1e-5)
    halves = jax.jit(jax.vmap(update))(X.reshape(2, 20, D), STATIC.reshape(2, 20))
    np.testing.assert_allclose(halves[1], update(X[20:], STATIC[20:]), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: update(x, jnp.asarray(STATIC)).sum())(jnp.asarray(X))
    assert np.isfinite(gradient).all()
    broken = jnp.asarray(X).at[3].set(jnp.nan)
    with_nan = jax.jit(update)(broken, STATIC)
    assert np.isnan(with_nan).sum() == 1
    assert np.isnan(with_nan[3])
    assert update(X[:0], STATIC[:0]).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", UPDATES)
def test_sharded_images_have_the_scores_of_one_device(name, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    x, static = (jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (X, STATIC))
    expected = UPDATES[name](X, STATIC)
    np.testing.assert_allclose(jax.jit(UPDATES[name])(x, static), expected, rtol=1e-4, atol=1e-5)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(UPDATES[name](x, static), expected, rtol=1e-4, atol=1e-5)


def test_a_stream_without_images_returns_the_state():
    start = bj.init_ood_queue(6, D)
    end, scores = bj.scan_stream(queue_update, start, X[:0], STATIC[:0], batch_size=4)
    assert scores.shape == (0,)
    np.testing.assert_array_equal(end.scores, start.scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bj.init_proxies(CLASSES, WORDS, places=0), "places: expected an integer of at"),
        (lambda: bj.init_proxies(CLASSES, WORDS[:, :3]), "expected embeddings of one dimension"),
        (
            lambda: bj.update_proxies(memory(), X, STATIC[:5], low=0.0, high=1.0, weight=1.0),
            r"scores: expected a floating \[40\] array",
        ),
        (
            lambda: bj.update_proxies(memory(), X, STATIC, low=1.0, high=0.0, weight=1.0),
            r"high: expected at least low \(1\), got 0",
        ),
        (lambda: bj.update_adaneg(memory(), X, gap=-1.0), "gap: expected a finite number >= 0"),
        (lambda: bj.init_ood_queue(0, D), "capacity: expected an integer of at least 1"),
        (
            lambda: bj.update_ood_queue(bj.init_ood_queue(6, D), X, STATIC, k=7),
            r"k: expected an integer in 1\.\.6 \(the capacity of the queue\)",
        ),
        (
            lambda: bj.update_ood_queue(bj.init_ood_queue(6, 3), X, STATIC),
            "expected 3 dimensions, as in the queue",
        ),
        (
            lambda: bj.scan_stream(
                queue_update, bj.init_ood_queue(6, D), X, STATIC[:3], batch_size=4
            ),
            "arrays: expected arrays of one length",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
