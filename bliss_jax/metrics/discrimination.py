"""AUROC, AUPR, FPR at a TPR, and AUTC: how well a score separates anomalous from normal images.

All functions of `bliss_jax.metrics` share one convention: scores [n], higher = more anomalous; `is_anomaly` [n],
bool (or integers 0 and 1); **the anomaly is the positive class**. Every function is pure and composes under `jit`
and `vmap`, so `vmap` evaluates all splits of a benchmark in one call. `where` excludes images, e.g. if a split does
not use the whole test set.

NaN scores and a missing class (e.g. with 0 images) raise ValueError if values are concrete. Under tracing they give
NaN.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated
from bliss_jax.metrics.arguments import Labels, check_choice, check_scores
from bliss_jax.metrics.ranking import Ranked, mean, normals_below, rank

Side = Literal["anomaly", "normal"]
Interpolation = Literal["step", "trapezoid"]
Rule = Literal["at-least", "nearest", "strict"]


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
    return _auroc(*check_scores(scores, is_anomaly, where))


@compiled(static=(), out=replicated)
def _auroc(scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array) -> jax.Array:
    ranked = rank(scores, is_anomaly, counted)
    return mean(normals_below(ranked) / (2 * ranked.num_normal), ranked.anomaly, ranked.invalid)


def aupr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    positive: Side = "anomaly",
    interpolation: Interpolation = "step",
) -> Float[jax.Array, ""]:
    """Computes the area under the precision-recall curve: by default sum_n (R_n - R_{n-1}) P_n, the average precision.

    The sum is over the distinct thresholds in descending order, as in scikit-learn's `average_precision_score`: the
    curve is a step function. `interpolation="trapezoid"` computes sum_n (R_n - R_{n-1}) (P_n + P_{n-1}) / 2 with
    P_0 = 1 and R_0 = 0, which is scikit-learn's `auc(recall, precision)` and the AUPR of OpenOOD and pytorch-ood. It
    is larger if scores have ties: if all scores are equal and a share p is positive, it is (1 + p) / 2 instead of p.

    With the anomaly as the positive class the area is also called "AUPR-out", and with the normal class, which has
    low scores, "AUPR-in".

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        positive: The positive class, "anomaly" or "normal".
        interpolation: "step" or "trapezoid".

    Returns:
        Area, in [0, 1]; chance is the share of the positive class.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or `positive` or `interpolation` is unknown.
    """
    check_choice("positive", positive, get_args(Side))
    check_choice("interpolation", interpolation, get_args(Interpolation))
    s, anomalous, counted = check_scores(scores, is_anomaly, where)
    return _aupr(s, anomalous, counted, positive=positive, interpolation=interpolation)


@compiled(static=("positive", "interpolation"), out=replicated)
def _aupr(
    scores: jax.Array,
    is_anomaly: jax.Array,
    counted: jax.Array,
    *,
    positive: str,
    interpolation: str,
) -> jax.Array:
    ranked = rank(scores, is_anomaly, counted)
    if positive == "anomaly":
        own, caught = ranked.anomaly, ranked.num_anomaly - ranked.anomalies_left
        flagged = ranked.num_normal - ranked.normals_left
        above = (
            ranked.num_anomaly - ranked.anomalies_right,
            ranked.num_normal - ranked.normals_right,
        )
    else:
        own, caught, flagged = ranked.normal, ranked.normals_right, ranked.anomalies_right
        above = ranked.normals_left, ranked.anomalies_left
    precision = caught / jnp.maximum(caught + flagged, 1)
    if interpolation == "trapezoid":
        # The precision at the next threshold counts the images on the far side of the tied ones; 1 if there are none.
        far = above[0] + above[1]
        precision = (precision + jnp.where(far > 0, above[0] / jnp.maximum(far, 1), 1)) / 2
    return mean(precision, own, ranked.invalid)


def fpr_at_tpr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    tpr: float | Float[Array, ""] = 0.95,
    *,
    where: Bool[Array, " images"] | None = None,
    positive: Side = "anomaly",
    rule: Rule = "at-least",
) -> Float[jax.Array, ""]:
    """Computes the false positive rate at the threshold that flags a share `tpr` of the positive class (anomalies).

    Definitions of "FPR95" differ in two ways, and published numbers with them. First, in the positive class:

    - `positive="anomaly"`: the share of normal images that are flagged if 95 % of the anomalies are;
    - `positive="normal"`: the share of anomalies that are accepted if 95 % of the normal images are. It equals
      `fpr_at_tpr(-scores, ~is_anomaly)`, and is common in the out-of-distribution literature.

    Second, in the threshold, if no threshold flags exactly that share, which is usual with ties or few images:

    - `rule="at-least"`: the highest threshold that flags at least the share, as in pytorch-ood;
    - `rule="nearest"`: the threshold whose share is nearest to `tpr`, as in the scripts of MCM, NegLabel and Hendrycks
      and Gimpel. The share may be smaller than `tpr`. Of several thresholds with this share, the lowest counts, unless
      the share is 1. Of two equally near shares, the larger counts;
    - `rule="strict"`: the score of rank floor(tpr n) among the n positive images, and negative images that score
      strictly higher, as in OpenOOD. Negative images that tie with the threshold do not count.

    There is no interpolation between thresholds. The page "Metrics of other projects" has a table.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        tpr: Share of the positive class to flag, in (0, 1]; may be traced.
        where: Images to count [images]; all by default.
        positive: The positive class, "anomaly" or "normal".
        rule: Choice of the threshold: "at-least", "nearest" or "strict".

    Returns:
        The false positive rate, in [0, 1]; lower is better.

    Raises:
        ValueError: One of the reasons listed in `auroc`, tpr is out of range, or `positive` or `rule` is unknown.
    """
    check_choice("positive", positive, get_args(Side))
    check_choice("rule", rule, get_args(Rule))
    _checks.scalar("tpr", tpr)
    if _checks.is_concrete(tpr) and not 0 < float(tpr) <= 1:
        raise ValueError(f"tpr: expected a share in (0, 1], got {float(tpr):g}")
    s, anomalous, counted = check_scores(scores, is_anomaly, where)
    if positive == "normal":
        s, anomalous = -s, ~anomalous
    return _fpr_at_tpr(s, anomalous, counted, tpr, rule=rule)


@compiled(static=("rule",), out=replicated)
def _fpr_at_tpr(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, tpr: Any, *, rule: str
) -> jax.Array:
    ranked = rank(scores, is_anomaly, counted)
    caught = ranked.num_anomaly - ranked.anomalies_left
    flagged = ranked.num_normal - ranked.normals_left
    wanted = ranked.num_anomaly.astype(jnp.float32) * jnp.asarray(tpr).astype(jnp.float32)
    if rule == "nearest":
        number = _nearest_count(ranked, caught, wanted)
        among = ranked.counted & (caught == number)
        lowest = jnp.max(jnp.where(among, flagged, 0))
        highest = jnp.min(jnp.where(among, flagged, ranked.num_normal))
        number = jnp.where(number == ranked.num_anomaly, highest, lowest)
        rate = number / ranked.num_normal
    else:
        # Counts are compared instead of quotients: 437 of 460 are 95 %, but the quotient in float32 is smaller.
        if rule == "at-least":
            number = jnp.ceil(wanted * (1 - 1e-6)).astype(jnp.int32)
        else:
            number = jnp.floor(wanted * (1 + 1e-6)).astype(jnp.int32)
            number = jnp.where(number == 0, ranked.num_anomaly, number)  # as NumPy's index -0
            flagged = ranked.num_normal - ranked.normals_right
        among = caught >= number
        among &= ranked.anomaly if rule == "strict" else ranked.counted
        rate = jnp.min(jnp.where(among, flagged / ranked.num_normal, jnp.inf))
    return jnp.where(ranked.invalid, jnp.nan, rate)


def _nearest_count(ranked: Ranked, caught: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the number of flagged positive images that is nearest to the wanted one; the larger of two."""
    distance = jnp.abs(caught.astype(jnp.float32) - wanted)
    distance = jnp.where(ranked.counted, distance, jnp.inf)
    # float32 rounds the share, e.g. 0.95, so distances that differ by less are equal.
    near = ranked.counted & (
        distance <= distance.min() + 1e-6 * ranked.num_anomaly.astype(jnp.float32)
    )
    return jnp.max(jnp.where(near, caught, 0))


def autc(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
) -> Float[jax.Array, ""]:
    """Computes the area under the threshold curve: (mean of u over normal images + mean of 1 - u over anomalies) / 2.

    u = (s - min s) / (max s - min s) are the scores scaled to [0, 1]. The means are the areas under the false positive
    rate and the false negative rate as functions of the threshold on u, so a threshold that is chosen at random has
    this balanced error on average. The metric is not invariant to monotone maps of the scores.

    Source: Humblot-Renaux, Escalera, Moeslund, "Beyond AUROC & co. for evaluating out-of-distribution detection
    performance", CVPR workshops 2023, arXiv 2306.14658.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.

    Returns:
        The area, in [0, 1]; lower is better. NaN if all scores are equal, or one is infinite.

    Raises:
        ValueError: One of the reasons listed in `auroc`.
    """
    return _autc(*check_scores(scores, is_anomaly, where))


@compiled(static=(), out=replicated)
def _autc(scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array) -> jax.Array:
    low = jnp.min(scores, where=counted, initial=jnp.inf)
    high = jnp.max(scores, where=counted, initial=-jnp.inf)
    scaled = jnp.where(counted, (scores - low) / (high - low), 0)
    accepted = jnp.mean(1 - scaled, where=counted & is_anomaly)
    return (jnp.mean(scaled, where=counted & ~is_anomaly) + accepted) / 2
