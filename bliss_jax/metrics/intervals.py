"""Confidence intervals of metrics: DeLong's for the AUROC, and the bootstrap for any metric."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.stats import norm
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated
from bliss_jax.metrics.arguments import Labels, check_confidence, check_scores
from bliss_jax.metrics.ranking import anomalies_below, mean, normals_below, rank, variance_of_mean


class Interval(NamedTuple):
    """A confidence interval, whose ends are scalars."""

    low: Float[jax.Array, ""]
    high: Float[jax.Array, ""]


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
    check_confidence(confidence)
    return _auroc_interval(*check_scores(scores, is_anomaly, where), confidence)


@compiled(static=(), out=replicated)
def _auroc_interval(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, confidence: Any
) -> Interval:
    ranked = rank(scores, is_anomaly, counted)
    outranked = normals_below(ranked) / (2 * ranked.num_normal)
    outranking = 1 - anomalies_below(ranked) / (2 * ranked.num_anomaly)
    area = mean(outranked, ranked.anomaly, ranked.invalid)
    variance = variance_of_mean(outranked, ranked.anomaly) + variance_of_mean(
        outranking, ranked.normal
    )
    confidence = jnp.asarray(confidence).astype(variance.dtype)
    half = norm.ppf((1 + confidence) / 2) * jnp.sqrt(variance)
    return Interval(jnp.clip(area - half, 0, 1), jnp.clip(area + half, 0, 1))


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
    check_confidence(confidence)
    _checks.static_integer("draws", draws, 1)
    for name, array in (("is_anomaly", is_anomaly), ("where", where)):
        if not _checks.is_concrete(array):
            raise ValueError(f"{name}: expected concrete values, because class sizes must be known")
    scores, anomalous, counted = check_scores(scores, is_anomaly, where)
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
