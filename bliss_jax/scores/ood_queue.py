"""A queue of the most anomalous test images (OODD): images that resemble them are anomalous, too.

    Q        = the images of the stream so far with the largest static scores, at most `capacity`
    score(x) = static(x) + weight * k-th largest cosine of x to an image in Q

The static score is any score of this library, higher = more anomalous. A batch enters the queue before it is scored, so
an image may be in Q itself, as in the source. If Q has fewer than k images, the smallest of its cosines counts. If Q is
empty, the second term is 0.

Source: Yang, Zhu, Sun, Liu, Gu, Ye, "OODD: Test-time Out-of-Distribution Detection with Dynamic Dictionary", CVPR 2025:
a queue of 2,048 images, k = 5, weight 1 and the static score of maximum concept matching (`mcm_score`). The same on
BLISS and on whitened BLISS is in the manner of the source; there the static score has the unit of standard deviations,
and the weight was chosen on validation renders of `glyphs` (`docs/methods.md`).

Scores depend on the other images of the stream; see `bliss_jax.scores.streams`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.blocks import map_images
from bliss_jax.scores.mcm import mcm_score
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.streams import check_counted, check_static_scores
from bliss_jax.scores.top_k import default_sizes, similarity

CAPACITY = 2048
"""Capacity of the queue in the source."""
SHARE = 0.034
"""Share of the images of a batch that the queue of an evaluation holds: 2,048 of 60,000 images in the source."""


class OodQueue(NamedTuple):
    """The queue Q; a pytree."""

    embeddings: Float[jax.Array, "*mapped capacity dim"]
    """Embeddings of the images, in descending order of the static score; 0 in free places."""
    scores: Float[jax.Array, "*mapped capacity"]
    """Static score of each image; -inf in free places."""


def init_ood_queue(capacity: int, dim: int) -> OodQueue:
    """Returns an empty queue.

    Args:
        capacity: Largest number of images; static.
        dim: Dimension of the embeddings; static.

    Raises:
        ValueError: A number is not a positive integer.
    """
    _checks.static_integer("capacity", capacity, 1)
    _checks.static_integer("dim", dim, 1)
    return OodQueue(
        jnp.zeros((capacity, dim), jnp.float32), jnp.full(capacity, -jnp.inf, jnp.float32)
    )


def update_ood_queue(
    queue: OodQueue,
    embeddings: Float[Array, "images dim"],
    scores: Float[Array, " images"],
    *,
    k: int = 5,
    weight: float | Float[Array, ""] = 1.0,
    limit: float | Float[Array, ""] | None = None,
    where: Bool[Array, " images"] | None = None,
    precision: Precision = HIGHEST,
) -> tuple[OodQueue, Float[jax.Array, " images"]]:
    """Puts a batch into the queue, and computes static(x) + weight * k-th largest cosine to the queue.

    Args:
        queue: State, from `init_ood_queue` or an earlier update.
        embeddings: Unit-norm image embeddings [images, dim].
        scores: Static scores [images], higher = more anomalous, from any score of this library.
        k: Number of images of the queue to which an image is compared, 1 <= k <= capacity; static.
        weight: Weight of the cosine, in units of the static score per unit of cosine.
        limit: Largest number of images in the queue, if it is smaller than the capacity; may be traced.
        where: Images that count [images]; False marks padding, which never enters the queue. All by default.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        The queue, and the scores [images], at least float32, higher = more anomalous. Under tracing, an image that is
        not finite has the score NaN, and it never enters the queue.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, or a number is out of
            range.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    capacity, dim = queue.embeddings.shape
    if x.shape[1] != dim:
        raise ValueError(
            f"embeddings: expected {dim} dimensions, as in the queue, got {list(x.shape)}"
        )
    static = check_static_scores(scores, len(x))
    _checks.top_k_size(k, capacity, "the capacity of the queue")
    _checks.scalar("weight", weight)
    if limit is not None:
        _checks.scalar("limit", limit, minimum=1.0)
    counted = check_counted(where, x)
    checks.run()
    return _update(queue, x, static, counted, weight, limit, k=k, precision=precision)


@compiled(static=("k", "precision"), out=lambda queue, x, *_: (PartitionSpec(), rows(x)))
def _update(
    queue: OodQueue,
    x: jax.Array,
    static: jax.Array,
    counted: jax.Array,
    weight: Any,
    limit: Any,
    *,
    k: int,
    precision: Precision,
) -> tuple[OodQueue, jax.Array]:
    capacity, dtype = len(queue.scores), queue.scores.dtype
    candidates = jnp.where(counted & ~jnp.isnan(static), static, -jnp.inf).astype(dtype)
    # Images that are in the queue come first, so they stay if scores are equal.
    scores, place = lax.top_k(jnp.concatenate([queue.scores, candidates]), capacity)
    images = jnp.concatenate([queue.embeddings, x.astype(queue.embeddings.dtype)])[place]
    kept = scores > -jnp.inf
    if limit is not None:
        kept = kept & (jnp.arange(1, capacity + 1, dtype=dtype) <= jnp.asarray(limit).astype(dtype))
    queue = OodQueue(jnp.where(kept[:, None], images, 0), jnp.where(kept, scores, -jnp.inf))
    place_of_kth = jnp.clip(kept.sum(), 1, k) - 1

    def of_images(x: jax.Array) -> jax.Array:
        cosines = similarity(x, queue.embeddings, precision=precision)
        nearest = lax.top_k(jnp.where(kept[None, :], cosines, -jnp.inf), k)[0]
        found = jnp.take_along_axis(nearest, jnp.full((len(x), 1), place_of_kth), axis=1)[:, 0]
        return jnp.where(jnp.any(kept), found, 0)

    found = map_images(of_images, x, default_sizes()[1])
    dtype = _checks.accumulation_dtype(static, found)
    score = static.astype(dtype) + jnp.asarray(weight).astype(dtype) * found.astype(dtype)
    return queue, nan_unless_finite(score, x)


def queue_of_batch(
    embeddings: jax.Array,
    static: jax.Array,
    counted: jax.Array,
    weight: Any,
    *,
    share: float = SHARE,
) -> Float[jax.Array, " images"]:
    """Computes the scores of a whole batch, whose queue holds a share of the images that count, at least five."""
    capacity = max(5, round(share * len(static)))
    queue = init_ood_queue(capacity, embeddings.shape[1])
    limit = jnp.maximum(share * counted.sum().astype(static.dtype), 5.0)
    return update_ood_queue(queue, embeddings, static, weight=weight, limit=limit, where=counted)[1]


def _of_split(embeddings, mcm_label_embeddings, normal, counted) -> jax.Array:
    static = mcm_score(embeddings, mcm_label_embeddings, normal=normal)
    return queue_of_batch(embeddings, static, counted, 1.0)


SCORE = Score(
    "oodd",
    _of_split,
    source="Yang et al., CVPR 2025",
    order=43,
    one_split_at_a_time=True,
    transductive=True,
    settings={"queue": SHARE, "static": "mcm"},
)
