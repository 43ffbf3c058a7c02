"""The fitted state of normal data: count, mean and covariance of the embeddings of each class.

Cosines are linear in the image embedding. With n images of a class c, of mean m_c and covariance C_c
(ddof 0), the similarity of the class to *any* text t therefore has

    mean      mu_{c,t}      = t . m_c
    variance  sigma^2_{c,t} = t^T C_c t

so the moments are all that BLISS has to keep of its normal images: independent of labels, dictionary,
k and lambda, updated batch by batch, and merged exactly over batches, devices and hosts (Chan, Golub,
LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances").

Everything here is a pure function of arrays; the caller jits, vmaps and shards.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.class_blocks import class_blocks
from bliss_jax.scores.reductions import zero_like_inputs

_MAX_BLOCK = 512


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassMoments:
    """Count, mean and covariance (ddof 0) of the embeddings of each class; a pytree.

    A class of which nothing was seen has count 0 and zeros elsewhere. Under `vmap` each leaf gains the
    mapped axes in front.
    """

    count: Int[jax.Array, "*mapped classes"]
    """Images seen per class, int32."""
    mean: Float[jax.Array, "*mapped classes dim"]
    """Mean embedding; not unit-norm, and not to be normalised."""
    cov: Float[jax.Array, "*mapped classes dim dim"]
    """Covariance of the embeddings, divided by the count (not by the count less one)."""


def init_moments(num_classes: int, dim: int) -> ClassMoments:
    """The moments of no images at all: what `merge_moments` leaves unchanged, a start for `lax.scan`."""
    return ClassMoments(
        count=jnp.zeros(num_classes, jnp.int32),
        mean=jnp.zeros((num_classes, dim), jnp.float32),
        cov=jnp.zeros((num_classes, dim, dim), jnp.float32),
    )


def fit_moments(
    embeddings: Float[Array, "images dim"],
    labels: Int[Array, " images"],
    *,
    num_classes: int,
    where: Bool[Array, " images"] | None = None,
) -> ClassMoments:
    """Moments of each class: n_c, m_c = mean(x), C_c = mean((x - m_c)(x - m_c)^T).

    The images are sorted by class and cut into blocks that each hold one class, whose centred moments
    are merged one after the other: the work is that of one product X^T X, whatever the number of
    classes, and no difference of large sums is ever taken.

    Args:
        embeddings: Embeddings [images, dim]. Moments exist of any vectors; the scores want them of
            unit-norm ones, and can tell (tr C_c + |m_c|^2 = 1).
        labels: Class of each image [images], in 0..num_classes-1. While tracing, where the range
            cannot be checked, a label outside belongs to no class.
        num_classes: C, static under `jit`.
        where: Rows to count [images]; False marks padding. All by default.

    Returns:
        ClassMoments with count [C], mean [C, dim], cov [C, dim, dim].

    Raises:
        ValueError: wrong shapes or dtypes, rows that are not finite, labels out of range, no images.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    where = None if where is None else jnp.asarray(where)
    if where is not None and (where.shape != (len(embeddings),) or where.dtype != jnp.bool_):
        raise ValueError(
            f"where: expected a bool [{len(embeddings)}] array, got {where.dtype} {list(where.shape)}"
        )
    x = _checks.embeddings_as_float("embeddings", embeddings, unit_norm=False)
    if not len(x):
        raise ValueError("embeddings: expected at least one image, got none")
    counted = jnp.ones(len(x), bool) if where is None else jnp.asarray(where)
    y = _checks.class_labels("labels", labels, len(x), num_classes, where=counted)
    y = jnp.where(counted & (y >= 0) & (y < num_classes), y, num_classes)

    rows, valid, block_class = class_blocks(y, num_classes, _MAX_BLOCK)

    def add_block(moments: ClassMoments, entry) -> tuple[ClassMoments, None]:
        rows, valid, c = entry
        of_class = jax.tree.map(lambda leaf: leaf[c][None], moments)
        merged = merge_moments(of_class, _centred_moments(x[rows], valid))
        return jax.tree.map(lambda leaf, new: leaf.at[c].set(new[0]), moments, merged), None

    # The state takes the precision of the embeddings (float64 where x64 mode gives it).
    zero = zero_like_inputs(x, y)
    empty = init_moments(num_classes, x.shape[1])
    start = ClassMoments(
        count=empty.count + zero.astype(jnp.int32),
        mean=empty.mean.astype(x.dtype) + zero,
        cov=empty.cov.astype(x.dtype) + zero,
    )
    return lax.scan(add_block, start, (rows, valid, block_class))[0]


def merge_moments(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    """Moments of the union of two disjoint sets of images (Chan et al. 1979).

    With n = n1 + n2 and delta = m2 - m1, per class:

        m = m1 + (n2 / n) delta
        C = (n1 C1 + n2 C2) / n + (n1 n2 / n^2) delta delta^T

    Associative and commutative up to rounding; `init_moments` is its neutral element.

    Raises:
        ValueError: moments of different numbers of classes or dimensions.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            "merge_moments: expected moments of the same classes and dimension, got mean "
            f"{list(first.mean.shape)} and {list(second.mean.shape)}"
        )
    count = first.count + second.count
    share1 = _ratio(first.count, count, first.mean.dtype)[:, None]
    share2 = _ratio(second.count, count, first.mean.dtype)[:, None]
    delta = second.mean - first.mean
    spread = (share1 * share2 * delta)[:, :, None] * delta[:, None, :]
    return ClassMoments(
        count=count,
        mean=first.mean + share2 * delta,
        cov=share1[:, :, None] * first.cov + share2[:, :, None] * second.cov + spread,
    )


def update_moments(
    moments: ClassMoments,
    embeddings: Float[Array, "images dim"],
    labels: Int[Array, " images"],
    *,
    where: Bool[Array, " images"] | None = None,
) -> ClassMoments:
    """`merge_moments(moments, fit_moments(embeddings, labels))`: one more batch of normal images."""
    num_classes = moments.count.shape[0]
    batch = fit_moments(embeddings, labels, num_classes=num_classes, where=where)
    return merge_moments(moments, batch)


def psum_moments(moments: ClassMoments, axis_name: str | tuple[str, ...]) -> ClassMoments:
    """Moments of the union over a mapped axis, for use inside `shard_map`, `pmap` or `vmap`.

    The many-sided form of `merge_moments`: with n = sum n_i and m = sum n_i m_i / n,

        C = sum n_i (C_i + (m_i - m)(m_i - m)^T) / n

    Every participant receives the same result.
    """
    count = lax.psum(moments.count, axis_name)
    share = _ratio(moments.count, count, moments.mean.dtype)
    mean = lax.psum(share[:, None] * moments.mean, axis_name)
    delta = moments.mean - mean
    cov = moments.cov + delta[:, :, None] * delta[:, None, :]
    return ClassMoments(count, mean, lax.psum(share[:, None, None] * cov, axis_name))


def check_moments(
    moments: ClassMoments,
    *,
    embeddings: jax.Array,
    labels: jax.Array | None = None,
    texts: jax.Array | None = None,
) -> None:
    """What the scores that read texts against moments ask of them.

    Raises:
        ValueError: labels that are not one for each class, embeddings of other dimensions, or (where values
            are concrete) moments of embeddings that were not of unit norm.
    """
    if labels is not None and len(labels) != len(moments.count):
        raise ValueError(
            f"label_embeddings: expected one row for each of the {len(moments.count)} fitted classes, "
            f"got {len(labels)}"
        )
    given = {"embeddings": embeddings, "moments.mean": moments.mean}
    if labels is not None:
        given["label_embeddings"] = labels
    if texts is not None:
        given["dictionary_embeddings"] = texts
    _checks.same_dim(**given)
    # The mean squared norm of the fitted embeddings: E|x|^2 = tr C + |m|^2.
    squared = _checks.look_at(
        lambda count, mean, cov: jnp.where(
            count > 0, jnp.trace(cov, axis1=1, axis2=2) + jnp.sum(mean**2, axis=1), 1
        ),
        moments.count,
        moments.mean,
        moments.cov,
    )
    if squared is not None and not np.allclose(squared, 1, rtol=0, atol=0.04):
        c = int(np.argmax(np.abs(squared - 1)))
        raise ValueError(
            "moments: expected those of unit-norm embeddings, but the fitted images of class "
            f"{c} have a mean squared norm of {squared[c]:.4g}"
        )


def _centred_moments(
    x: Float[jax.Array, "block dim"], valid: Bool[jax.Array, " block"]
) -> ClassMoments:
    """Moments of the valid rows of a block of one class, from deviations from the block's own mean."""
    count = valid.sum(dtype=jnp.int32)
    divisor = jnp.maximum(count, 1).astype(x.dtype)
    x = jnp.where(valid[:, None], x, 0)
    mean = x.sum(axis=0) / divisor
    centred = jnp.where(valid[:, None], x - mean[None, :], 0)
    cov = jnp.matmul(centred.T, centred, precision=lax.Precision.HIGHEST) / divisor
    return ClassMoments(count[None], mean[None], cov[None])


def _ratio(part: jax.Array, whole: jax.Array, dtype) -> jax.Array:
    """Part / whole, and 0 where whole is 0."""
    return part.astype(dtype) / jnp.maximum(whole, 1).astype(dtype)
