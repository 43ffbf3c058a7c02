"""Concept matching with agents (CMA): the softmax over the labels and many further texts, the agents.

    score(x) = -max_c p_c(x),    p_c(x) = exp(s(x, t_c) / T) / (sum_c' exp(s(x, t_c') / T) + sum_a exp(s(x, a) / T))

The sums are over the normal classes c' and over the agents a. The published method uses a few neutral phrases as
agents. Here the dictionary takes their place, and T = 1 as in maximum concept matching. Higher is more anomalous.

Source: Lee et al., "Concept Matching with Agent for Out-of-Distribution Detection", AAAI 2025.
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
from bliss_jax.scores.top_k import check_chunk_size


def cma_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -max_c of the softmax over the normal labels and the dictionary.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the agents [texts, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-1, 0]. 0 images give an empty array. Under
        tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature is not
            one positive number, or no class is normal.
    """
    checks = _checks.ValueChecks()
    x, labels, texts, mask = check_labels_and_texts(
        checks, embeddings, label_embeddings, dictionary_embeddings, normal
    )
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    checks.run()
    chunk_size = check_chunk_size(chunk_size)
    return _cma(x, labels, texts, mask, temperature, chunk_size=chunk_size, precision=precision)


@compiled(static=("chunk_size", "precision"), out=lambda x, *_: rows(x))
def _cma(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    chunk_size: int,
    precision: Precision,
) -> jax.Array:
    logits = label_logits(x, labels, mask, temperature, precision)
    agents = log_mass(x, texts, temperature, chunk_size=chunk_size, precision=precision)
    total = jnp.logaddexp(jax.nn.logsumexp(logits, axis=1), agents)
    return nan_unless_finite(-jnp.exp(logits.max(axis=1) - total), x)


SCORE = Score("cma", cma_score, source="Lee et al., AAAI 2025", order=22)
