"""Maximum logit: -max over normal classes c of s(x, t_c) / T.

Source: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022,
with CLIP's similarities as logits. It ranks images exactly as the maximum cosine does.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.reductions import min_over_classes
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def max_logit_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-max_c s(x, t_c) / T over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        temperature: T > 0; may be traced.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    return min_over_classes(-label_logits(embeddings, label_embeddings, temperature, normal))
