"""Virtual-logit matching (ViM): the energy of the labels against a logit made from the residual of the embedding.

    r(x)     = | R x |              R projects on the directions in which the normal images vary least
    alpha    = sum over normal images y of max_c l_c(y) / sum over normal images y of r(y),    l_c(y) = s(y, t_c) / T
    score(x) = alpha r(x) - log sum_c exp(l_c(x))                       over the normal classes c

R leaves out the D eigenvectors of sum y y^T / n with the largest eigenvalues, the principal subspace. The published
score is the softmax probability of the virtual logit alpha r(x), which ranks images as the difference above does.
Higher is more anomalous.

The origin is 0, as the classifier of CLIP has no bias. D = dim / 2; the publication has D = 512 for 768 dimensions and
1,000 for 2,048. If there are fewer than `dim` normal images, D is at most half of their number, because their own
residual would be 0 otherwise; this limit is an addition of this library. The logits are CLIP's, with T = 0.01.

Source: Wang, Li, Feng, Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, section 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import row_mask, same_dim
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def vim_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    normal_embeddings: Float[Array, "bank dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    where: Bool[Array, " bank"] | None = None,
    principal: int | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes alpha r(x) - log sum_c exp(s(x, t_c) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal_embeddings: Unit-norm embeddings of the normal images [bank, dim].
        normal: Mask of the normal classes [classes]; all by default.
        where: Normal images that count [bank], e.g. those of the normal classes; all by default.
        principal: D, dimensions of the principal subspace, in 1..dim-1; static. Half of the dimensions by default, and
            never more than half of the number of normal images.
        temperature: T > 0; may be traced.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Under tracing, an
        image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, `principal` is not an
            integer in 1..dim-1, the temperature is not one positive number, no class is normal, or no normal image
            counts.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    bank = checks.embeddings("normal_embeddings", normal_embeddings)
    same_dim(embeddings=x, label_embeddings=labels, normal_embeddings=bank)
    dim = x.shape[1]
    if principal is not None:
        _checks.static_integer("principal", principal, 1, dim - 1)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    counted = row_mask("where", where, len(bank), "normal image")
    counted = jnp.ones(len(bank), bool) if counted is None else counted
    checks.add(
        "at least", 1, lambda _: "normal_embeddings: expected at least one image that counts, got none", counted
    )  # fmt: skip
    mask = checks.normal_mask(normal, len(labels))
    checks.run()
    return _vim(
        x, labels, bank, counted, mask, temperature,
        principal=dim // 2 if principal is None else principal, precision=precision,
    )  # fmt: skip


@compiled(static=("principal", "precision"), out=lambda x, *_: rows(x))
def _vim(
    x: jax.Array,
    labels: jax.Array,
    bank: jax.Array,
    counted: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    principal: int,
    precision: Precision,
) -> jax.Array:
    fitted = _fit(
        labels, bank, counted, mask, temperature,
        dtype=_checks.accumulation_dtype(x, labels, bank), principal=principal, precision=precision,
    )  # fmt: skip
    return _score(x, fitted, temperature, precision)


class Residual(NamedTuple):
    """Everything in the score that does not depend on images; a pytree."""

    labels: Float[jax.Array, "*mapped classes dim"]
    directions: Float[jax.Array, "*mapped dim dim"]
    """Eigenvectors in which the normal images vary least, as columns; 0 for the principal subspace."""
    alpha: Float[jax.Array, "*mapped"]
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes."""


def _fit(
    labels: jax.Array,
    bank: jax.Array,
    counted: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    dtype: Any,
    principal: int,
    precision: Precision,
) -> Residual:
    images = jnp.where(counted[:, None], bank.astype(dtype), 0)
    number = counted.sum()
    second = jnp.matmul(images.T, images, precision=lax.Precision.HIGHEST)
    second = second / jnp.maximum(number, 1).astype(dtype)
    _, vectors = jnp.linalg.eigh(second)  # ascending eigenvalues
    kept = jnp.arange(len(vectors)) < len(vectors) - jnp.minimum(principal, number // 2)
    directions = jnp.where(kept[None, :], vectors, 0)
    largest = label_logits(bank, labels, mask, temperature, precision).max(axis=1).astype(dtype)
    of_bank = jnp.sum(jnp.where(counted, _length(bank, directions, precision), 0))
    alpha = jnp.sum(jnp.where(counted, largest, 0)) / jnp.maximum(of_bank, jnp.finfo(dtype).tiny)
    return Residual(labels, directions, alpha, mask)


def _length(
    vectors: Float[jax.Array, "rows dim"],
    directions: Float[jax.Array, "dim dim"],
    precision: Precision,
) -> Float[jax.Array, " rows"]:
    """Returns r of each row."""
    projected = jnp.matmul(vectors.astype(directions.dtype), directions, precision=precision)
    squared = jnp.sum(projected**2, axis=1)
    # The gradient of the root is infinite at 0.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _score(x: jax.Array, fitted: Residual, temperature: Any, precision: Precision) -> jax.Array:
    logits = label_logits(x, fitted.labels, fitted.normal, temperature, precision)
    energy = jax.nn.logsumexp(logits, axis=1).astype(fitted.directions.dtype)
    length = _length(x, fitted.directions, precision)
    return nan_unless_finite(fitted.alpha * length - energy, x)


def _of_split(embeddings, label_embeddings, train_embeddings, train_labels, normal) -> jax.Array:
    where = normal[train_labels]
    return vim_score(embeddings, label_embeddings, train_embeddings, normal=normal, where=where)


def _prepare(label_embeddings, train_embeddings, train_labels, normal) -> Residual:
    return _fit(
        label_embeddings, train_embeddings, normal[train_labels], normal, CLIP_TEMPERATURE,
        dtype=_checks.accumulation_dtype(label_embeddings, train_embeddings),
        principal=train_embeddings.shape[1] // 2, precision=HIGHEST,
    )  # fmt: skip


def _from_prepared(embeddings, prepared) -> jax.Array:
    return _score(embeddings, prepared, CLIP_TEMPERATURE, HIGHEST)


SCORE = Score(
    "vim",
    _of_split,
    source="Wang et al., CVPR 2022",
    order=29,
    one_split_at_a_time=True,
    prepare=_prepare,
    from_prepared=_from_prepared,
)
