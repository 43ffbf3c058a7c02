"""OSCR: classification of normal images and rejection of anomalies, measured together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, replicated
from bliss_jax.metrics.arguments import Labels, check_scores
from bliss_jax.metrics.ranking import anomalies_below, mean, rank


class OpenSet(NamedTuple):
    """Result of `oscr`, whose fields are scalars in [0, 1]."""

    oscr: Float[jax.Array, ""]
    """Area under the curve of correct classification rate over false positive rate."""
    accuracy: Float[jax.Array, ""]
    """Closed-set accuracy: the share of the normal images that are classified correctly. OSCR is at most this."""


def oscr(
    scores: Float[Array, " images"],
    is_anomaly: Labels,
    is_correct: Bool[Array, " images"],
    *,
    where: Bool[Array, " images"] | None = None,
) -> OpenSet:
    """Computes the open-set classification rate, and the closed-set accuracy.

        CCR(t) = share of the normal images that score at most t and are classified correctly
        FPR(t) = share of the anomalies that score at most t
        OSCR   = area under CCR as a function of FPR, by trapezoid
               = mean over normal images of [correct] (P(anomaly > s) + P(anomaly = s) / 2)

    With a perfect classifier it equals the AUROC. Ties count half, as in pytorch-ood; the paper counts them as errors.

    Source: Dhamija, Gunther, Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv 1811.04110.

    Args:
        scores: Higher = more anomalous [images].
        is_anomaly: True for anomalous images [images].
        is_correct: Whether the predicted class of a normal image is right [images]. Values of anomalies do not count.
        where: Images to count [images]; all by default.

    Raises:
        ValueError: One of the reasons listed in `auroc`, or `is_correct` is not bool [images].
    """
    s, anomalous, counted = check_scores(scores, is_anomaly, where)
    correct = _checks.as_array("is_correct", is_correct)
    if correct.shape != s.shape or correct.dtype != jnp.bool_:
        raise ValueError(
            f"is_correct: expected a bool {list(s.shape)} array, got {correct.dtype} {list(correct.shape)}"
        )
    return _oscr(s, anomalous, counted, correct)


@compiled(static=(), out=replicated)
def _oscr(
    scores: jax.Array, is_anomaly: jax.Array, counted: jax.Array, is_correct: jax.Array
) -> OpenSet:
    ranked = rank(scores, is_anomaly, counted)
    rejected = 1 - anomalies_below(ranked) / (2 * ranked.num_anomaly)
    correct = is_correct[ranked.order].astype(rejected.dtype)
    return OpenSet(
        mean(correct * rejected, ranked.normal, ranked.invalid),
        mean(correct, ranked.normal, ranked.invalid),
    )
