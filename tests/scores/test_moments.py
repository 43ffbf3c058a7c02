import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from reference import random_embeddings, x64

from bliss_jax.scores import fit_moments, init_moments, merge_moments, psum_moments, update_moments

C, D = 5, 16


def numpy_moments(x, y, num_classes=C):
    x = np.asarray(x, np.float64)
    count, mean, cov = [], [], []
    for c in range(num_classes):
        of_class = x[y == c]
        count.append(len(of_class))
        mean.append(of_class.mean(axis=0) if len(of_class) else np.zeros(x.shape[1]))
        cov.append(np.cov(of_class.T, ddof=0) if len(of_class) else np.zeros((x.shape[1],) * 2))
    return np.array(count), np.array(mean), np.array(cov)


def assert_moments(moments, expected, atol=1e-6):
    count, mean, cov = expected
    np.testing.assert_array_equal(moments.count, count)
    np.testing.assert_allclose(moments.mean, mean, rtol=0, atol=atol)
    np.testing.assert_allclose(moments.cov, cov, rtol=0, atol=atol)


@pytest.fixture
def data(rng=None):
    rng = np.random.default_rng(0)
    return random_embeddings(rng, 503, D), rng.integers(0, C, 503)


def as_tuple(moments):
    return np.asarray(moments.count), np.asarray(moments.mean), np.asarray(moments.cov)


@pytest.mark.parity
def test_agrees_with_numpy_cov(data):
    assert_moments(fit_moments(*data, num_classes=C), numpy_moments(*data))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(sum),
    seed=st.integers(0, 2**31),
)
def test_any_class_sizes_agree_with_numpy(sizes, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = random_embeddings(rng, len(y), D)
    assert_moments(fit_moments(x, y, num_classes=len(sizes)), numpy_moments(x, y, len(sizes)))


def test_small_variances_keep_their_digits():
    """A difference of large sums would lose variances of 1e-8 around a mean of norm 1."""
    rng = np.random.default_rng(1)
    direction = random_embeddings(rng, D)
    x = random_embeddings(rng, 4000, D, around=direction, spread=1e-4 * 4)
    y = np.zeros(len(x), int)
    moments = fit_moments(x, y, num_classes=1)
    _, _, cov = numpy_moments(x, y, 1)
    relative = np.abs(np.asarray(moments.cov) - cov).max() / np.abs(cov).max()
    assert relative < 1e-3


def test_one_image_has_the_covariance_zero(data):
    x, _ = data
    moments = fit_moments(x[:3], np.arange(3), num_classes=3)
    np.testing.assert_array_equal(moments.mean, x[:3])
    np.testing.assert_array_equal(moments.cov, 0)


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 502), max_size=4, unique=True), seed=st.integers(0, 2**31))
def test_batches_and_order_do_not_change_the_moments(cuts, seed):
    rng = np.random.default_rng(0)
    x, y = random_embeddings(rng, 503, D), rng.integers(0, C, 503)
    order = np.random.default_rng(seed).permutation(503)
    moments = init_moments(C, D)
    for rows in np.split(order, sorted(cuts)):
        moments = update_moments(moments, x[rows], y[rows])
    assert_moments(moments, numpy_moments(x, y))


def test_merge_is_commutative_and_associative(data):
    x, y = data
    a, b, c = (fit_moments(x[i::3], y[i::3], num_classes=C) for i in range(3))
    assert_moments(merge_moments(a, b), as_tuple(merge_moments(b, a)))
    left = merge_moments(merge_moments(a, b), c)
    assert_moments(left, as_tuple(merge_moments(a, merge_moments(b, c))))


def test_merging_moments_of_0_images_changes_nothing(data):
    moments = fit_moments(*data, num_classes=C)
    for merged in (
        merge_moments(moments, init_moments(C, D)),
        merge_moments(init_moments(C, D), moments),
    ):
        for leaf, expected in zip(as_tuple(merged), as_tuple(moments), strict=True):
            np.testing.assert_array_equal(leaf, expected)


def test_padding_is_ignored(data):
    x, y = data
    padded = np.concatenate([x, np.zeros((9, D), np.float32)])
    labels = np.concatenate([y, np.full(9, -1)])
    moments = fit_moments(padded, labels, num_classes=C, where=np.arange(len(padded)) < len(x))
    assert_moments(moments, numpy_moments(x, y))


def test_moments_are_updated_inside_scan(data):
    x, y = data[0][:500].reshape(10, 50, D), data[1][:500].reshape(10, 50)

    @jax.jit
    def stream(x, y):
        return jax.lax.scan(lambda m, b: (update_moments(m, *b), None), init_moments(C, D), (x, y))[
            0
        ]

    assert_moments(stream(x, y), numpy_moments(data[0][:500], data[1][:500]))


def test_moments_are_merged_over_eight_devices(data):
    x, y = data[0][:496], data[1][:496]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8

    def local(x, y):
        return psum_moments(fit_moments(x, y, num_classes=C), "data")

    spec = PartitionSpec("data")
    fit = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec()))
    assert_moments(fit(jnp.asarray(x), jnp.asarray(y)), numpy_moments(x, y))


def test_vmap_over_draws_agrees_with_a_loop(data):
    x, y = data[0][:480].reshape(8, 60, D), data[1][:480].reshape(8, 60)
    together = jax.vmap(lambda x, y: fit_moments(x, y, num_classes=C))(x, y)
    for i in range(8):
        alone = fit_moments(x[i], y[i], num_classes=C)
        assert_moments(jax.tree.map(lambda leaf, i=i: leaf[i], together), as_tuple(alone))


def test_gradient_of_the_total_variance(data):
    """d/dx of sum_c tr C_c is 2 (x - m_c) / n_c."""
    x, y = data
    gradient = jax.grad(
        lambda x: jnp.trace(fit_moments(x, y, num_classes=C).cov, axis1=1, axis2=2).sum()
    )(x)
    count, mean, _ = numpy_moments(x, y)
    np.testing.assert_allclose(gradient, 2 * (x - mean[y]) / count[y][:, None], atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_accumulated_in_float32(data, dtype):
    x = jnp.asarray(data[0]).astype(dtype)
    moments = fit_moments(x, data[1], num_classes=C)
    assert moments.cov.dtype == jnp.float32
    assert_moments(moments, numpy_moments(np.asarray(x.astype("float32")), data[1]))


def test_float64_stays_float64(data):
    x, y = data[0].astype(np.float64), data[1]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    with x64():
        moments = fit_moments(x, y, num_classes=C)
        assert moments.cov.dtype == jnp.float64
        assert_moments(moments, numpy_moments(x, y), atol=1e-14)


def test_float64_is_rounded_with_a_warning_while_x64_is_off(data):
    x, y = data
    with pytest.warns(UserWarning, match="embeddings: float64 is rounded to float32"):
        moments = fit_moments(x.astype(np.float64), y, num_classes=C)
    assert_moments(moments, as_tuple(fit_moments(x, y, num_classes=C)), atol=0)


def test_vectors_of_any_norm_have_moments(data):
    x, y = 100 * data[0] + 7, data[1]
    _, mean, cov = numpy_moments(x, y)
    moments = fit_moments(x, y, num_classes=C)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(moments.cov, cov, atol=1e-5 * np.abs(cov).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x[0], y),
            r"expected a \[n, dim\] array, got one vector.*pass embeddings\[None\]",
        ),
        (lambda x, y: (x.astype(int), y), r"expected a floating \[n, dim\] array, got int32"),
        (lambda x, y: (np.where(np.arange(503)[:, None] == 7, np.nan, x), y), "row 7 holds NaN"),
        (lambda x, y: (x, y[:-1]), r"labels: expected an integer \[503\] array"),
        (lambda x, y: (x, y.astype(np.float32)), "labels: expected an integer"),
        (lambda x, y: (x, y + 1), r"labels: expected values in 0..4, got 1..5"),
        (lambda x, y: (x, y - 1), r"labels: expected values in 0..4, got -1..3"),
    ],
)
def test_wrong_arguments_are_refused(data, change, message, unchecked):
    x, y = change(*data)
    x = x.astype(np.float32) if np.isnan(x).any() else x
    with pytest.raises(ValueError, match=message):
        fit_moments(x, y, num_classes=C)


def test_merging_different_numbers_of_classes_is_refused(unchecked):
    with pytest.raises(ValueError, match="same classes and dimension"):
        merge_moments(init_moments(3, D), init_moments(4, D))
