"""Checks of the arguments that all metrics share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from bliss_jax import _checks
from bliss_jax._checks import Array

Labels = Bool[Array, " images"] | Integer[Array, " images"]


def check_scores(
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


def check_confidence(confidence: Any) -> None:
    """Raises ValueError if a confidence is not in (0, 1)."""
    _checks.scalar("confidence", confidence)
    if _checks.is_concrete(confidence) and not 0 < float(confidence) < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), got {float(confidence):g}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError if a value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")
