"""Comparison of scores on the same images: DeLong's paired test, Holm's correction, and a ranking with both.

Two AUROCs on the same images are correlated, so intervals of the single AUROCs may overlap although their difference
is certain. The tests here use the covariance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated
from bliss_jax.metrics.arguments import Labels, check_confidence, check_scores
from bliss_jax.metrics.discrimination import auroc
from bliss_jax.metrics.intervals import Interval, auroc_interval
from bliss_jax.metrics.ranking import anomalies_below, normals_below, rank, variance_of_mean


class PairedTest(NamedTuple):
    """Result of `delong_test`, whose fields are scalars."""

    difference: Float[jax.Array, ""]
    """AUROC of the first score minus AUROC of the second."""
    interval: Interval
    """Confidence interval of the difference."""
    p_value: Float[jax.Array, ""]
    """Two-sided p-value of the hypothesis that both AUROCs are equal."""


def delong_test(
    first: Float[Array, " images"],
    second: Float[Array, " images"],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    confidence: float | Float[Array, ""] = 0.95,
) -> PairedTest:
    """Tests whether two scores of the same images have equal AUROCs: z = (A1 - A2) / sqrt(variance), two-sided.

        variance = var(V10_1 - V10_2) / m + var(V01_1 - V01_2) / n

    V10 and V01 are those of `auroc_interval`, with ddof 1, for m anomalous and n normal images. The p-value is 1 if
    the two scores rank all pairs alike. The test holds for fixed scores: it says nothing about other fits of them.

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988.

    Args:
        first: Scores, higher = more anomalous [images].
        second: Other scores of the same images [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        confidence: Coverage of the interval, in (0, 1); may be traced.

    Returns:
        The test; the interval and the p-value are NaN if a class has fewer than two images.

    Raises:
        ValueError: One of the reasons listed in `auroc`, the scores differ in shape, or the confidence is out of range.
    """
    check_confidence(confidence)
    one, anomalous, counted = check_scores(first, is_anomaly, where)
    two, *_ = check_scores(second, is_anomaly, where)
    dtype = jnp.promote_types(one.dtype, two.dtype)
    return _delong_test(one.astype(dtype), two.astype(dtype), anomalous, counted, confidence)


@compiled(static=(), out=replicated)
def _delong_test(
    first: jax.Array,
    second: jax.Array,
    is_anomaly: jax.Array,
    counted: jax.Array,
    confidence: Any,
) -> PairedTest:
    anomalous, normal = counted & is_anomaly, counted & ~is_anomaly
    apart = _placements(first, is_anomaly, counted) - _placements(second, is_anomaly, counted)
    difference = jnp.mean(apart, where=anomalous)
    variance = variance_of_mean(apart, anomalous) + variance_of_mean(apart, normal)
    deviation = jnp.sqrt(variance)
    half = norm.ppf((1 + jnp.asarray(confidence).astype(variance.dtype)) / 2) * deviation
    distance = jnp.where(difference == 0, 0, jnp.abs(difference) / deviation)
    p_value = jnp.where(jnp.isnan(deviation), jnp.nan, 2 * norm.sf(distance))
    return PairedTest(difference, Interval(difference - half, difference + half), p_value)


def _placements(
    scores: Float[jax.Array, " images"],
    is_anomaly: Bool[jax.Array, " images"],
    counted: Bool[jax.Array, " images"],
) -> Float[jax.Array, " images"]:
    """Returns V10 of each anomalous image and V01 of each normal image, in the order of the input."""
    ranked = rank(scores, is_anomaly, counted)
    outranked = normals_below(ranked) / (2 * ranked.num_normal)
    outranking = 1 - anomalies_below(ranked) / (2 * ranked.num_anomaly)
    placed = jnp.where(ranked.anomaly, outranked, outranking)
    placed = jnp.where(ranked.invalid, jnp.nan, placed)
    return jnp.zeros_like(placed).at[ranked.order].set(placed)


def holm(p_values: Float[Array, " tests"]) -> Float[jax.Array, " tests"]:
    """Returns p-values adjusted for the number of tests: max over j <= i of min(1, (m - j + 1) p_(j)), in sorted order.

    Rejecting each hypothesis whose adjusted p-value is at most alpha rejects a true one with probability at most alpha,
    whatever the dependence of the tests.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Args:
        p_values: P-values of m tests [tests].

    Raises:
        ValueError: The p-values are not a floating [tests] array, or not in [0, 1].
    """
    p = _checks.as_array("p_values", p_values)
    if p.ndim != 1 or not jnp.issubdtype(p.dtype, jnp.floating):
        raise ValueError(
            f"p_values: expected a floating [tests] array, got {p.dtype} {list(p.shape)}"
        )
    if _checks.is_concrete(p) and not np.all((np.asarray(p) >= 0) & (np.asarray(p) <= 1)):
        raise ValueError("p_values: expected values in [0, 1]")
    return _holm(p)


@compiled(static=(), out=replicated)
def _holm(p_values: jax.Array) -> jax.Array:
    order = jnp.argsort(p_values)
    remaining = (len(p_values) - jnp.arange(len(p_values))).astype(p_values.dtype)
    adjusted = jnp.minimum(jax.lax.cummax(remaining * p_values[order]), 1)
    return jnp.zeros_like(adjusted).at[order].set(adjusted)


class ComparedScore(NamedTuple):
    """One row of a `ScoreComparison`."""

    name: str
    auroc: float
    interval: tuple[float, float]
    """DeLong's interval of the AUROC."""
    difference: float
    """AUROC minus that of the reference."""
    difference_interval: tuple[float, float]
    """Interval of the difference, from the paired variance and without a correction for the number of tests."""
    p_value: float
    """P-value of DeLong's paired test against the reference, after Holm's correction; 1 for the reference."""


@dataclass(frozen=True, repr=False)
class ScoreComparison:
    """Scores in descending order of their AUROC on one sample, each tested against a reference."""

    rows: tuple[ComparedScore, ...]
    reference: str
    """Name of the score that all others are compared with."""
    anomalous: int
    """Number of anomalous images."""
    normal: int
    """Number of normal images."""
    tests: int
    """Number of tests that Holm's correction counts."""
    confidence: float
    notes: tuple[str, ...] = ()
    """Further sentences below the table."""

    @property
    def best(self) -> str:
        """Name of the score with the largest AUROC."""
        return self.rows[0].name

    def not_worse(self, alpha: float = 0.05) -> tuple[str, ...]:
        """Returns the reference and the scores whose difference to it is positive or not significant at alpha."""
        kept = (row for row in self.rows if row.difference >= 0 or row.p_value > alpha)
        return tuple(row.name for row in kept)

    def describe(self) -> dict[str, Any]:
        """Returns the comparison as JSON values. The reference has no difference, interval of it and p-value."""

        def plain(value: float) -> float | None:
            return value if np.isfinite(value) else None

        rows = []
        for row in self.rows:
            tested = row.name != self.reference
            rows.append(
                {
                    "score": row.name,
                    "auroc": plain(row.auroc),
                    "interval": [plain(end) for end in row.interval],
                    "difference": plain(row.difference) if tested else None,
                    "difference_interval": [plain(end) for end in row.difference_interval]
                    if tested
                    else None,
                    "p_value": plain(row.p_value) if tested else None,
                }
            )
        return {
            "reference": self.reference,
            "best": self.best,
            "anomalous": self.anomalous,
            "normal": self.normal,
            "tests": self.tests,
            "confidence": self.confidence,
            "rows": rows,
            "notes": list(self.notes),
        }

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the rows of the table as texts."""

        def points(value: float, low: float, high: float, sign: str = "") -> str:
            return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"

        return [
            (
                row.name,
                points(row.auroc, *row.interval),
                "reference"
                if row.name == self.reference
                else points(row.difference, *row.difference_interval, sign="+"),
                "" if row.name == self.reference else f"{row.p_value:.2g}",
            )
            for row in self.rows
        ]

    def headings(self) -> tuple[str, ...]:
        """Returns the headings of the table."""
        return ("score", "AUROC x 100", f"minus {self.reference}", "p (Holm)")

    def summary(self) -> str:
        """Returns a sentence about the sample, the intervals and the tests."""
        return (
            f"{self.anomalous:,} anomalous and {self.normal:,} normal images; "
            f"{100 * self.confidence:g} % intervals and paired tests after DeLong et al. 1988; "
            f"p-values are corrected for {self.tests} "
            f"{'test' if self.tests == 1 else 'tests'} (Holm)."
        )

    def __repr__(self) -> str:
        rows = [self.headings(), *self.cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, self.summary(), *self.notes])

    def _repr_html_(self) -> str:
        from bliss_jax.text import html_table

        return html_table(self.headings(), self.cells(), notes=[self.summary(), *self.notes])


def compare_scores(
    scores: Mapping[str, Float[Array, " images"]],
    is_anomaly: Labels,
    *,
    where: Bool[Array, " images"] | None = None,
    reference: str | None = None,
    confidence: float = 0.95,
) -> ScoreComparison:
    """Ranks scores of the same images by their AUROC, and tests each of them against a reference.

    Without a reference, the score with the largest AUROC is the reference. It is known only after a look at all pairs
    of scores, so Holm's correction then counts the tests of all pairs. With a reference, it counts one test for each
    other score.

    Args:
        scores: Scores by name, higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        where: Images to count [images]; all by default.
        reference: Name of the score to compare with. None for the score with the largest AUROC.
        confidence: Coverage of the intervals, in (0, 1).

    Raises:
        ValueError: There are no scores or no score of the reference's name, one of the reasons listed in `auroc`, or a
            class has fewer than two images.
    """
    if not scores:
        raise ValueError("scores: expected at least one score, got none")
    if reference is not None and reference not in scores:
        raise ValueError(f"reference: expected one of {', '.join(scores)}, got {reference!r}")
    checked = {}
    for name, values in scores.items():
        try:
            checked[name] = check_scores(values, is_anomaly, where)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    _, anomalous, counted = next(iter(checked.values()))
    number = {
        side: int(np.sum(counted & (anomalous == (side == "anomalous"))))
        for side in ("anomalous", "normal")
    }
    if min(number.values()) < 2:
        raise ValueError(
            "expected at least two anomalous and two normal images, got "
            f"{number['anomalous']} anomalous and {number['normal']} normal"
        )
    areas = {name: float(auroc(s, anomalous, where=counted)) for name, (s, *_) in checked.items()}
    ranked = sorted(areas, key=lambda name: -areas[name])
    best = ranked[0] if reference is None else reference
    others = [name for name in ranked if name != best]
    pairs = [(best, name) for name in others]
    if reference is None:
        pairs += combinations(others, 2)
    tests = [
        delong_test(
            checked[one][0], checked[two][0], anomalous, where=counted, confidence=confidence
        )
        for one, two in pairs
    ]
    adjusted = holm(jnp.stack([test.p_value for test in tests])) if tests else ()
    # The pairs with the reference come first.
    of_other = {
        name: (test, float(p)) for name, test, p in zip(others, tests, adjusted, strict=False)
    }
    rows = []
    for name in ranked:
        low, high = auroc_interval(
            checked[name][0], anomalous, where=counted, confidence=confidence
        )
        interval = float(low), float(high)
        row = ComparedScore(name, areas[name], interval, 0.0, (0.0, 0.0), 1.0)
        if name in of_other:
            test, p_value = of_other[name]
            low, high = test.interval
            row = row._replace(
                difference=-float(test.difference),
                difference_interval=(-float(high), -float(low)),
                p_value=p_value,
            )
        rows.append(row)
    return ScoreComparison(
        tuple(rows),
        best,
        number["anomalous"],
        number["normal"],
        tests=len(tests),
        confidence=confidence,
    )
