"""Metrics of how well a score separates anomalous from normal images.

All functions share one convention: scores [n], higher = more anomalous; `is_anomaly` [n], bool (or integers 0 and
1); **the anomaly is the positive class**. Every function is pure and composes under `jit` and `vmap`, so `vmap`
evaluates all splits of a benchmark in one call. `where` excludes images, e.g. if a split does not use the whole test
set.

NaN scores and a missing class (e.g. with 0 images) raise ValueError if values are concrete. Under tracing they give
NaN.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.stats import norm
from jaxtyping import Bool, Float, Int, Integer, Key, PRNGKeyArray

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated

Labels = Bool[Array, " images"] | Integer[Array, " images"]


class Interval(NamedTuple):
    """A confidence interval, whose ends are scalars."""

    low: Float[jax.Array, ""]
    high: Float[jax.Array, ""]


def auroc(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
) -> Float[jax.Array, ""]:
    """Computes the area under the ROC curve: P(anomalous > normal) + P(anomalous = normal) / 2.

    This is the Mann-Whitney statistic, with ties counted half (mid-ranks). Pairs are counted in integers, so
    the result does not lose digits if there are many images.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.

    Returns:
        The area, in [0, 1].

    Raises:
        ValueError: Shapes or dtypes do not fit (e.g. in scikit-learn's order of arguments), scores are NaN, or there
            is no anomalous or no normal image.
    """
    return _auroc(*_check(scores, is_anomaly, where))


@compiled(static=(), out=replicated)
def _auroc(scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array) -> jax.Array:
    ranked = _rank(scores, is_anomaly, counted)
    return _mean(_normals_below(ranked) / (2 * ranked.num_normal), ranked.anomaly, ranked.invalid)


def auroc_interval(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    confidence: float | Float[Array, ""] = 0.95,
) -> Interval:
    """Computes DeLong's interval for the AUROC: A -+ z sqrt(var(V10) / m + var(V01) / n), clipped to [0, 1].

    V10 of an anomalous image is the share of the n normal images that it outranks, and V01 of a normal image is the
    share of the m anomalous images that outrank it. Ties count half, and variances have ddof 1. The interval covers
    other test sets of these sizes for this fixed score, not other fits of the score.

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988; computed from ranks after Sun and Xu, 2014.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        confidence: Coverage, in (0, 1); may be traced.

    Returns:
        The interval; NaN if a class has fewer than two images.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or the confidence is out of range.
    """
    _check_confidence(confidence)
    return _auroc_interval(*_check(scores, is_anomaly, where), confidence)


@compiled(static=(), out=replicated)
def _auroc_interval(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, confidence: Any
) -> Interval:
    ranked = _rank(scores, is_anomaly, counted)
    outranked = _normals_below(ranked) / (2 * ranked.num_normal)
    outranking = 1 - _anomalies_below(ranked) / (2 * ranked.num_anomaly)
    area = _mean(outranked, ranked.anomaly, ranked.invalid)
    variance = _variance_of_mean(outranked, ranked.anomaly) + _variance_of_mean(
        outranking, ranked.normal
    )
    confidence = jnp.asarray(confidence).astype(variance.dtype)
    half = norm.ppf((1 + confidence) / 2) * jnp.sqrt(variance)
    return Interval(jnp.clip(area - half, 0, 1), jnp.clip(area + half, 0, 1))


def aupr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    positive: Literal["anomaly", "normal"] = "anomaly",
) -> Float[jax.Array, ""]:
    """Computes the average precision: the mean over anomalous images a of the precision at the threshold score(a).

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct thresholds, as in scikit-learn's `average_precision_score`: the
    curve is a step function without linear interpolation. With the anomaly as the positive class it is also called
    "AUPR-out", and with the normal class, which has low scores, "AUPR-in".

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        positive: The positive class, "anomaly" or "normal".

    Returns:
        Average precision, in [0, 1]; chance is the share of the positive class.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or `positive` is unknown.
    """
    if positive not in ("anomaly", "normal"):
        raise ValueError(f"positive: expected 'anomaly' or 'normal', got {positive!r}")
    return _aupr(*_check(scores, is_anomaly, where), positive=positive)


@compiled(static=("positive",), out=replicated)
def _aupr(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, *, positive: str
) -> jax.Array:
    ranked = _rank(scores, is_anomaly, counted)
    if positive == "anomaly":
        own, caught = ranked.anomaly, ranked.num_anomaly - ranked.anomalies_left
        flagged = ranked.num_normal - ranked.normals_left
    else:
        own, caught, flagged = ranked.normal, ranked.normals_right, ranked.anomalies_right
    return _mean(caught / jnp.maximum(caught + flagged, 1), own, ranked.invalid)


def fpr_at_tpr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    tpr: float | Float[Array, ""] = 0.95,
    *,
    where: Bool[Array, " images"] | None = None,
) -> Float[jax.Array, ""]:
    """Computes the share of normal images at or above the threshold that flags a share `tpr` of the anomalies.

    Two definitions of "FPR95" are in use. Here the anomaly is positive: the threshold is the highest at
    which at least `tpr` of the *anomalous* images score as high or higher, and the result is the share
    of *normal* images that do. The other definition, common in the out-of-distribution literature, takes the
    normal class as positive. It is the share of anomalies that are accepted if 95 % of the normal images are
    accepted: `fpr_at_tpr(-scores, ~is_anomaly)`. There is no interpolation between thresholds.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        tpr: Share of anomalies to flag, in (0, 1]; may be traced.
        where: Images to count [images]; all by default.

    Returns:
        The false positive rate, in [0, 1]; lower is better.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or tpr is out of range.
    """
    _checks.scalar("tpr", tpr)
    if _checks.is_concrete(tpr) and not 0 < float(tpr) <= 1:
        raise ValueError(f"tpr: expected a share in (0, 1], got {float(tpr):g}")
    return _fpr_at_tpr(*_check(scores, is_anomaly, where), tpr)


@compiled(static=(), out=replicated)
def _fpr_at_tpr(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, tpr: Any
) -> jax.Array:
    ranked = _rank(scores, is_anomaly, counted)
    # Counts are compared instead of quotients: 437 of 460 are 95 %, but the quotient in float32 is smaller.
    caught = ranked.num_anomaly - ranked.anomalies_left
    share = jnp.asarray(tpr).astype(jnp.float32) * (1 - 1e-6)
    wanted = jnp.ceil(ranked.num_anomaly.astype(jnp.float32) * share).astype(jnp.int32)
    flagged = (ranked.num_normal - ranked.normals_left) / ranked.num_normal
    rate = jnp.min(jnp.where(ranked.counted & (caught >= wanted), flagged, jnp.inf))
    return jnp.where(ranked.invalid, jnp.nan, rate)


def bootstrap_interval(
    metric: Callable[..., Float[jax.Array, ""]],
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    key: PRNGKeyArray | Key[jax.Array, ""],
    where: Bool[Array, " images"] | None = None,
    draws: int = 1000,
    confidence: float | Float[Array, ""] = 0.95,
) -> Interval:
    """Computes a percentile bootstrap interval of a metric, resampling each class to its own size.

    Args:
        metric: A function of (scores, is_anomaly), such as `aupr` or `fpr_at_tpr`. It is compiled once for each
            function object, so repeated calls should pass the same object and not a new lambda.
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images]; concrete, because class sizes must be known.
        key: Random key of the resampling. The same key gives the same interval.
        where: Images to count [images]; concrete. All by default.
        draws: Number of resamples, at least 1; static.
        confidence: Coverage, in (0, 1); may be traced.

    Returns:
        The interval between the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles.

    Raises:
        ValueError: One of the reasons listed in `auroc`, `draws` is below 1, the confidence is out of range, or
            `is_anomaly` or `where` is traced.
    """
    _check_confidence(confidence)
    _checks.static_integer("draws", draws, 1)
    for name, array in (("is_anomaly", is_anomaly), ("where", where)):
        if not _checks.is_concrete(array):
            raise ValueError(f"{name}: expected concrete values, because class sizes must be known")
    scores, anomalous, counted = _check(scores, is_anomaly, where)
    known, kept = np.asarray(anomalous), np.asarray(counted)
    normal, anomaly = (
        jnp.asarray(np.flatnonzero(kept & (known == side))) for side in (False, True)
    )
    return _bootstrap(scores, normal, anomaly, key, confidence, metric=metric, draws=draws)


@compiled(static=("metric", "draws"), out=replicated)
def _bootstrap(
    scores: jax.Array,
    normal: Int[jax.Array, " normal"],
    anomalous: Int[jax.Array, " anomalous"],
    key: jax.Array,
    confidence: Any,
    *,
    metric: Callable[..., jax.Array],
    draws: int,
) -> Interval:
    groups = normal, anomalous
    is_anomaly = jnp.arange(len(normal) + len(anomalous)) >= len(normal)

    def one_draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        rows = [
            group[jax.random.randint(k, group.shape, 0, len(group))]
            for group, k in zip(groups, keys, strict=True)
        ]
        return metric(scores[jnp.concatenate(rows)], is_anomaly)

    values = lax.map(one_draw, jax.random.split(key, draws))
    tail = (1 - jnp.asarray(confidence).astype(values.dtype)) / 2
    return Interval(jnp.quantile(values, tail), jnp.quantile(values, 1 - tail))


class _Ranked(NamedTuple):
    """Scores in ascending order, with the counts of images below each score. Excluded images come last."""

    anomaly: Bool[jax.Array, " images"]
    normal: Bool[jax.Array, " images"]
    counted: Bool[jax.Array, " images"]
    anomalies_left: Int[jax.Array, " images"]
    """Number of anomalous images with a lower score."""
    anomalies_right: Int[jax.Array, " images"]
    """Number of anomalous images with a lower or equal score."""
    normals_left: Int[jax.Array, " images"]
    normals_right: Int[jax.Array, " images"]
    num_anomaly: Int[jax.Array, ""]
    num_normal: Int[jax.Array, ""]
    invalid: Bool[jax.Array, ""]
    """Whether a score is NaN or a class has no images."""


def _rank(
    scores: Float[jax.Array, " images"],
    is_anomaly: Bool[jax.Array, " images"],
    counted: Bool[jax.Array, " images"],
) -> _Ranked:
    missing = jnp.any(counted & jnp.isnan(scores))
    # Excluded images are sorted to the end, as one group of equal scores that no count includes.
    keys = jnp.where(counted, scores, jnp.inf)
    order = jnp.lexsort((~counted, keys))
    keys, anomaly, counted = keys[order], is_anomaly[order], counted[order]
    anomaly, normal = anomaly & counted, ~anomaly & counted
    left = jnp.searchsorted(keys, keys, side="left")
    right = jnp.searchsorted(keys, keys, side="right")
    anomalies = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(anomaly, dtype=jnp.int32)])
    normals = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(normal, dtype=jnp.int32)])
    num_anomaly, num_normal = anomalies[-1], normals[-1]
    return _Ranked(
        anomaly=anomaly,
        normal=normal,
        counted=counted,
        anomalies_left=anomalies[left],
        anomalies_right=anomalies[right],
        normals_left=normals[left],
        normals_right=normals[right],
        num_anomaly=num_anomaly,
        num_normal=num_normal,
        invalid=missing | (num_anomaly == 0) | (num_normal == 0),
    )


def _normals_below(ranked: _Ranked) -> Int[jax.Array, " images"]:
    """Returns twice the number of normal images below each score, with equals counted half."""
    return ranked.normals_left + ranked.normals_right


def _anomalies_below(ranked: _Ranked) -> Int[jax.Array, " images"]:
    """Returns twice the number of anomalous images below each score, with equals counted half."""
    return ranked.anomalies_left + ranked.anomalies_right


def _mean(
    values: Float[jax.Array, " images"],
    where: Bool[jax.Array, " images"],
    invalid: Bool[jax.Array, ""],
) -> Float[jax.Array, ""]:
    return jnp.where(invalid, jnp.nan, jnp.mean(values, where=where))


def _variance_of_mean(
    values: Float[jax.Array, " images"], where: Bool[jax.Array, " images"]
) -> Float[jax.Array, ""]:
    size = where.sum().astype(values.dtype)
    centred = jnp.where(where, values - jnp.mean(values, where=where), 0)
    return jnp.sum(centred**2) / jnp.where(size > 1, size - 1, jnp.nan) / size


def _check(
    scores: Any, is_anomaly: Any, where: Any
) -> tuple[Float[jax.Array, " images"], Bool[jax.Array, " images"], Bool[jax.Array, " images"]]:
    """Checks the arguments that all metrics share, and returns scores, labels as bool, and the mask of images.

    Raises:
        ValueError: One of the reasons listed in `auroc`.
    """
    s, labels = _checks.as_array("scores", scores), _checks.as_array("is_anomaly", is_anomaly)
    swapped = jnp.issubdtype(labels.dtype, jnp.floating)
    if swapped and not jnp.issubdtype(s.dtype, jnp.floating):
        raise ValueError(
            f"scores: expected a floating [n] array, got {s.dtype} {list(s.shape)}, and floating `is_anomaly`: "
            "these look like scikit-learn's (labels, scores); the order here is (scores, is_anomaly)"
        )
    if s.ndim != 1 or not jnp.issubdtype(s.dtype, jnp.floating):
        raise ValueError(f"scores: expected a floating [n] array, got {s.dtype} {list(s.shape)}")
    counted = jnp.ones(s.shape, bool) if where is None else _checks.as_array("where", where)
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    kinds = (("is_anomaly", labels, integers), ("where", counted, False))
    for name, array, allowed in kinds:
        if array.shape != s.shape or not (array.dtype == jnp.bool_ or allowed):
            raise ValueError(
                f"{name}: expected a bool {list(s.shape)} array, got {array.dtype} {list(array.shape)}"
            )
    checks = _checks.ValueChecks()
    if integers:
        checks.class_labels("is_anomaly", labels, len(s), 2)
        labels = labels != 0
    checks.add(
        "no NaN",
        0,
        lambda s, counted: f"scores: {np.isnan(s[counted]).sum()} of {counted.sum()} are NaN",
        s,
        counted,
    )
    checks.add("two classes", 0, _missing_class, labels, counted)
    checks.run()
    return s.astype(_checks.accumulation_dtype(s)), labels, counted


def _missing_class(labels: np.ndarray, counted: np.ndarray) -> str:
    anomalies = int(labels[counted].sum())
    return (
        "expected at least one anomalous and one normal image, got "
        f"{anomalies} anomalous and {counted.sum() - anomalies} normal"
    )


def _check_confidence(confidence: Any) -> None:
    _checks.scalar("confidence", confidence)
    if _checks.is_concrete(confidence) and not 0 < float(confidence) < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), got {float(confidence):g}")
