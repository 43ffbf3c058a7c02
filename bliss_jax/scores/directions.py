"""Directions of the embedding space along which the parts of BLISS grow.

    internal(x, c) = w_internal . x + constant      w_internal = -t_c / sigma_c
    z(x, d)        = w_d . x + constant             w_d        = d / sigma_{c,d}
    external(x, c) = w_external . x + constant      w_external = mean over d in D_k(x) of w_d
    BLISS(x)       = w . x + constant               w          = w_internal + lambda w_external

x is the unit-norm embedding, c = c*(x) the nearest class and D_k(x) the nearest texts, which are constant around almost
every x. So w is the gradient of BLISS, and a map of BLISS is a map of the cosine to one direction. The equations follow
from those of the score (Goodge et al., BMVC 2024, section 4; see `explanation.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, rows
from bliss_jax.scores.explanation import BlissExplanation
from bliss_jax.scores.prepared import PreparedBliss


class BlissDirections(NamedTuple):
    """Directions for each image; a pytree."""

    score: Float[jax.Array, "*mapped images dim"]
    """w, the gradient of BLISS by the embedding."""
    internal: Float[jax.Array, "*mapped images dim"]
    """w_internal."""
    external: Float[jax.Array, "*mapped images dim"]
    """w_external, without the factor lambda."""
    words: Float[jax.Array, "*mapped images n dim"]
    """w_d of each text of the explanation."""


def bliss_directions(
    explanation: BlissExplanation,
    prepared: PreparedBliss,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
) -> BlissDirections:
    """Computes the directions w = -t_c / sigma_c + lambda mean over D_k(x) of d / sigma_{c,d} at the nearest class.

    Args:
        explanation: Result of `explain_bliss_prepared` with `num_texts` of at least k.
        prepared: Table from `prepare_bliss`. Its dictionary must not be sharded.
        k: Texts per image of the score; static.
        weight: lambda.

    Returns:
        The directions, at least float32; those of the words in the order of `explanation.texts`.

    Raises:
        ValueError: The explanation has fewer than k texts.
    """
    _checks.top_k_size(k, jnp.shape(explanation.texts)[-1], "the texts of the explanation")
    _checks.scalar("weight", weight)
    return _directions(explanation, prepared, weight, k=k)


def _specs(explanation: BlissExplanation, *_: Any) -> BlissDirections:
    of_images: Any = rows(explanation.score)  # the fields are typed as arrays
    return BlissDirections(*(of_images,) * len(BlissDirections._fields))


@compiled(static=("k",), out=_specs)
def _directions(
    explanation: BlissExplanation, prepared: PreparedBliss, weight: Any, *, k: int
) -> BlissDirections:
    c, texts = explanation.nearest_class, explanation.texts
    internal = -prepared.label_embeddings[c] / prepared.label_deviation[c][:, None]
    deviation = prepared.deviation[texts, c[:, None]]
    words = prepared.dictionary_embeddings[texts] / deviation[:, :, None]
    external = jnp.mean(words[:, :k], axis=1)
    score = internal + jnp.asarray(weight).astype(external.dtype) * external
    return BlissDirections(score, internal, external, words)
