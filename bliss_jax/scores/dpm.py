"""Dual-pattern matching (DPM): the softmax over labels, and its distance to the mean softmax of normal images.

    a_{c,p}(x) = softmax over patches p of s(x_p, t_c)
    l_c(x)     = (s(x, t_c) + gamma sum_p a_{c,p}(x) s(x_p, t_c)) / T
    p(x)       = softmax over the normal classes of l(x)
    v_c        = mean of p(y) over the normal images y of class c               (visual pattern of class c)
    score(x)   = -max_c p_c(x) + beta min_c KL(p(x) || v_c)

x is the embedding of the image, x_p that of patch p in the joint space (`encode_patches`). The label t_c is the textual
pattern of class c. The attention a gathers the patches that resemble the label. Higher is more anomalous. With one
normal class p is 1 and the score is constant.

Source: Zhang, Xu, Xiang, "Vision-Language Dual-Pattern Matching for Out-of-Distribution Detection", ECCV 2024: the
variant without training, DPM-F, with gamma = 0.1. Two things differ from the authors' code. It scales the divergences
of a test set to the range of the probabilities and searches beta on the test data; here nothing depends on the test
data, and beta = 1. Its temperature is 10; here T = 1 as in maximum concept matching, because at 10 the divergences are
as small as rounding errors of float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, replicated, rows
from bliss_jax.scores.dense_bliss import patch_rows
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.top_k import similarity

PATCH_WEIGHT = 0.1
"""gamma of the source."""


def fit_visual_patterns(
    embeddings: Float[Array, "images dim"],
    patch_embeddings: Float[Array, "images patches dim"],
    label_embeddings: Float[Array, "classes dim"],
    labels: Int[Array, " images"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    patch_weight: float | Float[Array, ""] = PATCH_WEIGHT,
    temperature: float | Float[Array, ""] = 1.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "classes classes"]:
    """Computes v_c, the mean of p(y) over the normal images y of each class c.

    Args:
        embeddings: Unit-norm embeddings of normal images [images, dim].
        patch_embeddings: Unit-norm embeddings of their patches [images, patches, dim], at least one patch.
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        labels: Class of each image [images].
        normal: Mask of the normal classes [classes], over which the softmax is computed; all by default.
        patch_weight: gamma.
        temperature: T > 0; may be traced.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The pattern of each class [classes, classes]: one distribution over the normal classes in each row. The row of
        a class without images is NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, labels are out of
            range, a number is out of range, or no class is normal.
    """
    a = _check(embeddings, patch_embeddings, label_embeddings, normal, patch_weight, temperature)
    classes = _checks.class_labels("labels", labels, len(a.x), len(a.texts))
    return _fit(*a, classes, precision=precision)


def dpm_score(
    embeddings: Float[Array, "images dim"],
    patch_embeddings: Float[Array, "images patches dim"],
    label_embeddings: Float[Array, "classes dim"],
    patterns: Float[Array, "classes classes"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    weight: float | Float[Array, ""] = 1.0,
    patch_weight: float | Float[Array, ""] = PATCH_WEIGHT,
    temperature: float | Float[Array, ""] = 1.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -max_c p_c(x) + beta min_c KL(p(x) || v_c) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        patch_embeddings: Unit-norm embeddings of their patches [images, patches, dim], at least one patch.
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        patterns: Visual patterns [classes, classes], from `fit_visual_patterns` with the same `normal`,
            `patch_weight` and `temperature`.
        normal: Mask of the normal classes [classes]; all by default.
        weight: beta.
        patch_weight: gamma.
        temperature: T > 0; may be traced.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Under tracing, an
        image that is not finite has the score NaN. All images have NaN if a normal class has no pattern.

    Raises:
        ValueError: One of the reasons listed in `fit_visual_patterns`, or the patterns are not [classes, classes].
    """
    a = _check(embeddings, patch_embeddings, label_embeddings, normal, patch_weight, temperature)
    known = _checks.as_array("patterns", patterns)
    classes = len(a.texts)
    if known.shape != (classes, classes) or not jnp.issubdtype(known.dtype, jnp.floating):
        raise ValueError(
            f"patterns: expected a floating [{classes}, {classes}] array from fit_visual_patterns, got "
            f"{known.dtype} {list(known.shape)}"
        )
    _checks.scalar("weight", weight)
    return _dpm(*a, known, weight, precision=precision)


class _Arguments(NamedTuple):
    x: jax.Array
    patches: jax.Array
    texts: jax.Array
    mask: Any
    patch_weight: Any
    temperature: Any


def _check(
    embeddings: Any, patches: Any, labels: Any, normal: Any, patch_weight: Any, temperature: Any
) -> _Arguments:
    """Checks the arguments that both functions share, and returns them."""
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    flat, shape = patch_rows(patches)
    if shape[:1] != x.shape[:1]:
        raise ValueError(
            f"patch_embeddings: expected patches of {x.shape[0]} images, got {list(shape)}"
        )
    flat = checks.embeddings("patch_embeddings", flat)
    texts = checks.embeddings("label_embeddings", labels)
    same_dim(embeddings=x, patch_embeddings=flat, label_embeddings=texts)
    _checks.scalar("patch_weight", patch_weight)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    mask = checks.normal_mask(normal, len(texts))
    checks.run()
    return _Arguments(
        x, flat.reshape(*shape, flat.shape[1]), texts, mask, patch_weight, temperature
    )


def _log_softmax(
    x: jax.Array,
    patches: jax.Array,
    texts: jax.Array,
    mask: Any,
    patch_weight: Any,
    temperature: Any,
    *,
    precision: Precision,
) -> Float[jax.Array, "images classes"]:
    """Returns log p(x), and -inf for classes that are not normal."""
    cosines = similarity(x, texts, precision=precision)
    dtype = cosines.dtype
    local = similarity(patches.reshape(-1, patches.shape[2]), texts, precision=precision)
    local = local.reshape(*patches.shape[:2], len(texts)).astype(dtype)
    gathered = jnp.sum(jax.nn.softmax(local, axis=1) * local, axis=1)
    both = cosines + jnp.asarray(patch_weight).astype(dtype) * gathered
    logits = both / jnp.asarray(temperature).astype(dtype)
    return jax.nn.log_softmax(jnp.where(mask[None, :], logits, -jnp.inf), axis=1)


@compiled(static=("precision",), out=replicated)
def _fit(
    x: jax.Array,
    patches: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    patch_weight: Any,
    temperature: Any,
    classes: jax.Array,
    *,
    precision: Precision,
) -> jax.Array:
    log_p = _log_softmax(x, patches, texts, mask, patch_weight, temperature, precision=precision)
    member = (classes[:, None] == jnp.arange(len(texts))[None, :]).astype(log_p.dtype)
    total = jnp.matmul(member.T, jnp.exp(log_p), precision=jax.lax.Precision.HIGHEST)
    count = member.sum(axis=0)[:, None]
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _dpm(
    x: jax.Array,
    patches: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    patch_weight: Any,
    temperature: Any,
    patterns: jax.Array,
    weight: Any,
    *,
    precision: Precision,
) -> jax.Array:
    log_p = _log_softmax(x, patches, texts, mask, patch_weight, temperature, precision=precision)
    both = mask[:, None] & mask[None, :]
    safe = jnp.where(mask[None, :], log_p, 0)
    p = jnp.where(mask[None, :], jnp.exp(safe), 0)
    log_v = jnp.where(both, jnp.log(jnp.where(both, patterns.astype(p.dtype), 1)), 0)
    # KL(p || v_c) = sum_j p_j log p_j - sum_j p_j log v_{c,j}, as one sum so that equal terms cancel early.
    divergence = jnp.sum(p[:, None, :] * (safe[:, None, :] - log_v[None, :, :]), axis=2)
    visual = min_over_classes(divergence, normal=mask)
    textual = min_over_classes(-p, normal=mask)
    return nan_unless_finite(textual + jnp.asarray(weight).astype(p.dtype) * visual, x)
