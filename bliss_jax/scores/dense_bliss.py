"""Dense BLISS: BLISS of every patch of an image, against the patches of normal images.

    dense(x, p) = BLISS(x_p)            image score = max over patches p of dense(x, p)

x_p is the embedding of patch p in the joint space (`encode_patches`; Zhou et al., "Extract Free Dense Labels from
CLIP", ECCV 2022). BLISS is the score of `bliss.py` (Goodge et al., BMVC 2024, section 4), but mean and covariance of a
class are those of all patches of its normal images. They stream over batches like those of images::

    moments = fit_patch_moments(patches, labels, num_classes=C)
    moments = merge_moments(moments, fit_patch_moments(more_patches, more_labels, num_classes=C))

Memory is that of `bliss_score` for images x patches rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision
from bliss_jax.scores.bliss import bliss_score
from bliss_jax.scores.moments import ClassMoments, fit_moments


def fit_patch_moments(
    patch_embeddings: Float[Array, "images patches dim"],
    labels: Int[Array, " images"],
    *,
    num_classes: int,
) -> ClassMoments:
    """Computes number, mean m_c and covariance C_c (ddof 0) of the patches of each class's images.

    Args:
        patch_embeddings: Unit-norm embeddings of the patches of normal images [images, patches, dim].
        labels: Class of each image [images].
        num_classes: Number of classes; static.

    Returns:
        The moments. `count` is the number of patches.

    Raises:
        ValueError: The patches are not [images, patches, dim], or one of the reasons listed in `fit_moments`.
    """
    rows, (images, patches) = patch_rows(patch_embeddings)
    classes = _checks.class_labels("labels", labels, images, num_classes)
    return fit_moments(rows, jnp.repeat(classes, patches), num_classes=num_classes)


def dense_bliss_score(
    patch_embeddings: Float[Array, "images patches dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "images patches"]:
    """Computes BLISS(x_p) = min over c of [ internal(x_p, c) + lambda external(x_p, c) ] of every patch.

    Args:
        patch_embeddings: Unit-norm embeddings of patches [images, patches, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on patches of normal images of the same classes (`fit_patch_moments`).
        k: Texts per patch, 1 <= k <= texts; static.
        weight: lambda.
        normal: Mask of the normal classes [classes]; all by default.
        shrinkage: n0 >= 0 of `bliss_score`.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images, patches], at least float32, higher = more anomalous. Their maximum over patches is a score of
        the image.

    Raises:
        ValueError: The patches are not [images, patches, dim], or one of the reasons listed in `bliss_score`.
    """
    rows, shape = patch_rows(patch_embeddings)
    scores = bliss_score(
        rows,
        label_embeddings,
        dictionary_embeddings,
        moments,
        k,
        weight=weight,
        normal=normal,
        shrinkage=shrinkage,
        precision=precision,
    )
    return scores.reshape(shape)


def patch_rows(patch_embeddings: Any) -> tuple[jax.Array, tuple[int, int]]:
    """Returns patches as rows [images * patches, dim], and the shape (images, patches).

    Raises:
        ValueError: The array is not [images, patches, dim] with at least one patch.
    """
    array = _checks.as_array("patch_embeddings", patch_embeddings)
    if array.ndim != 3 or not array.shape[1]:
        raise ValueError(
            "patch_embeddings: expected [images, patches, dim] with at least one patch, got "
            f"{array.dtype} {list(array.shape)}"
        )
    return array.reshape(-1, array.shape[2]), (array.shape[0], array.shape[1])
