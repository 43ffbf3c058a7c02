"""Ranks of scores: the counts of anomalous and normal images below each score, from which metrics are computed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int


class Ranked(NamedTuple):
    """Scores in ascending order, with the counts of images below each score. Excluded images come last."""

    order: Int[jax.Array, " images"]
    """Position of each sorted image in the input."""
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


def rank(
    scores: Float[jax.Array, " images"],
    is_anomaly: Bool[jax.Array, " images"],
    counted: Bool[jax.Array, " images"],
) -> Ranked:
    """Sorts the scores and counts the images below each of them."""
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
    return Ranked(
        order=order,
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


def normals_below(ranked: Ranked) -> Int[jax.Array, " images"]:
    """Returns twice the number of normal images below each score, with equals counted half."""
    return ranked.normals_left + ranked.normals_right


def anomalies_below(ranked: Ranked) -> Int[jax.Array, " images"]:
    """Returns twice the number of anomalous images below each score, with equals counted half."""
    return ranked.anomalies_left + ranked.anomalies_right


def mean(
    values: Float[jax.Array, " images"],
    where: Bool[jax.Array, " images"],
    invalid: Bool[jax.Array, ""],
) -> Float[jax.Array, ""]:
    """Returns the mean of the values that `where` selects; NaN if the scores are invalid."""
    return jnp.where(invalid, jnp.nan, jnp.mean(values, where=where))


def variance_of_mean(
    values: Float[jax.Array, " images"], where: Bool[jax.Array, " images"]
) -> Float[jax.Array, ""]:
    """Returns the variance (ddof 1) of the values that `where` selects, divided by their number."""
    size = where.sum().astype(values.dtype)
    centred = jnp.where(where, values - jnp.mean(values, where=where), 0)
    return jnp.sum(centred**2) / jnp.where(size > 1, size - 1, jnp.nan) / size
