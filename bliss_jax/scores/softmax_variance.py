"""Variance of the softmax over the normal labels: -Var_c p_c, p = softmax(s(x, t) / T), T = 1.

A confident zero-shot classifier has one large probability, so its probabilities vary; an anomaly has nearly equal ones.
With one normal class the score is 0.

Source: the variant `var` of the code of Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language
Representations", NeurIPS 2022. Its other variants are `mcm_score`, `max_logit_score`, `energy_score` and
`entropy_score`, all with a temperature of 1 there. The variance is divided by the number of normal classes (ddof 0).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import check_labels, label_logits


def softmax_variance_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -Var_c p_c with p = softmax(s(x, t) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-1/4, 0]. 0 images give an empty array. Under
        tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    a = check_labels(embeddings, label_embeddings, normal, temperature)
    return _softmax_variance(*a, precision=precision)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _softmax_variance(
    x: jax.Array, labels: jax.Array, mask: jax.Array, temperature: Any, *, precision: Precision
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, precision)
    number = jnp.maximum(mask.sum(), 1).astype(logits.dtype)
    # Probabilities add up to 1, so their mean is 1 / number.
    centred = jnp.where(mask[None, :], jax.nn.softmax(logits, axis=1) - 1 / number, 0)
    return nan_unless_finite(-jnp.sum(centred**2, axis=1) / number, x)


def _of_split(embeddings, mcm_label_embeddings, normal) -> jax.Array:
    return softmax_variance_score(embeddings, mcm_label_embeddings, normal=normal)


SCORE = Score("softmax_variance", _of_split, source="Ming et al., NeurIPS 2022", order=28)
