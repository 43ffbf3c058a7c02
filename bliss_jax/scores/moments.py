"""The fitted state of normal data: count, mean and covariance of the embeddings of each class.

Cosines are linear in the image embedding. With n images of a class c, of mean m_c and covariance C_c
(ddof 0), the similarity of the class to any text t therefore has

    mean      mu_{c,t}      = t . m_c
    variance  sigma^2_{c,t} = t^T C_c t

So the moments are all that BLISS keeps of its normal images. They do not depend on labels, dictionary, k and
lambda, they are updated batch by batch, and they are merged exactly over batches, devices and hosts (Chan, Golub,
LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances").
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Num

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, explicit_mesh, replicated, row_axes
from bliss_jax.scores.class_blocks import class_blocks
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.shapes import row_mask, same_dim

_MAX_BLOCK = 512


class ClassMoments(NamedTuple):
    """Count, mean and covariance (ddof 0) of the embeddings of each class; a pytree.

    A class without images has count 0 and zeros elsewhere. Under `vmap` each leaf gains the mapped axes in front.
    """

    count: Num[jax.Array, "*mapped classes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of images per class, in the dtype of the mean, so that the moments can be differentiated as a whole.
    float32 holds them exactly up to 16,777,216 per class."""
    mean: Float[jax.Array, "*mapped classes dim"]
    """Mean embedding. It is not of unit norm and must not be normalised."""
    cov: Float[jax.Array, "*mapped classes dim dim"]
    """Covariance of the embeddings, divided by the count (not by the count less one)."""

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {list(jnp.shape(leaf))}" for name, leaf in self._asdict().items()
        )
        return f"ClassMoments({shapes})"


export.register_namedtuple_serialization(ClassMoments, serialized_name="bliss_jax.ClassMoments")


def init_moments(
    num_classes: int, dim: int | None = None, *, like: Float[Array, "images dim"] | None = None
) -> ClassMoments:
    """Returns the moments of 0 images, with which a stream starts. Merging them with others changes nothing.

    Args:
        num_classes: C; static.
        dim: Dimension of the embeddings; static. By default that of `like`.
        like: Embeddings that determine the dtype (at least float32) and the mesh axes of the moments. A loop inside
            `shard_map` needs them, because its carry must vary over the same axes as the batches.

    Raises:
        ValueError: `num_classes` or `dim` is not a positive integer, or neither `dim` nor `like` is given.
    """
    _checks.static_integer("num_classes", num_classes, 1)
    if like is not None:
        zero = zero_like_inputs(jnp.asarray(like)).astype(_checks.accumulation_dtype(like))
        dim = int(like.shape[-1]) if dim is None else dim
    elif dim is not None:
        zero = jnp.zeros((), jnp.float32)
    else:
        raise ValueError("init_moments: expected dim=... or like=embeddings, got neither")
    _checks.static_integer("dim", dim, 1)
    return _no_images(num_classes, dim, zero)


def _no_images(num_classes: int, dim: int, zero: Float[jax.Array, ""]) -> ClassMoments:
    return ClassMoments(
        count=jnp.zeros(num_classes, zero.dtype) + zero,
        mean=jnp.zeros((num_classes, dim), zero.dtype) + zero,
        cov=jnp.zeros((num_classes, dim, dim), zero.dtype) + zero,
    )


def fit_moments(
    embeddings: Float[Array, "images dim"],
    labels: Int[Array, " images"],
    *,
    num_classes: int,
    where: Bool[Array, " images"] | None = None,
) -> ClassMoments:
    """Computes the moments of each class: n_c, m_c = mean(x), C_c = mean((x - m_c)(x - m_c)^T).

    The images are sorted by class and divided into blocks of one class each, and the centred moments of the blocks
    are merged one after the other. The work is that of one product X^T X for any number of classes, and large sums
    are never subtracted from each other.

    If images are sharded over explicit mesh axes, each device fits its own images, and the moments are merged. With
    automatic axes under `jit` the sort gathers the images; `psum_moments` inside `shard_map` avoids that.

    Args:
        embeddings: Embeddings [images, dim] of any norm. The scores need the moments of unit-norm embeddings, which
            they recognise by tr C_c + |m_c|^2 = 1. 0 images give the moments of `init_moments`.
        labels: Class of each image [images], in 0..num_classes-1. Under tracing, when the range cannot be
            checked, an image with another label belongs to no class.
        num_classes: C; static.
        where: Rows to count [images]; False marks padding. All by default.

    Returns:
        ClassMoments with count [C], mean [C, dim], cov [C, dim, dim], at least float32.

    Raises:
        ValueError: Shapes or dtypes do not fit, rows are not finite, or labels are out of range. Values are checked
            unless they are traced.
    """
    _checks.static_integer("num_classes", num_classes, 1)
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings, unit_norm=False)
    counted = row_mask("where", where, len(x), "image")
    y = checks.class_labels("labels", labels, len(x), num_classes, where=counted)
    checks.run()
    return _fit(x, y, counted, num_classes=num_classes)


def _fit(
    x: jax.Array, y: jax.Array, counted: jax.Array | None, *, num_classes: int
) -> ClassMoments:
    axes = row_axes(x)
    if axes is None or not len(x):
        return _fit_here(x, y, counted, num_classes=num_classes)
    mesh = explicit_mesh(x)
    return _fit_shards(x, y, counted, num_classes=num_classes, axes=axes, mesh=mesh)


@partial(jax.jit, static_argnames=("num_classes", "axes", "mesh"))
def _fit_shards(
    x: jax.Array,
    y: jax.Array,
    counted: jax.Array | None,
    *,
    num_classes: int,
    axes: Any,
    mesh: AbstractMesh,
) -> ClassMoments:
    """Computes the moments of images that are sharded over explicit mesh axes. Each device fits its own images."""

    def fit(x: jax.Array, y: jax.Array, counted: jax.Array | None) -> ClassMoments:
        return psum_moments(_fit_blocks(x, y, counted, num_classes=num_classes), axes)

    spec = PartitionSpec(axes)
    arrays = x, y, counted
    arrays = jax.tree.map(lambda a: jax.sharding.reshard(a, NamedSharding(mesh, spec)), arrays)
    mapped = jax.shard_map(
        fit,
        mesh=mesh,
        in_specs=(spec, spec, None if counted is None else spec),
        out_specs=PartitionSpec(),
        axis_names={axes} if isinstance(axes, str) else set(axes),
    )
    return mapped(*arrays)


def _fit_blocks(
    x: jax.Array, y: jax.Array, counted: jax.Array | None, *, num_classes: int
) -> ClassMoments:
    dtype = _checks.accumulation_dtype(x)
    zero = zero_like_inputs(x, y, *(() if counted is None else (counted,))).astype(dtype)
    empty = _no_images(num_classes, x.shape[1], zero)
    if not len(x):
        return empty
    inside = (y >= 0) & (y < num_classes)
    y = jnp.where(inside if counted is None else inside & counted, y, num_classes)

    def add_block(moments: ClassMoments, entry: Any) -> tuple[ClassMoments, None]:
        rows, valid, c = entry
        of_class = jax.tree.map(lambda leaf: leaf[c][None], moments)
        merged = _merge(of_class, _centred_moments(x[rows].astype(dtype), valid))
        return jax.tree.map(lambda leaf, new: leaf.at[c].set(new[0]), moments, merged), None

    return lax.scan(add_block, empty, class_blocks(y, num_classes, _MAX_BLOCK))[0]


_fit_here = compiled(static=("num_classes",), out=replicated)(_fit_blocks)


def merge_moments(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    """Computes the moments of the union of two disjoint sets of images (Chan et al. 1979).

    With n = n1 + n2 and delta = m2 - m1, per class:

        m = m1 + (n2 / n) delta
        C = (n1 C1 + n2 C2) / n + (n1 n2 / n^2) delta delta^T

    Up to rounding, the result does not depend on the order. `init_moments` gives the neutral element.

    Raises:
        ValueError: The arguments are not moments with the same number of classes and dimension.
    """
    check_moments_type("merge_moments", first)
    check_moments_type("merge_moments", second)
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            "merge_moments: expected moments of the same classes and dimension, got mean "
            f"{list(first.mean.shape)} and {list(second.mean.shape)}"
        )
    return _merge_jitted(first, second)


def _merge(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    dtype = _checks.accumulation_dtype(first.mean, second.mean)
    first, second = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), (first, second))
    count = first.count + second.count
    share1 = _ratio(first.count, count)[:, None]
    share2 = _ratio(second.count, count)[:, None]
    delta = second.mean - first.mean
    spread = (share1 * share2 * delta)[:, :, None] * delta[:, None, :]
    return ClassMoments(
        count=count,
        mean=first.mean + share2 * delta,
        cov=share1[:, :, None] * first.cov + share2[:, :, None] * second.cov + spread,
    )


_merge_jitted = compiled(static=(), out=replicated)(_merge)


def update_moments(
    moments: ClassMoments,
    embeddings: Float[Array, "images dim"],
    labels: Int[Array, " images"],
    *,
    where: Bool[Array, " images"] | None = None,
) -> ClassMoments:
    """Adds a batch of normal images: `merge_moments(moments, fit_moments(embeddings, labels))`.

    The result has the dtype of `moments`, so that it is a valid carry of `lax.scan`. A batch of 0 images leaves the
    moments unchanged.

    Args:
        moments: Moments of the earlier batches.
        embeddings: Embeddings [images, dim], as for `fit_moments`.
        labels: Class of each image [images], as for `fit_moments`.
        where: Rows to count [images], as for `fit_moments`.

    Raises:
        ValueError: One of the reasons listed in `fit_moments`, or the embeddings have another dimension than the
            moments.
    """
    check_moments_type("moments", moments)
    num_classes, dim = moments.mean.shape
    if embeddings.ndim == 2 and embeddings.shape[1] != dim:
        raise ValueError(
            f"embeddings: expected [n, {dim}], the dimension of the moments, got {list(embeddings.shape)}"
        )
    batch = fit_moments(embeddings, labels, num_classes=num_classes, where=where)
    if not len(embeddings):
        return jax.tree.map(jnp.asarray, moments)
    return _update(moments, batch)


def _merge_as_first(moments: ClassMoments, batch: ClassMoments) -> ClassMoments:
    dtype = _checks.accumulation_dtype(moments.mean)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), _merge(moments, batch))


_update = compiled(static=(), out=replicated)(_merge_as_first)


def psum_moments(moments: ClassMoments, axis_name: str | tuple[str, ...]) -> ClassMoments:
    """Computes the moments of the union over a mapped axis, for use inside `shard_map` or `vmap`.

    This is `merge_moments` for any number of participants i: with n = sum n_i and m = sum n_i m_i / n,

        C = sum n_i (C_i + (m_i - m)(m_i - m)^T) / n

    Every participant receives the same result.

    Args:
        moments: The moments of this participant.
        axis_name: Name of the mapped axis, or a tuple of names.

    Raises:
        ValueError: The argument is not `ClassMoments`.
    """
    check_moments_type("moments", moments)
    moments = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(moments.mean.dtype), moments)
    count = lax.psum(moments.count, axis_name)
    share = _ratio(moments.count, count)
    mean = lax.psum(share[:, None] * moments.mean, axis_name)
    delta = moments.mean - mean
    cov = moments.cov + delta[:, :, None] * delta[:, None, :]
    return ClassMoments(count, mean, lax.psum(share[:, None, None] * cov, axis_name))


def check_moments_type(name: str, moments: Any) -> None:
    """Raises ValueError unless `moments` is `ClassMoments` without mapped axes."""
    if not isinstance(moments, ClassMoments):
        raise ValueError(
            f"{name}: expected ClassMoments (from fit_moments), got a {type(moments).__name__}"
        )
    mean, cov = jnp.shape(moments.mean), jnp.shape(moments.cov)
    if len(mean) != 2 or cov != (*mean, mean[-1]) or jnp.shape(moments.count) != mean[:1]:
        hint = "; map over stacked moments with jax.vmap" if len(mean) > 2 else ""
        raise ValueError(
            f"{name}: expected count [classes], mean [classes, dim] and cov [classes, dim, dim], got "
            f"{list(jnp.shape(moments.count))}, {list(mean)} and {list(cov)}{hint}"
        )


def as_jax_leaves(moments: ClassMoments) -> ClassMoments:
    """Returns the moments with JAX arrays as leaves."""
    if all(isinstance(leaf, jax.Array) for leaf in moments):
        return moments
    return ClassMoments(*map(jnp.asarray, moments))


def check_moments(
    checks: _checks.ValueChecks,
    moments: Any,
    *,
    embeddings: jax.Array | None = None,
    labels: jax.Array | None = None,
    texts: jax.Array | None = None,
    unit_norm: bool = True,
) -> ClassMoments:
    """Checks the moments that a score reads, and returns them with JAX arrays as leaves.

    Args:
        checks: Checks of the call, to which the check of the moments' values is added.
        moments: Moments to check.
        embeddings: Image embeddings of the same call.
        labels: Label embeddings of the same call, one row per class.
        texts: Dictionary embeddings of the same call.
        unit_norm: Whether the moments must be those of unit-norm embeddings.

    Raises:
        ValueError: The argument is not moments, or the arrays do not fit each other.
    """
    check_moments_type("moments", moments)
    moments = as_jax_leaves(moments)
    if labels is not None and len(labels) != len(moments.mean):
        raise ValueError(
            f"label_embeddings: expected one row for each of the {len(moments.mean)} fitted classes, "
            f"got {len(labels)}"
        )
    given = {"embeddings": embeddings, "moments.mean": moments.mean, "label_embeddings": labels}
    given["dictionary_embeddings"] = texts
    same_dim(**{name: array for name, array in given.items() if array is not None})
    if unit_norm:
        checks.unit_norm_moments(*moments)
    return moments


def _centred_moments(
    x: Float[jax.Array, "block dim"], valid: Bool[jax.Array, " block"]
) -> ClassMoments:
    """Computes the moments of the valid rows of a block of one class, from deviations from the block's mean."""
    count = valid.sum(dtype=x.dtype)
    divisor = jnp.maximum(count, 1)
    x = jnp.where(valid[:, None], x, 0)
    mean = x.sum(axis=0) / divisor
    centred = jnp.where(valid[:, None], x - mean[None, :], 0)
    cov = jnp.matmul(centred.T, centred, precision=lax.Precision.HIGHEST) / divisor
    return ClassMoments(count[None], mean[None], cov[None])


def _ratio(part: Float[jax.Array, "*n"], whole: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    """Returns part / whole, or 0 if whole is 0."""
    return part / jnp.maximum(whole, 1)
