"""Energy: -T logsumexp over normal classes c of s(x, t_c) / T.

Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 3, with CLIP's
similarities; at T = 1/100 this is their energy of the logits 100 s, divided by 100.
"""

import jax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def energy_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """-T log sum_c exp(s(x, t_c) / T) over the normal classes c.

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
    logits = label_logits(embeddings, label_embeddings, temperature, normal)
    return -jax.nn.logsumexp(logits, axis=1) * temperature
