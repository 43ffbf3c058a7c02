"""How well a score separates anomalous from normal images.

One convention throughout: scores [n], higher = more anomalous; `is_anomaly` [n], bool (or integers 0 and
1); **the anomaly is the positive class**. Every function is pure and jittable, so that `vmap` evaluates
all splits of a benchmark in one call; `where` leaves images out (a split that does not use all of the
test set).

Where values are concrete, NaN scores and a missing class raise ValueError; while tracing they give NaN.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.stats import norm
from jaxtyping import Bool, Float, Int, Integer, Key, PRNGKeyArray, Shaped

from bliss_jax import _checks
from bliss_jax._checks import Array

Labels = Bool[Array, " images"] | Integer[Array, " images"]


class Interval(NamedTuple):
    """A confidence interval; both ends are scalars."""

    low: Float[jax.Array, ""]
    high: Float[jax.Array, ""]


def auroc(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
) -> Float[jax.Array, ""]:
    """Area under the ROC curve: P(anomalous > normal) + P(anomalous = normal) / 2.

    The Mann-Whitney statistic, ties counted half (mid-ranks). Pairs are counted in integers, so that
    the result does not lose digits with the number of images.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.

    Returns:
        The area, in [0, 1].

    Raises:
        ValueError: shapes or dtypes that do not fit; where values are concrete, NaN scores, no
            anomalous or no normal image.
    """
    ranked = _rank(scores, is_anomaly, where)
    return _mean(_normals_below(ranked) / (2 * ranked.num_normal), ranked.anomaly, ranked.invalid)


def auroc_interval(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """DeLong's interval for the AUROC: A -+ z sqrt(var(V10) / m + var(V01) / n), clipped to [0, 1].

    V10 of an anomalous image is the share of the n normal images that it outranks, V01 of a normal image
    the share of the m anomalous ones that outrank it (ties half); variances with ddof 1. It says what
    another test set of these sizes would give for this fixed score, not what another fit would.

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988; computed from ranks after Sun and Xu, 2014.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        confidence: Coverage asked for, in (0, 1).

    Returns:
        The interval; NaN where a class has fewer than two images.

    Raises:
        ValueError: as `auroc`, or a confidence out of range.
    """
    _check_confidence(confidence)
    ranked = _rank(scores, is_anomaly, where)
    outranked = _normals_below(ranked) / (2 * ranked.num_normal)
    outranking = 1 - _anomalies_below(ranked) / (2 * ranked.num_anomaly)
    area = _mean(outranked, ranked.anomaly, ranked.invalid)
    variance = _variance_of_mean(outranked, ranked.anomaly) + _variance_of_mean(
        outranking, ranked.normal
    )
    half = norm.ppf((1 + confidence) / 2) * jnp.sqrt(variance)
    return Interval(jnp.clip(area - half, 0, 1), jnp.clip(area + half, 0, 1))


def aupr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    positive: Literal["anomaly", "normal"] = "anomaly",
) -> Float[jax.Array, ""]:
    """Average precision: the mean over anomalous images a of the precision at the threshold score(a).

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct thresholds, as scikit-learn's
    `average_precision_score`: a step function, no linear interpolation. With the anomaly as positive
    it is also called "AUPR-out", with the normal class, for which low scores speak, "AUPR-in".

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        positive: Which side is to be retrieved.

    Returns:
        Average precision, in [0, 1]; chance is the share of the positive side.

    Raises:
        ValueError: as `auroc`, or another `positive`.
    """
    if positive not in ("anomaly", "normal"):
        raise ValueError(f"positive: expected 'anomaly' or 'normal', got {positive!r}")
    ranked = _rank(scores, is_anomaly, where)
    if positive == "anomaly":
        own, caught = ranked.anomaly, ranked.num_anomaly - ranked.anomalies_left
        flagged = ranked.num_normal - ranked.normals_left
    else:
        own, caught, flagged = ranked.normal, ranked.normals_right, ranked.anomalies_right
    return _mean(caught / jnp.maximum(caught + flagged, 1), own, ranked.invalid)


def fpr_at_tpr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    tpr: float = 0.95,
    *,
    where: Bool[Array, " images"] | None = None,
) -> Float[jax.Array, ""]:
    """The share of normal images flagged when the threshold is set to catch `tpr` of the anomalies.

    Two definitions of "FPR95" are in use. Here the anomaly is positive: the threshold is the highest at
    which at least `tpr` of the *anomalous* images score as high or higher, and the result is the share
    of *normal* images that do. The other one, common in the out-of-distribution literature, takes the
    normal class as positive (the share of anomalies accepted when 95 % of the normal images are):
    `fpr_at_tpr(-scores, ~is_anomaly)`. No interpolation between thresholds.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        tpr: Share of anomalies to catch, in (0, 1].
        where: Images to count [images]; all by default.

    Returns:
        The false positive rate, in [0, 1]; lower is better.

    Raises:
        ValueError: as `auroc`, or a tpr out of range.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr: expected a share in (0, 1], got {tpr}")
    ranked = _rank(scores, is_anomaly, where)
    # Counted, not divided: 437 of 460 are 95 %, and a float32 quotient says that they are not.
    caught = ranked.num_anomaly - ranked.anomalies_left
    wanted = jnp.ceil(ranked.num_anomaly.astype(jnp.float32) * (tpr * (1 - 1e-6))).astype(jnp.int32)
    flagged = (ranked.num_normal - ranked.normals_left) / ranked.num_normal
    rate = jnp.min(jnp.where(ranked.counted & (caught >= wanted), flagged, jnp.inf))
    return jnp.where(ranked.invalid, jnp.nan, rate)


def bootstrap_interval(
    metric,
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    key: PRNGKeyArray | Key[jax.Array, ""],
    draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap of any metric of this module, resampling each class to its own size.

    Args:
        metric: A function of (scores, is_anomaly), such as `aupr` or `fpr_at_tpr`.
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images]; concrete (class sizes must be known).
        key: Seeds the resampling: the same key gives the same interval.
        draws: Resamples, at least 1.
        confidence: Coverage asked for, in (0, 1).

    Returns:
        The interval between the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles.

    Raises:
        ValueError: as `auroc`, no draws, a confidence out of range, or a traced `is_anomaly`.
    """
    _check_confidence(confidence)
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    if not _checks.is_concrete(is_anomaly):
        raise ValueError("is_anomaly: expected concrete values, since class sizes must be known")
    _rank(scores, is_anomaly, None)  # for its checks
    groups = [np.flatnonzero(np.asarray(is_anomaly, bool) == value) for value in (False, True)]
    scores = jnp.asarray(scores)
    resampled_is_anomaly = jnp.arange(len(scores)) >= len(groups[0])

    def one_draw(key):
        keys = jax.random.split(key)
        rows = [
            jnp.asarray(g)[jax.random.randint(k, g.shape, 0, len(g))]
            for g, k in zip(groups, keys, strict=True)
        ]
        return metric(scores[jnp.concatenate(rows)], resampled_is_anomaly)

    values = lax.map(one_draw, jax.random.split(key, draws))
    tail = (1 - confidence) / 2
    return Interval(jnp.quantile(values, tail), jnp.quantile(values, 1 - tail))


class _Ranked(NamedTuple):
    """Scores in ascending order, with what stands below each of them; images left out stand last."""

    anomaly: Bool[jax.Array, " images"]
    normal: Bool[jax.Array, " images"]
    counted: Bool[jax.Array, " images"]
    anomalies_left: Int[jax.Array, " images"]
    """Anomalous images with a lower score."""
    anomalies_right: Int[jax.Array, " images"]
    """Anomalous images with a lower or equal score."""
    normals_left: Int[jax.Array, " images"]
    normals_right: Int[jax.Array, " images"]
    num_anomaly: Int[jax.Array, ""]
    num_normal: Int[jax.Array, ""]
    invalid: Bool[jax.Array, ""]
    """A NaN score, or a class without images."""


def _rank(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    where: Bool[Array, " images"] | None,
) -> _Ranked:
    counted = jnp.ones(np.shape(scores), bool) if where is None else jnp.asarray(where)
    scores, is_anomaly = _checks.as_jax("scores", scores), _as_bool(is_anomaly)
    _check_inputs(scores, is_anomaly, counted)
    missing = jnp.any(counted & jnp.isnan(scores))
    # Images left out sort to the end, as one group of equals that no count includes.
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
    """Twice the normal images below each score, equals counted half."""
    return ranked.normals_left + ranked.normals_right


def _anomalies_below(ranked: _Ranked) -> Int[jax.Array, " images"]:
    """Twice the anomalous images below each score, equals counted half."""
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


def _as_bool(is_anomaly: Labels) -> Shaped[jax.Array, "..."]:
    """Integers 0 and 1 as bool; what is neither stays as it is, to be refused by its dtype."""
    array = jnp.asarray(is_anomaly)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        return array
    if _checks.is_concrete(array) and not np.isin(np.asarray(array), (0, 1)).all():
        raise ValueError(
            "is_anomaly: expected bool, or integers that are 0 or 1, got other integers"
        )
    return array != 0


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), got {confidence}")


def _check_inputs(
    scores: Shaped[jax.Array, "..."],
    is_anomaly: Shaped[jax.Array, "..."],
    counted: Shaped[jax.Array, "..."],
) -> None:
    if scores.ndim != 1 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(
            f"scores: expected a floating [n] array, got {scores.dtype} {scores.shape}"
        )
    for name, array in (("is_anomaly", is_anomaly), ("where", counted)):
        if array.shape != scores.shape or array.dtype != jnp.bool_:
            raise ValueError(
                f"{name}: expected a bool {list(scores.shape)} array, got {array.dtype} "
                f"{list(array.shape)}"
            )
    if all(map(_checks.is_concrete, (scores, is_anomaly, counted))):
        kept = np.asarray(counted)
        nans = int(np.isnan(np.asarray(scores)[kept]).sum())
        anomalies = int(np.asarray(is_anomaly)[kept].sum())
        if nans:
            raise ValueError(f"scores: {nans} of {kept.sum()} are NaN")
        if not 0 < anomalies < kept.sum():
            raise ValueError(
                "expected at least one anomalous and one normal image, got "
                f"{anomalies} anomalous and {kept.sum() - anomalies} normal"
            )
