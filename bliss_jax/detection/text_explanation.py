"""Explanations of a detector that was fitted without images, from the cosines to its texts."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from bliss_jax.scores import BlissExplanation, similarity, top_k_similar


@partial(jax.jit, static_argnames=("k", "num_texts"))
def explain_texts(
    embeddings: Float[jax.Array, "images dim"],
    *,
    labels: Float[jax.Array, "classes dim"],
    dictionary: Float[jax.Array, "texts dim"],
    k: int,
    num_texts: int,
) -> BlissExplanation:
    """Returns the nearest class and phrases of each image by cosine.

    The internal part is minus the largest cosine to a label, the external part the mean of the k largest cosines to
    phrases, and the phrases have cosines in place of z-scores.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        labels: Embedding of each class's prompt [classes, dim].
        dictionary: Embedding of each phrase's prompt [texts, dim].
        k: Phrases of the external part.
        num_texts: Phrases to return for each image.
    """
    to_labels = similarity(embeddings, labels)
    cosines, nearest = top_k_similar(embeddings, dictionary, max(k, num_texts))
    return BlissExplanation(
        score=jnp.full(len(embeddings), jnp.nan),
        nearest_class=jnp.argmax(to_labels, axis=1).astype(jnp.int32),
        internal=-to_labels.max(axis=1),
        external=cosines[:, :k].mean(axis=1),
        texts=nearest[:, :num_texts],
        z_scores=cosines[:, :num_texts],
    )
