"""Global and local maximum concept matching (GL-MCM): MCM of the image plus MCM of its most normal patch.

    MCM(x)    = max over normal classes c of softmax(s(x, t) / T)_c
    GL-MCM(x) = -( MCM(x) + lambda max over patches p of MCM(x_p) ),    T = 1, lambda = 1

x is the embedding of the image, x_p that of patch p in the joint space (`encode_patches`). An image is normal if some
patch shows a normal class, also if the image as a whole does not look like it.

Source: Miyai, Yu, Irie, Aizawa, "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution
Detection", IJCV 2025, arXiv 2304.04521, section 3. See `mcm.py` for the global part.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision
from bliss_jax.scores.dense_bliss import patch_rows
from bliss_jax.scores.mcm import mcm_score


def gl_mcm_score(
    embeddings: Float[Array, "images dim"],
    patch_embeddings: Float[Array, "images patches dim"],
    label_embeddings: Float[Array, "classes dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    weight: float | Float[Array, ""] = 1.0,
    temperature: float | Float[Array, ""] = 1.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -( MCM(x) + lambda max_p MCM(x_p) ), with MCM(x) = max_c softmax(s(x, t) / T)_c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        patch_embeddings: Unit-norm embeddings of their patches [images, patches, dim], at least one patch.
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        normal: Mask of the normal classes [classes]; all by default.
        weight: lambda.
        temperature: T > 0; may be traced.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous, in [-2, 0] for lambda = 1. 0 images give an empty
        array. Under tracing, an image that is not finite has the score NaN.

    Raises:
        ValueError: One of the reasons listed in `mcm_score`, or the patches do not match the images.
    """
    _checks.scalar("weight", weight)
    rows, shape = patch_rows(patch_embeddings)
    if shape[:1] != jnp.shape(embeddings)[:1]:
        raise ValueError(
            f"patch_embeddings: expected patches of {jnp.shape(embeddings)[0]} images, got {list(shape)}"
        )
    options = {"normal": normal, "temperature": temperature, "precision": precision}
    local = mcm_score(rows, label_embeddings, **options).reshape(shape).min(axis=1)
    scores = mcm_score(embeddings, label_embeddings, **options)
    return scores + jnp.asarray(weight).astype(local.dtype) * local
