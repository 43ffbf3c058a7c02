"""CLIP-AD: the probability of "something" against the normal labels, softmax(s / T), T = 1/100.

Source: Liznerski et al., "Exposing Outlier Exposure: What Can Be Learned From Few, One, and Zero Outlier
Images", TMLR 2022, section 3 (zero-shot CLIP). The generic text `a photo of something` is compared with the
prompts of the normal classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits


def clip_ad_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    something_embedding: Float[Array, " dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes the softmax probability of the text "something" against the labels of the normal classes.

        score(x) = exp(s(x, t_0) / T) / [ exp(s(x, t_0) / T) + sum over normal classes c of exp(s(x, t_c) / T) ]

    Here t_0 is the text "something".

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        something_embedding: Unit-norm embedding of `a photo of something` [dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images] in [0, 1], higher = more anomalous; NaN under tracing for an image that is not finite.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature
            is not one positive number, or no class is normal.
    """
    something = _checks.as_array("something_embedding", something_embedding)
    if something.ndim != 1:
        raise ValueError(
            f"something_embedding: expected one [dim] vector, got {list(something.shape)}"
        )
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    text = checks.embeddings("something_embedding", something[None, :])
    same_dim(embeddings=x, label_embeddings=labels, something_embedding=text)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    mask = checks.normal_mask(normal, len(labels))
    checks.run()
    return _clip_ad(x, labels, text, mask, temperature, precision=precision)


@compiled(static=("precision",), out=lambda x, *_: rows(x))
def _clip_ad(
    x: jax.Array,
    labels: jax.Array,
    text: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    precision: Precision,
) -> jax.Array:
    dtype = _checks.accumulation_dtype(labels, text)
    texts = jnp.concatenate([text.astype(dtype), labels.astype(dtype)])
    mask = jnp.concatenate([jnp.ones(1, bool), mask])
    logits = label_logits(x, texts, mask, temperature, precision)
    return nan_unless_finite(jax.nn.softmax(logits, axis=1)[:, 0], x)


SCORE = Score("clip_ad", clip_ad_score, source="Liznerski et al., TMLR 2022", default=True, order=9)
