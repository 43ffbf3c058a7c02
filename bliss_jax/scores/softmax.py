"""Logits of the labels of the normal classes, which the label-based baselines share.

A class that is not normal has the logit -inf, so `vmap` over masks of normal classes works as for `bliss_score`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Precision
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.top_k import similarity

CLIP_TEMPERATURE = 0.01
"""Inverse of CLIP's learned logit scale, 100, with which its similarities are trained."""


class LabelArguments(NamedTuple):
    """Checked arguments of a score of images and labels."""

    x: jax.Array
    labels: jax.Array
    mask: jax.Array
    temperature: Any


class LabelAndTextArguments(NamedTuple):
    """Checked arguments of a score of images, labels and a dictionary."""

    x: jax.Array
    labels: jax.Array
    texts: jax.Array
    mask: jax.Array


def check_labels(
    embeddings: Any, label_embeddings: Any, normal: Any, temperature: Any = 1.0
) -> LabelArguments:
    """Checks the arguments of a score of images and labels, and returns its arrays.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature is
            not one positive number, or no class is normal.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    same_dim(embeddings=x, label_embeddings=labels)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    mask = checks.normal_mask(normal, len(labels))
    checks.run()
    return LabelArguments(x, labels, mask, temperature)


def check_labels_and_texts(
    checks: _checks.ValueChecks,
    embeddings: Any,
    label_embeddings: Any,
    dictionary_embeddings: Any,
    normal: Any,
) -> LabelAndTextArguments:
    """Adds the checks of images, labels, a dictionary and the mask, and returns these arrays.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    texts = checks.embeddings("dictionary_embeddings", dictionary_embeddings)
    same_dim(embeddings=x, label_embeddings=labels, dictionary_embeddings=texts)
    return LabelAndTextArguments(x, labels, texts, checks.normal_mask(normal, len(labels)))


def label_logits(
    x: Float[jax.Array, "images dim"],
    labels: Float[jax.Array, "classes dim"],
    mask: Bool[jax.Array, " classes"],
    temperature: Any,
    precision: Precision,
) -> Float[jax.Array, "images classes"]:
    """Returns s(x, t_c) / T, or -inf for classes that are not normal."""
    cosines = similarity(x, labels, precision=precision)
    scaled = cosines / jnp.asarray(temperature).astype(cosines.dtype)
    return jnp.where(mask[None, :], scaled, -jnp.inf)
