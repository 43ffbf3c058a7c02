"""Envisioned outlier exposure (EOE): the probability of the best label, less that of the best outlier text.

    score(x) = -max_c p_c(x) + beta max_d p_d(x),
    p_t(x)   = exp(s(x, t) / T) / (sum_c exp(s(x, t_c) / T) + sum_d exp(s(x, d) / T))

The sums are over the normal classes c and the outlier texts d. The published method asks a language model for the
outlier texts. Here the dictionary takes their place. beta = 0.25 is the paper's, and T = 1 is that of maximum concept
matching, on which its implementation is based. Higher is more anomalous.

Source: Cao et al., "Envisioning Outlier Exposure by Large Language Models for Out-of-Distribution Detection",
ICML 2024.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import check_labels_and_texts, label_logits
from bliss_jax.scores.text_mass import log_mass
from bliss_jax.scores.top_k import check_chunk_size, nearest_texts

BETA = 0.25
"""Weight of the outlier texts, as in the paper."""


def eoe_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    beta: float | Float[Array, ""] = BETA,
    temperature: float | Float[Array, ""] = 1.0,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -max_c p_c(x) + beta max_d p_d(x), a softmax over the normal labels and the dictionary.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the outlier texts [texts, dim].
        normal: Mask of the normal classes [classes]; all by default.
        beta: Weight of the most probable outlier text; may be traced.
        temperature: T > 0; may be traced.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-1, beta]. 0 images give an empty array. Under
        tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the dictionary is
            empty, beta is not one finite number, the temperature is not one positive number, or no class is normal.
    """
    checks = _checks.ValueChecks()
    x, labels, texts, mask = check_labels_and_texts(
        checks, embeddings, label_embeddings, dictionary_embeddings, normal
    )
    _checks.top_k_size(1, len(texts), "the texts of the dictionary")
    _checks.scalar("beta", beta)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    checks.run()
    return _eoe(
        x,
        labels,
        texts,
        mask,
        beta,
        temperature,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(static=("chunk_size", "precision"), out=lambda x, *_: rows(x))
def _eoe(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    beta: Any,
    temperature: Any,
    **static: Any,
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, static["precision"])
    outliers = log_mass(x, texts, temperature, **static)
    total = jnp.logaddexp(jax.nn.logsumexp(logits, axis=1), outliers)
    cosines, _ = nearest_texts(x, texts, None, k=1, dictionary_axis=None, **static)
    largest = cosines[:, 0] / jnp.asarray(temperature).astype(cosines.dtype)
    outlier = jnp.asarray(beta).astype(total.dtype) * jnp.exp(largest - total)
    return nan_unless_finite(outlier - jnp.exp(logits.max(axis=1) - total), x)


SCORE = Score("eoe", eoe_score, source="Cao et al., ICML 2024", order=23)
