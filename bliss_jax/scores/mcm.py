"""Maximum concept matching: -max over normal classes c of softmax(s(x, t) / T)_c, T = 1.

Source: Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations",
NeurIPS 2022, equation 1; prompt `a photo of a {label}`. MSP at another temperature: nearly uniform
probabilities keep the size of the cosines, which a sharp softmax throws away.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.msp import msp_score


def mcm_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""] = 1.0,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-max_c softmax(s(x, t) / T)_c over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        temperature: T > 0; may be traced.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous, in [-1, 0].

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, a temperature that is not positive, no normal class.
    """
    return msp_score(embeddings, label_embeddings, temperature, normal)
