"""k nearest neighbours: minus the mean of the k largest cosines to normal images.

    score(x) = - mean over the k normal images y nearest to x of s(x, y)

Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022 (there the
distance to the k-th neighbour; the mean of the k cosines is less noisy), on CLIP's image embeddings. No
text is used.

The k largest over any union of classes are among the k largest of each class. So the search is done once
(`nearest_of_class`) and every split of a benchmark is scored from its result (`knn_score_from_nearest`).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.class_blocks import class_blocks
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.top_k import CHUNK_SIZE, similarity, top_k_similar


def knn_score(
    embeddings: Float[Array, "images dim"],
    normal_embeddings: Float[Array, "bank dim"],
    k: int = 10,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Float[jax.Array, " images"]:
    """- mean of the k largest cosines to the normal images.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        normal_embeddings: Unit-norm embeddings of the normal images [bank, dim].
        k: Neighbours, 1 <= k <= bank; static.
        chunk_size: Normal images compared at once; bounds memory, does not change the result; static.

    Returns:
        Scores [images] in [-1, 1], higher = more anomalous.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, k outside 1..bank.
    """
    x = _checks.embeddings_as_float("embeddings", embeddings)
    bank = _checks.embeddings_as_float("normal_embeddings", normal_embeddings)
    _checks.same_dim(embeddings=x, normal_embeddings=bank)
    _checks.top_k_size(k, len(bank), "the normal images")
    values, _ = top_k_similar(x, bank, k, chunk_size=chunk_size)
    return -values.mean(axis=1)


def nearest_of_class(
    embeddings: Float[Array, "images dim"],
    bank_embeddings: Float[Array, "bank dim"],
    bank_labels: Int[Array, " bank"],
    k: int = 10,
    *,
    num_classes: int,
    block_size: int = 1024,
) -> Float[jax.Array, "images classes k"]:
    """The k largest cosines of each image to the bank's images of each class, descending.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        bank_embeddings: Unit-norm embeddings of labelled images [bank, dim].
        bank_labels: Their classes [bank], in 0..num_classes-1.
        k: Neighbours, 1 <= k <= bank; static.
        num_classes: C, static.
        block_size: Images of one class compared at once, at most; bounds memory; static.

    Returns:
        Cosines [images, C, k]; -inf where a class has fewer than k images.

    Raises:
        ValueError: as `knn_score`, and labels out of range.
    """
    x = _checks.embeddings_as_float("embeddings", embeddings)
    bank = _checks.embeddings_as_float("bank_embeddings", bank_embeddings)
    _checks.same_dim(embeddings=x, bank_embeddings=bank)
    _checks.top_k_size(k, len(bank), "the images of the bank")
    labels = _checks.class_labels("bank_labels", bank_labels, len(bank), num_classes)

    labels = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)

    def add_block(nearest, block):
        rows, valid, c = block
        cosines = jnp.where(valid[None, :], similarity(x, bank[rows]), -jnp.inf)
        candidates = jnp.concatenate([nearest[c], cosines], axis=1)
        return nearest.at[c].set(lax.top_k(candidates, k)[0]), None

    nothing = jnp.full((num_classes, len(x), k), -jnp.inf, x.dtype)
    nothing = nothing + zero_like_inputs(x, bank, labels)
    blocks = class_blocks(labels, num_classes, block_size)
    return jnp.swapaxes(lax.scan(add_block, nothing, blocks)[0], 0, 1)


def knn_score_from_nearest(
    nearest: Float[Array, "images classes k"],
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """`knn_score` over the images of the normal classes, from the result of `nearest_of_class`.

    Args:
        nearest: Cosines [images, classes, k], -inf where there is no neighbour.
        normal: Mask of the normal classes [classes]; all by default.

    Returns:
        Scores [images], higher = more anomalous; +inf where the normal classes together have fewer than
        k images.

    Raises:
        ValueError: a mask that does not fit, or no normal class.
    """
    images, classes, k = nearest.shape
    mask = _checks.normal_mask(normal, classes)
    nearest = jnp.where(mask[None, :, None], nearest, -jnp.inf)
    if classes > k:
        # The k nearest images are of the k classes whose nearest image is nearest: fewer to sort.
        _, few = lax.top_k(nearest[:, :, 0], k)
        nearest = jnp.take_along_axis(nearest, few[:, :, None], axis=1)
    return -lax.top_k(nearest.reshape(images, -1), k)[0].mean(axis=1)
