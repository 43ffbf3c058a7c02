"""Metrics as other projects define and name them, so that a number can be compared with the one in a paper."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.metrics.arguments import Labels, check_choice
from bliss_jax.metrics.discrimination import (
    Interpolation,
    Rule,
    Side,
    aupr,
    auroc,
    fpr_at_tpr,
)


class Convention(NamedTuple):
    """Definitions of AUPR and FPR95 in one project."""

    positive: Side
    """Positive class of FPR95."""
    rule: Rule
    """Choice of the threshold of FPR95, as in `fpr_at_tpr`."""
    interpolation: Interpolation
    """Interpolation of AUPR, as in `aupr`."""


CONVENTIONS: Mapping[str, Convention] = {
    "bliss-jax": Convention("anomaly", "at-least", "step"),
    "openood": Convention("normal", "strict", "trapezoid"),
    "pytorch-ood": Convention("anomaly", "at-least", "trapezoid"),
    "mcm": Convention("normal", "nearest", "step"),
}
"""OpenOOD: `openood/evaluators/metrics.py` of version 1.5. pytorch-ood: `OODMetrics` of version 0.4. MCM:
`utils/detection_util.py` of its repository, which NegLabel and others use as well."""


class OodMetrics(NamedTuple):
    """Metrics in one convention, whose fields are scalars in [0, 1]."""

    auroc: Float[jax.Array, ""]
    aupr_in: Float[jax.Array, ""]
    """AUPR with the normal class as positive."""
    aupr_out: Float[jax.Array, ""]
    """AUPR with the anomaly as positive."""
    fpr95: Float[jax.Array, ""]


def ood_metrics(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    convention: str = "openood",
    *,
    where: Bool[Array, " images"] | None = None,
) -> OodMetrics:
    """Computes AUROC, both AUPRs and FPR95 as another project defines them.

    | convention | FPR95: positive class | threshold | AUPR |
    | --- | --- | --- | --- |
    | bliss-jax | anomaly | at least 95 % | step |
    | openood | normal | rank floor(0.95 n), strictly above | trapezoid |
    | pytorch-ood | anomaly | at least 95 % | trapezoid |
    | mcm | normal | nearest to 95 % | step |

    AUROC is the same in all of them. Without ties and with many images the differences in AUPR and in the threshold
    vanish; that of the positive class remains.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        convention: Name of the convention.
        where: Images to count [images]; all by default.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or the convention is unknown.
    """
    check_choice("convention", convention, tuple(CONVENTIONS))
    positive, rule, interpolation = CONVENTIONS[convention]
    area, of_normal, of_anomaly = (
        auroc(scores, is_anomaly, where=where),
        aupr(scores, is_anomaly, where=where, positive="normal", interpolation=interpolation),
        aupr(scores, is_anomaly, where=where, interpolation=interpolation),
    )
    fpr = fpr_at_tpr(scores, is_anomaly, where=where, positive=positive, rule=rule)
    return OodMetrics(area, of_normal, of_anomaly, fpr)
