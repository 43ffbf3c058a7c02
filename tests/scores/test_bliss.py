from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, PartitionSpec
from reference import random_embeddings
from sklearn.metrics import roc_auc_score

from bliss_jax import metrics
from bliss_jax.scores import (
    ClassMoments,
    bliss_score,
    external_text_score,
    fit_moments,
    internal_class_score,
    top_k_similar,
)

C, D, M, N = 6, 32, 230, 90
NORMAL = np.array([0, 2, 5])
MASK = np.isin(np.arange(C), NORMAL)


class Problem:
    """Embeddings with the geometry of CLIP's: images in one cone, texts in another."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        image_cone, text_cone = random_embeddings(rng, D), random_embeddings(rng, D)
        centres = random_embeddings(rng, C, D, around=image_cone)
        self.train_labels = rng.integers(0, C, 400)
        self.train = reference.unit(
            centres[self.train_labels] + 0.1 * rng.normal(size=(400, D))
        ).astype(np.float32)
        self.test_labels = rng.integers(0, C, N)
        self.test = reference.unit(
            centres[self.test_labels] + 0.1 * rng.normal(size=(N, D))
        ).astype(np.float32)
        self.labels = random_embeddings(rng, C, D, around=text_cone)
        self.words = random_embeddings(rng, M, D, around=text_cone)
        self.moments = fit_moments(self.train, self.train_labels, num_classes=C)

    def expected(self, normal=NORMAL, **options):
        return reference.bliss(
            self.test, self.labels, self.words, self.train, self.train_labels, normal, **options
        )


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.mark.parity
@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
def test_agrees_with_the_equations(problem, shrinkage):
    internal, external, score = problem.expected(shrinkage=shrinkage)
    options = {"normal": MASK, "shrinkage": shrinkage}
    got = internal_class_score(problem.test, problem.labels, problem.moments, **options)
    assert np.abs(np.asarray(got)[:, NORMAL] - internal).max() < 1e-3
    got = external_text_score(problem.test, problem.words, problem.moments, **options)
    assert np.abs(np.asarray(got)[:, NORMAL] - external).max() < 1e-3
    got = bliss_score(problem.test, problem.labels, problem.words, problem.moments, **options)
    assert np.abs(got - score).max() < 1e-3


@pytest.mark.parity
@pytest.mark.shared_data
def test_agrees_with_the_equations_on_real_clip_embeddings(shared):
    with np.load(shared / "data/clip_vitb32_cifar10_embeddings.npz") as file:
        x, y, labels = file["image_emb"], file["labels"], file["class_text_emb"]
        words = file["text_emb"][file["text_source"] == "imagenet1k"]
    unit = lambda a: reference.unit(a).astype(np.float32)
    x, labels, words = unit(x), unit(labels), unit(words)
    train, test = np.arange(500) % 2 == 0, np.arange(500) % 2 == 1
    moments = fit_moments(x[train], y[train], num_classes=10)
    for normal in ([0, 1, 9, 7, 3, 2], [4], list(range(9))):
        *_, expected = reference.bliss(x[test], labels, words, x[train], y[train], normal)
        mask = np.isin(np.arange(10), normal)
        score = bliss_score(x[test], labels, words, moments, normal=mask)
        assert np.abs(score - expected).max() < 1e-3
        anomalous = ~np.isin(y[test], normal)
        area = metrics.auroc(score, anomalous)
        assert abs(area - roc_auc_score(anomalous, expected)) < 1e-5


@pytest.mark.parametrize(
    "chunk_size",
    [7, 64, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 10, 229, 230, 1000))],
)
@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
def test_the_chunk_size_does_not_change_the_score(problem, chunk_size, shrinkage):
    options = {"normal": MASK, "shrinkage": shrinkage}
    whole = bliss_score(problem.test, problem.labels, problem.words, problem.moments, **options)
    for rows in (slice(None), slice(0, 5)):  # with more and with fewer chosen places than texts
        chunked = bliss_score(
            problem.test[rows],
            problem.labels,
            problem.words,
            problem.moments,
            chunk_size=chunk_size,
            **options,
        )
        np.testing.assert_allclose(chunked, whole[rows], rtol=1e-4, atol=1e-4)


def test_never_builds_a_classes_by_texts_or_images_by_texts_table(unchecked):
    """With many classes and texts, the largest intermediate is a chunk, not a table."""
    images, classes, texts, chunk, dim, k = 8, 700, 50_000, 512, 4, 3
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    moments = ClassMoments(f32(classes), f32(classes, dim), f32(classes, dim, dim))
    jaxpr = jax.make_jaxpr(lambda *a: bliss_score(*a, k=k, chunk_size=chunk))(
        f32(images, dim), f32(classes, dim), f32(texts, dim), moments
    )

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for value in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    largest = max(sizes(jaxpr.jaxpr))
    assert largest <= max(images * chunk, images * k * classes, chunk * classes)
    assert largest < images * texts < classes * texts


def test_vmap_over_masks_scores_all_splits(problem):
    masks = np.random.default_rng(3).permuted(np.tile(np.arange(C) < 3, (12, 1)), axis=1)
    for shrinkage in (0.0, 20.0):
        score = lambda mask, s=shrinkage: bliss_score(
            problem.test, problem.labels, problem.words, problem.moments, normal=mask, shrinkage=s
        )
        together = jax.jit(jax.vmap(score))(masks)
        for mask, scores in zip(masks, together, strict=True):
            np.testing.assert_allclose(scores, score(mask), rtol=1e-5, atol=1e-5)


def test_classes_that_are_not_normal_are_ignored(problem):
    """The score of a split equals that with labels and moments of the normal classes alone."""
    few = fit_moments(
        problem.train[np.isin(problem.train_labels, NORMAL)],
        np.searchsorted(NORMAL, problem.train_labels[np.isin(problem.train_labels, NORMAL)]),
        num_classes=3,
    )
    for shrinkage in (0.0, 20.0):
        masked = bliss_score(
            problem.test,
            problem.labels,
            problem.words,
            problem.moments,
            normal=MASK,
            shrinkage=shrinkage,
        )
        alone = bliss_score(
            problem.test, problem.labels[NORMAL], problem.words, few, shrinkage=shrinkage
        )
        np.testing.assert_allclose(masked, alone, rtol=1e-4, atol=1e-4)


def test_the_score_of_an_image_does_not_depend_on_the_batch(problem):
    score = lambda x: bliss_score(x, problem.labels, problem.words, problem.moments)
    together = score(problem.test)
    np.testing.assert_allclose(jnp.concatenate([score(x[None]) for x in problem.test[:5]]), together[:5],
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_allclose(score(problem.test[order]), together[order], rtol=1e-5, atol=1e-5)


def test_the_order_of_the_dictionary_does_not_change_the_score(problem):
    order = np.random.default_rng(2).permutation(M)
    score = lambda words: bliss_score(problem.test, problem.labels, words, problem.moments)
    np.testing.assert_allclose(
        score(problem.words[order]), score(problem.words), rtol=1e-4, atol=1e-4
    )


def test_duplicates_count_as_often_as_they_occur(problem):
    """If every text occurs twice, the k nearest places hold k / 2 distinct texts, each twice."""
    doubled = np.repeat(problem.words, 2, axis=0)
    np.testing.assert_allclose(
        external_text_score(problem.test, doubled, problem.moments, k=8),
        external_text_score(problem.test, problem.words, problem.moments, k=4),
        rtol=1e-4,
        atol=1e-4,
    )


def test_with_one_class_the_score_is_linear_in_lambda(problem):
    """BLISS is linear in lambda before the minimum over classes, and with one class also after it."""
    one = np.arange(C) == 2
    score = lambda w: bliss_score(
        problem.test, problem.labels, problem.words, problem.moments, weight=w, normal=one
    )
    internal = internal_class_score(problem.test, problem.labels, problem.moments)[:, 2]
    np.testing.assert_allclose(score(0.0), internal, rtol=1e-6)
    np.testing.assert_allclose(score(0.6), score(0.0) + 0.6 * (score(1.0) - score(0.0)), atol=1e-4)
    weights = jnp.linspace(0, 1, 5)
    grid = jax.vmap(score)(weights)
    for w, scores in zip(weights, grid, strict=True):
        np.testing.assert_allclose(scores, score(float(w)), atol=1e-5)


def test_the_internal_score_has_zero_mean_and_unit_deviation_on_the_fitted_images(problem):
    """The internal score of a class is standardised over the fitted images of the class."""
    internal = np.asarray(internal_class_score(problem.train, problem.labels, problem.moments))
    for c in range(C):
        own = internal[problem.train_labels == c, c]
        assert abs(own.mean()) < 1e-3
        assert abs(own.std() - 1) < 1e-3


def test_k_may_equal_the_number_of_texts(problem):
    words = problem.words[:13]
    score = external_text_score(problem.test, words, problem.moments, k=13)
    z = problem.expected(normal=range(C), k=13)  # the full dictionary, used for its shape only
    assert score.shape == z[1].shape
    _, expected, _ = reference.bliss(
        problem.test, problem.labels, words, problem.train, problem.train_labels, range(C), k=13
    )
    np.testing.assert_allclose(score, expected, atol=1e-3)


def test_shrinkage_tends_to_the_pooled_variance(problem):
    """At n0 = infinity every class has the pooled variance, and the distance to it decreases with n0."""
    internal = lambda n0: np.asarray(
        internal_class_score(problem.test, problem.labels, problem.moments, shrinkage=n0)
    )
    mu = np.asarray(jnp.einsum("cd,cd->c", problem.labels, problem.moments.mean))
    difference = problem.test @ problem.labels.T - mu
    sigma = lambda n0: np.abs(np.median(difference / internal(n0), axis=0))
    count = np.bincount(problem.train_labels) / len(problem.train_labels)
    pooled = np.einsum("c,cde->de", count, problem.moments.cov)
    expected = np.sqrt(np.einsum("cd,de,ce->c", problem.labels, pooled, problem.labels))
    np.testing.assert_allclose(sigma(1e9), expected, rtol=1e-3)
    steps = np.stack([np.abs(sigma(n0) - expected) for n0 in (0.0, 5.0, 50.0, 500.0)])
    assert all((later <= earlier + 1e-6).all() for earlier, later in pairwise(steps))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_embeddings_give_float32_scores(problem, dtype):
    """The scores equal those of the same values in float32."""
    half = lambda a: jnp.asarray(a).astype(dtype)
    full = lambda a: half(a).astype("float32")
    arrays = problem.test, problem.labels, problem.words
    score = bliss_score(*map(half, arrays), problem.moments)
    assert score.dtype == jnp.float32
    full_arrays = [full(a) for a in arrays]
    # Under jit norms are not checked; rounding has changed them.
    traced = jax.jit(bliss_score)(*full_arrays, problem.moments)
    np.testing.assert_allclose(score, traced, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "argument",
    [
        "embeddings",
        "train",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("labels", "words")),
    ],
)
def test_gradients_agree_with_finite_differences(problem, argument):
    """Gradients are compared with a central difference along a random direction, in float64."""
    with reference.x64():
        to64 = lambda a: jnp.asarray(reference.unit(a))
        arrays = {
            "embeddings": to64(problem.test[:20]),
            "labels": to64(problem.labels),
            "words": to64(problem.words),
            "train": to64(problem.train),
        }

        @jax.jit
        def total(**arrays):
            moments = fit_moments(arrays["train"], problem.train_labels, num_classes=C)
            score = bliss_score(
                arrays["embeddings"], arrays["labels"], arrays["words"], moments,
                normal=MASK, shrinkage=jnp.float64(3.0),
            )  # fmt: skip
            return score.sum()

        def along(value):
            return total(**{**arrays, argument: value})

        x = arrays[argument]
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
        gradient = jax.grad(along)(x)
        assert np.isfinite(gradient).all()
        h = 1e-7
        difference = (along(x + h * direction) - along(x - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-4)


def test_gradients_are_finite_without_variance(problem):
    """With one image per class every variance is 0; classes without images are masked."""
    seen = fit_moments(problem.train[:2], np.array([0, 2]), num_classes=C)
    mask = np.isin(np.arange(C), [0, 2])
    for shrinkage in (0.0, 20.0):
        gradients = jax.grad(
            lambda x, t, w, m, s=shrinkage: bliss_score(x, t, w, m, normal=mask, shrinkage=s).sum(),
            argnums=(0, 1, 2),
        )(problem.test, problem.labels, problem.words, seen)
        assert all(np.isfinite(g).all() for g in gradients)
    by_weight = jax.grad(
        lambda w: bliss_score(
            problem.test, problem.labels, problem.words, seen, weight=w, normal=mask
        ).sum()
    )(0.5)
    assert np.isfinite(by_weight)


def test_images_sharded_over_eight_devices_get_the_same_scores(problem):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spec, whole = PartitionSpec("data"), PartitionSpec()
    images = problem.test[:88]
    sharded = jax.jit(
        jax.shard_map(
            lambda x, t, w, m: bliss_score(x, t, w, m),
            mesh=mesh,
            in_specs=(spec, whole, whole, whole),
            out_specs=spec,
        )
    )(images, problem.labels, problem.words, problem.moments)
    np.testing.assert_allclose(
        sharded,
        bliss_score(images, problem.labels, problem.words, problem.moments),
        rtol=1e-4,
        atol=1e-4,
    )


def test_other_weights_masks_and_shrinkages_do_not_trace_again(problem):
    traces = 0

    @jax.jit
    def score(x, weight, mask, shrinkage):
        nonlocal traces
        traces += 1
        return bliss_score(
            x,
            problem.labels,
            problem.words,
            problem.moments,
            10,
            weight=weight,
            normal=mask,
            shrinkage=shrinkage,
        )

    for weight, mask, n0 in [(0.5, MASK, 0.0), (0.7, ~MASK, 20.0), (0.0, MASK, 3.0)]:
        score(problem.test, weight, mask, n0)
    assert traces == 1


def test_arrays_that_a_jitted_function_closes_over_are_checked_as_constants(problem):
    labels, words = jnp.asarray(problem.labels), jnp.asarray(problem.words)
    score = jax.jit(lambda x: bliss_score(x, labels, words, problem.moments))
    expected = bliss_score(problem.test, labels, words, problem.moments)
    np.testing.assert_allclose(score(problem.test), expected, rtol=1e-4, atol=1e-4)
    doubled = 2 * labels
    with pytest.raises(ValueError, match="label_embeddings: expected rows of unit norm"):
        jax.jit(lambda x: bliss_score(x, doubled, words, problem.moments))(problem.test)


def test_a_normal_class_without_images_is_nan_under_tracing_and_an_error_otherwise(problem):
    moments = fit_moments(problem.train[:2], np.array([0, 2]), num_classes=C)
    arrays = problem.test, problem.labels, problem.words, moments
    assert np.isnan(jax.jit(bliss_score)(*arrays)).all()
    many = np.tile(problem.test, (10, 1)), *arrays[1:]  # a vectorised minimum would skip NaN
    assert np.isnan(jax.jit(bliss_score)(*many)).all()
    with pytest.raises(
        ValueError, match=r"no images were fitted of the normal classes \[1, 3, 4, 5\]"
    ):
        bliss_score(*arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k: expected an integer in 1..230 \(the texts of the dictionary\), got 0"),
        ({"k": 231}, r"k: expected an integer in 1..230 .* got 231"),
        ({"k": 2.5}, r"k: expected an integer"),
        ({"shrinkage": -1.0}, "shrinkage: expected a finite number >= 0, got -1"),
        ({"shrinkage": np.float32(-1)}, "shrinkage: expected a finite number >= 0, got -1"),
        ({"weight": float("nan")}, "weight: expected a finite number, got nan"),
        ({"chunk_size": 0}, "chunk_size: expected an integer of at least 1, got 0"),
        ({"normal": np.zeros(C, bool)}, "at least one normal class, got none"),
        ({"normal": np.ones(C + 1, bool)}, r"normal: expected a bool \[6\] array"),
        ({"normal": np.ones(C, int)}, r"normal: expected a bool \[6\] array.*got int"),
        ({"labels": 3}, r"one row for each of the 6 fitted classes, got 3"),
        ({"dim": 7}, r"expected embeddings of one dimension, got embeddings \[90, 7\]"),
    ],
)
def test_wrong_arguments_are_refused(problem, change, message, unchecked):
    x, labels = problem.test, problem.labels
    if "dim" in change:
        x = reference.unit(x[:, : change.pop("dim")]).astype(np.float32)
    if "labels" in change:
        labels = labels[: change.pop("labels")]
    with pytest.raises(ValueError, match=message):
        bliss_score(x, labels, problem.words, problem.moments, **change)


def test_moments_of_embeddings_that_were_not_normalised_are_refused(problem):
    """The mean squared norm of the fitted embeddings is tr C + |m|^2, so moments reveal it."""
    moments = fit_moments(1.1 * problem.train, problem.train_labels, num_classes=C)
    with pytest.raises(ValueError, match=r"class \d have a mean squared norm of 1\.21"):
        bliss_score(problem.test, problem.labels, problem.words, moments)


def test_an_empty_dictionary_is_refused(problem, unchecked):
    with pytest.raises(ValueError, match=r"k: expected an integer in 1..0"):
        bliss_score(problem.test, problem.labels, problem.words[:0], problem.moments)


@pytest.mark.parametrize("chunk_size", [3, 8, 100])
def test_top_k_is_a_stable_sort(chunk_size):
    """Embeddings of small integers have many ties, which go to the text that comes first, also across chunks."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (20, 4)).astype(np.float32)
    texts = rng.integers(-2, 3, (50, 4)).astype(np.float32)
    find = jax.jit(lambda x, t: top_k_similar(x, t, 7, chunk_size=chunk_size))
    values, indices = find(
        x, texts
    )  # integers are not of unit norm, which is not checked under jit
    expected = np.argsort(-(x @ texts.T), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x @ texts.T, expected, axis=1))


@pytest.mark.parametrize("images", [512, 1031, pytest.param(513, marks=pytest.mark.slow)])
def test_blocks_of_images_do_not_change_the_score(problem, images):
    """One block, several equal blocks, and blocks with a rest (1031 is prime) choose the same texts."""
    x = np.resize(problem.test, (images, D))
    texts = problem.labels, problem.words, problem.moments
    some = np.r_[0:5, images - 5 : images]
    _, together = top_k_similar(x, problem.words, 10)
    np.testing.assert_array_equal(together[some], top_k_similar(x[some], problem.words, 10)[1])
    np.testing.assert_allclose(
        bliss_score(x, *texts)[some], bliss_score(x[some], *texts), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
def test_blocks_of_classes_do_not_change_the_score(problem, shrinkage):
    """The chunks are so small that the table of statistics contains one class or a few classes at a time."""
    x = np.resize(problem.test, (120, D))
    whole = external_text_score(x, problem.words, problem.moments, shrinkage=shrinkage)
    for chunk_size in (2, 15):
        few = external_text_score(
            x, problem.words, problem.moments, shrinkage=shrinkage, chunk_size=chunk_size
        )
        np.testing.assert_allclose(few, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "texts", "classes", "dim", "k", "chunk_size"),
    [
        (10_000, 1_860, 100, 512, 10, 4096),
        pytest.param(10_000, 1_860, 10, 512, 10, 4096, marks=pytest.mark.slow),
        pytest.param(10_000, 1_860, 1_000, 512, 10, 4096, marks=pytest.mark.slow),
        pytest.param(10_000, 80_000, 10, 512, 10, 4096, marks=pytest.mark.slow),
        pytest.param(10_000, 1_000_000, 10, 512, 10, 4096, marks=pytest.mark.slow),
        pytest.param(1_000, 80_000, 1_000, 512, 10, 4096, marks=pytest.mark.slow),
        pytest.param(9_999, 1_860, 10, 512, 10, 1_000, marks=pytest.mark.slow),
        pytest.param(700, 50_000, 30, 64, 3, 256, marks=pytest.mark.slow),
        pytest.param(1_000, 3_000, 10, 64, 40, 4096, marks=pytest.mark.slow),
    ],
)
def test_memory_is_within_the_documented_bound(
    images, texts, classes, dim, k, chunk_size, unchecked
):
    """XLA's temporaries are within the bound in the docstring of `bliss_jax.scores.bliss`."""
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    moments = ClassMoments(f32(classes), f32(classes, dim), f32(classes, dim, dim))
    chunk, places = min(chunk_size, texts), min(texts, images * k)
    table = min(places * classes, max(places, chunk * dim))
    bound = min(images, 512) * (chunk + 8 * k) + 4 * images * k + 3 * texts + images * classes
    bound += 2 * table + 4 * min(chunk, 2048) * (dim + classes) + 4 * dim**2
    options = {"k": k, "chunk_size": chunk_size}
    arrays = f32(images, dim), f32(texts, dim), moments
    external = jax.jit(lambda *a: external_text_score(*a, shrinkage=20.0, **options))
    optimised = {"xla_backend_optimization_level": 3}  # as for users; tests compile without it
    used = external.lower(*arrays).compile(optimised).memory_analysis().temp_size_in_bytes
    assert 0 < used <= 4 * bound
    score = jax.jit(lambda x, t, m, labels: bliss_score(x, labels, t, m, **options))
    score = score.lower(*arrays, f32(classes, dim)).compile(optimised)
    more = 3 * images * classes + 2 * classes * dim
    assert 0 < score.memory_analysis().temp_size_in_bytes <= 4 * (bound + more)
