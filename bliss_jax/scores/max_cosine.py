"""Maximum cosine: -max over normal classes c of s(x, t_c).

What BLISS corrects: the plain similarity to the nearest label, without any normal image.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.reductions import min_over_classes
from bliss_jax.scores.softmax import label_logits


def max_cosine_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-max_c s(x, t_c) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, no normal class.
    """
    return min_over_classes(-label_logits(embeddings, label_embeddings, 1.0, normal))
