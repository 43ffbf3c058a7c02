"""Maximum concept matching: -max over normal classes c of softmax(s(x, t) / T)_c, T = 1.

Source: Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations",
NeurIPS 2022, equation 1; prompt `a photo of a {label}`. It is MSP at another temperature. Its
probabilities are nearly uniform and keep the size of the cosines, which a sharp softmax discards.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import HIGHEST, Array, Precision
from bliss_jax.scores.msp import msp_score
from bliss_jax.scores.record import Score


def mcm_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -max_c softmax(s(x, t) / T)_c over the normal classes c, T = 1.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-1, 0]. 0 images give an
        empty array. Under tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    return msp_score(
        embeddings, label_embeddings, normal=normal, temperature=temperature, precision=precision
    )


def _of_split(embeddings, mcm_label_embeddings, normal) -> jax.Array:
    return mcm_score(embeddings, mcm_label_embeddings, normal=normal)


SCORE = Score("mcm", _of_split, source="Ming et al., NeurIPS 2022", default=True, order=5)
