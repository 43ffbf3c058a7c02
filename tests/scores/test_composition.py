"""Tests that every public function composes with JAX's transformations, as functions of jax.numpy do.

Each function is compared with its own eager result on the same inputs, which other tests compare with NumPy. One
table of functions is used for all transformations, so one line adds a new score.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import Compilations
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bliss_jax as bj

CLASSES, DIM, TEXTS, IMAGES = 4, 16, 64, 48


def unit(seed: int, *shape: int) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=shape)
    return (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32)


class Context(NamedTuple):
    """All arrays other than the images; a pytree."""

    labels: jax.Array
    texts: jax.Array
    something: jax.Array
    bank: jax.Array
    moments: bj.ClassMoments
    prepared: bj.PreparedBliss


@pytest.fixture(scope="module")
def context() -> Context:
    labels, texts = jnp.asarray(unit(1, CLASSES, DIM)), jnp.asarray(unit(2, TEXTS, DIM))
    train = jnp.asarray(unit(3, 320, DIM))
    moments = bj.fit_moments(train, jnp.arange(320) % CLASSES, num_classes=CLASSES)
    prepared = bj.prepare_bliss(labels, texts, moments)
    return Context(labels, texts, jnp.asarray(unit(4, DIM)), train[:50], moments, prepared)


X = unit(0, IMAGES, DIM)
KEY = 7


# Functions that map images [n, dim] and a context to one row for each image.
FUNCTIONS: dict[str, Callable[[Any, Context], Any]] = {
    "internal": lambda x, c: bj.internal_class_score(x, c.labels, c.moments),
    "external": lambda x, c: bj.external_text_score(x, c.texts, c.moments),
    "bliss": lambda x, c: bj.bliss_score(x, c.labels, c.texts, c.moments),
    "bliss shrunk": lambda x, c: bj.bliss_score(
        x, c.labels, c.texts, c.moments, k=3, shrinkage=20.0
    ),
    "prepared": lambda x, c: bj.bliss_score_prepared(x, c.prepared),
    "explain": lambda x, c: bj.explain_bliss(x, c.labels, c.texts, c.moments),
    "explain prepared": lambda x, c: bj.explain_bliss_prepared(x, c.prepared),
    "whitened": lambda x, c: bj.whitened_bliss_score(x, c.labels, c.texts, c.moments),
    "max_cosine": lambda x, c: bj.max_cosine_score(x, c.labels),
    "msp": lambda x, c: bj.msp_score(x, c.labels),
    "mcm": lambda x, c: bj.mcm_score(x, c.labels),
    "max_logit": lambda x, c: bj.max_logit_score(x, c.labels),
    "energy": lambda x, c: bj.energy_score(x, c.labels),
    "entropy": lambda x, c: bj.entropy_score(x, c.labels),
    "clip_ad": lambda x, c: bj.clip_ad_score(x, c.labels, c.something),
    "mahalanobis": lambda x, c: bj.mahalanobis_score(x, c.moments),
    "knn": lambda x, c: bj.knn_score(x, c.bank),
    "neglabel": lambda x, c: bj.neglabel_score(x, c.labels, c.texts, jax.random.key(KEY)),
    "neglabel_images": lambda x, c: bj.neglabel_score(
        x, c.labels, c.texts, jax.random.key(KEY), moments=c.moments
    ),
    "rmd": lambda x, c: bj.rmd_score(x, c.moments),
    "softmax_variance": lambda x, c: bj.softmax_variance_score(x, c.labels),
    "vim": lambda x, c: bj.vim_score(x, c.labels, c.bank),
    "z_energy": lambda x, c: bj.z_energy_score(x, c.labels, c.moments),
    "text_prior_bliss": lambda x, c: bj.text_prior_bliss_score(x, c.labels, c.texts, c.moments),
    "text_bliss": lambda x, c: bj.text_bliss_score(x, c.labels, c.texts),
    "cma": lambda x, c: bj.cma_score(x, c.labels, c.texts),
    "eoe": lambda x, c: bj.eoe_score(x, c.labels, c.texts),
    "top_k": lambda x, c: bj.top_k_similar(x, c.texts, 5),
}
SCORES = [name for name in FUNCTIONS if name not in ("explain", "explain prepared", "top_k")]
QUICK = ("bliss", "top_k", "entropy")


def some_quick(*names: str) -> Any:
    """Runs a test for each name. The test is slow unless the name is in `QUICK`."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "name", [name if name in QUICK else pytest.param(name, marks=slow) for name in names]
    )


every_function = some_quick(*FUNCTIONS)
ADDED = (
    "neglabel_images",
    "text_prior_bliss",
    "text_bliss",
    "cma",
    "eoe",
    "rmd",
    "z_energy",
    "softmax_variance",
    "vim",
)
every_score = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ADDED else n for n in SCORES],
)


def close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Asserts that two pytrees agree, and that their integers are equal."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        if jnp.issubdtype(b.dtype, jnp.integer):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        else:
            scale = 1 + np.abs(np.asarray(b, np.float64))
            error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / scale
            assert np.nanmax(error, initial=0) <= tolerance
            np.testing.assert_array_equal(np.isnan(np.asarray(a)), np.isnan(np.asarray(b)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_eager_call_compiles_nothing(name, context):
    FUNCTIONS[name](jnp.asarray(X), context)
    with Compilations() as compiled:
        FUNCTIONS[name](jnp.asarray(X), context)
    assert compiled.count == 0


def test_fitting_and_updating_compile_once(context):
    train, labels = jnp.asarray(unit(5, 64, DIM)), jnp.arange(64) % CLASSES
    for _ in range(2):
        with Compilations() as compiled:
            moments = bj.fit_moments(train, labels, num_classes=CLASSES)
            moments = bj.update_moments(moments, train, labels)
            bj.merge_moments(moments, moments)
            prepared = bj.prepare_bliss(context.labels, context.texts, moments)
            bj.text_statistics(context.texts, moments)
            bj.bliss_score_prepared(X, prepared, nearest=bj.top_k_similar(X, context.texts, 10))
    assert compiled.count == 0


@pytest.mark.slow
def test_eager_calls_do_not_keep_memory(context):
    psutil = pytest.importorskip("psutil")
    process, x = psutil.Process(), jnp.asarray(X)
    train, labels = jnp.asarray(unit(5, 64, DIM)), jnp.arange(64) % CLASSES

    def calls(number: int) -> None:
        moments = bj.init_moments(CLASSES, DIM)
        for _ in range(number):
            moments = bj.update_moments(moments, train, labels)
            bj.bliss_score(x, context.labels, context.texts, context.moments)
            bj.explain_bliss(x, context.labels, context.texts, context.moments)

    calls(20)
    before = process.memory_info().rss
    calls(200)
    assert process.memory_info().rss - before < 10e6


@every_function
def test_jit_vmap_and_scan_agree_with_eager_calls(name, context):
    function = FUNCTIONS[name]
    expected = function(X, context)
    close(jax.jit(function)(X, context), expected)
    batches = X.reshape(3, 16, DIM)
    flat = partial(jax.tree.map, lambda leaf: leaf.reshape(IMAGES, *leaf.shape[2:]))
    close(flat(jax.vmap(function, in_axes=(0, None))(batches, context)), expected)
    scanned = jax.lax.scan(lambda _, x: (None, function(x, context)), None, batches)[1]
    close(flat(scanned), expected)


@every_function
def test_sharded_images_on_automatic_and_explicit_axes_give_sharded_results(name, context):
    """Calls under jit and eager calls are tested, with and without a mesh in the context."""
    function = FUNCTIONS[name]
    expected = function(X, context)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        x = jax.device_put(X, NamedSharding(mesh, P("data")))
        close(jax.jit(function)(x, context), expected)
        with jax.set_mesh(mesh):
            found = jax.jit(function)(x, context)
            close(found, expected)
            for leaf in jax.tree.leaves(found):
                assert leaf.sharding.spec[0] == "data"
            close(function(x, context), expected)


@every_function
def test_shard_map_accepts_values_that_are_passed_or_closed_over(name, context):
    function = FUNCTIONS[name]
    expected = function(X, context)
    mesh = jax.make_mesh((4, 2), ("data", "other"))  # explicit axes, as by default
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("data")))
        passed = jax.shard_map(function, in_specs=(P("data"), P()), out_specs=P("data"))
        close(jax.jit(passed)(x, context), expected)
        closed = jax.shard_map(
            lambda x: function(x, context), in_specs=P("data"), out_specs=P("data")
        )
        close(jax.jit(closed)(x), expected)
        partly = jax.shard_map(
            function, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}
        )
        close(jax.jit(partly)(x, context), expected)


@some_quick("bliss", "prepared", "top_k", "knn", "mahalanobis", "whitened")
def test_sharded_images_need_no_communication_between_devices(name, context):
    """The compiled program of sharded images gathers, exchanges and permutes nothing."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    images = jax.ShapeDtypeStruct((4096, DIM), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    text = jax.jit(FUNCTIONS[name]).lower(images, context).compile().as_text()
    moved = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
    assert not moved
    permuted = [line for line in text.splitlines() if "collective-permute" in line]
    assert not permuted


@every_score
def test_gradients_agree_with_finite_differences(name, context):
    function = FUNCTIONS[name]
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, context
        )
        x = jnp.asarray(X[:6].astype(np.float64))
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)

        def total(x):
            return jnp.sum(jnp.tanh(0.1 * function(x, wide)))

        direction = jnp.asarray(unit(9, 6, DIM).astype(np.float64))
        slope = float(jnp.vdot(jax.jit(jax.grad(total))(x), direction))
        step = 1e-6
        ahead, behind = (float(jax.jit(total)(x + s * step * direction)) for s in (1, -1))
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-7)


@every_function
def test_empty_batches_give_empty_results(name, context):
    for leaf in jax.tree.leaves(FUNCTIONS[name](X[:0], context)):
        assert leaf.shape[0] == 0
    for leaf in jax.tree.leaves(jax.jit(FUNCTIONS[name])(X[:0], context)):
        assert leaf.shape[0] == 0


@every_score
def test_images_that_are_not_finite_score_nan_under_jit(name, context):
    x = jnp.asarray(X).at[3, 0].set(jnp.nan).at[5].set(jnp.inf).at[7, 2].set(-jnp.inf)
    found = jax.jit(FUNCTIONS[name])(x, context)
    unknown = np.isnan(np.asarray(found)).reshape(IMAGES, -1)
    assert unknown[[3, 5, 7]].all()
    assert not unknown[[0, 1, 2, 4, 6, 8]].any()


@pytest.mark.parametrize(
    "value", [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.inf, -np.inf))]
)
def test_a_text_that_is_not_finite_is_never_chosen(value, context):
    texts = context.texts.at[11].set(value).at[12, 0].set(value)
    _, nearest = jax.jit(bj.top_k_similar, static_argnums=2)(X, texts, 10)
    assert not np.isin(np.asarray(nearest), [11, 12]).any()
    kept = np.delete(np.arange(TEXTS), [11, 12])
    for shrinkage in (0.0, 5.0):
        score = partial(bj.external_text_score, shrinkage=shrinkage)
        found = jax.jit(score)(X, texts, context.moments)
        close(found, score(X, context.texts[kept], context.moments))
        prepare = partial(bj.prepare_bliss, shrinkage=shrinkage)
        prepared = jax.jit(prepare)(context.labels, texts, context.moments)
        of_kept = prepare(context.labels, context.texts[kept], context.moments)
        close(jax.jit(bj.bliss_score_prepared)(X, prepared), bj.bliss_score_prepared(X, of_kept))


HALVES = [jnp.bfloat16, jnp.float16]


@every_function
def test_half_precision_is_computed_in_float32(name, context):
    """Results are float32 and equal those of the same numbers in float32."""
    for half in HALVES:
        narrow = jax.tree.map(
            lambda leaf, half=half: leaf.astype(half) if leaf.ndim == 2 else leaf,
            context._replace(moments=None, prepared=None),
        )
        narrow = narrow._replace(moments=context.moments)
        narrow = narrow._replace(
            prepared=bj.prepare_bliss(narrow.labels, narrow.texts, context.moments)
        )
        wide = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize == 2 else leaf, narrow
        )
        x = jnp.asarray(X).astype(half)
        found = jax.jit(FUNCTIONS[name])(x, narrow)
        for leaf in jax.tree.leaves(found):
            assert leaf.dtype in (jnp.float32, jnp.int32)
        close(found, jax.jit(FUNCTIONS[name])(x.astype(jnp.float32), wide), 1e-4)


@every_function
def test_mixtures_with_float64_are_promoted(name, context):
    with jax.enable_x64(True):
        expected = FUNCTIONS[name](X, context)
        for part in ("x", "moments", "all but x"):
            wider = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf
            mixed, x = context, jnp.asarray(X)
            if part == "x":
                x = x.astype(jnp.float64)
            elif part == "moments":
                moments = jax.tree.map(wider, context.moments)
                prepared = bj.prepare_bliss(context.labels, context.texts, moments)
                mixed = context._replace(moments=moments, prepared=prepared)
            else:
                mixed = jax.tree.map(wider, context)
            found = FUNCTIONS[name](x, mixed)
            close(found, expected, 1e-3)
            dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(found)} - {"int32"}
            assert dtypes <= {"float32", "float64"}
            if part == "x":
                assert dtypes <= {"float64"}


@every_function
def test_functions_are_exported_with_a_symbolic_batch(name, context):
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, DIM), jnp.float32)
    exported = export.export(jax.jit(lambda x: FUNCTIONS[name](x, context)))(images)
    for number in (1, 5):
        close(exported.call(X[:number]), FUNCTIONS[name](X[:number], context))


def test_moments_and_prepared_tables_are_serialized_with_an_exported_function(context):
    pytest.importorskip("flatbuffers")
    score = export.export(jax.jit(bj.bliss_score))(X, *context[:2], context.moments)
    again = export.deserialize(score.serialize())
    expected = bj.bliss_score(X, *context[:2], context.moments)
    close(again.call(X, *context[:2], context.moments), expected)
    quick = export.export(jax.jit(bj.bliss_score_prepared))(X, context.prepared)
    close(export.deserialize(quick.serialize()).call(X, context.prepared), expected, 1e-4)


def test_moments_are_restored_by_flax_serialization_and_orbax(context, tmp_path):
    from flax import serialization

    state = context.moments, context.prepared
    content = serialization.to_bytes(state)
    zeros = jax.tree.map(jnp.zeros_like, state)
    close(serialization.from_bytes(zeros, content), state, 0)

    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", zeros)
    close(restored, state, 0)
    assert isinstance(restored[0], bj.ClassMoments)
    assert isinstance(restored[1], bj.PreparedBliss)


def test_moments_may_have_numpy_leaves(context):
    moments = jax.tree.map(np.asarray, context.moments)
    close(
        bj.bliss_score(X, context.labels, context.texts, moments),
        bj.bliss_score(X, context.labels, context.texts, context.moments),
        0,
    )
    whole = bj.ClassMoments(moments.count.astype(np.int32), moments.mean, moments.cov)
    close(
        bj.bliss_score(X, context.labels, context.texts, whole),
        bj.bliss_score(X, context.labels, context.texts, context.moments),
        0,
    )


def test_scores_are_differentiable_by_moments(context):
    slopes = jax.grad(lambda m: bj.bliss_score(X, context.labels, context.texts, m).sum())(
        context.moments
    )
    assert isinstance(slopes, bj.ClassMoments)
    assert all(np.isfinite(leaf).all() for leaf in slopes)
    assert np.abs(slopes.mean).max() > 0


MASKED = np.array([True, True, False, True])


@pytest.mark.parametrize(
    "flag", ["jax_debug_nans", pytest.param("jax_debug_infs", marks=pytest.mark.slow)]
)
@some_quick("bliss", "shrunk", "explain", "mahalanobis", "whitened", "entropy")
def test_debug_flags_find_no_nan_for_a_masked_class_without_images(name, flag, context):
    labels = np.where(np.arange(320) % CLASSES == 2, 1, np.arange(320) % CLASSES)
    moments = bj.fit_moments(unit(3, 320, DIM), labels, num_classes=CLASSES)
    functions = {
        "bliss": lambda x: bj.bliss_score(x, context.labels, context.texts, moments, normal=MASKED),
        "shrunk": lambda x: bj.bliss_score(
            x, context.labels, context.texts, moments, normal=MASKED, shrinkage=5.0
        ),
        "explain": lambda x: (
            bj.explain_bliss(x, context.labels, context.texts, moments, normal=MASKED).score
        ),
        "mahalanobis": lambda x: bj.mahalanobis_score(x, moments, normal=MASKED),
        "whitened": lambda x: bj.whitened_bliss_score(
            x, context.labels, context.texts, moments, normal=MASKED
        ),
        "entropy": lambda x: bj.entropy_score(x, context.labels, normal=MASKED),
    }
    function, x = functions[name], jnp.asarray(X)
    jax.config.update(flag, True)
    try:
        assert np.isfinite(function(x)).all()
        assert np.isfinite(jax.jit(function)(x)).all()
        assert np.isfinite(jax.grad(lambda x: function(x).sum())(x)).all()
        assert np.isfinite(jax.jit(jax.grad(lambda x: function(x).sum()))(x)).all()
    finally:
        jax.config.update(flag, False)
