"""BLISS and whitened BLISS that adapt to the test images: as static scores of `proxies.py` and of `ood_queue.py`.

    static(x) = BLISS(x), or whitened BLISS(x) divided by the standard deviation of its internal part
    score(x)  = static(x) + weight * margin(x)                               (proxies)
    score(x)  = static(x) + weight * k-th largest cosine to the queue        (queue)

    weight    = lambda' / d,    d = sqrt( tr S / dim ),    S = sum_c n_c C_c / sum_c n_c

d is the standard deviation of a cosine of the images of a class along a random direction. Both static scores and both
terms then have the unit of standard deviations over the fitted images of a class, whatever the encoder. The anchor of a
class is the direction of its mean embedding. The anchors of the negative slots are the words that are least similar to
these directions (`negative_labels`).

This combination is an option of this library and is not in the paper of BLISS (Goodge et al., BMVC 2024). Its settings
were chosen on the validation renders of `glyphs`; `docs/methods.md` has the results. Scores depend on the other images
of the batch; see `bliss_jax.scores.streams`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax._checks import compiled, replicated
from bliss_jax.scores.mahalanobis import one_image_per_class
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.neglabel import negative_labels, too_few_texts
from bliss_jax.scores.ood_queue import queue_of_batch
from bliss_jax.scores.parts import combine
from bliss_jax.scores.proxies import ProxyMemory, init_proxies, update_proxies
from bliss_jax.scores.record import Facts, Score
from bliss_jax.scores.statistics import in_dtype, pooled_covariance, unit
from bliss_jax.scores.whitened import WHITENING_RIDGE, whitened_bliss_score
from bliss_jax.scores.within_class import whiten, whitening_within_classes


class Proxies(NamedTuple):
    """Settings of the proxies, in standard deviations."""

    low: float
    """Images with a smaller static score are stored as normal."""
    high: float
    """Images with a larger static score are stored as anomalous."""
    weight: float
    """lambda' of the margin."""


BLISS_PROXIES = Proxies(0.5, 1.5, 1.6)
WHITENED_PROXIES = Proxies(0.5, 1.5, 0.4)
QUEUE_SHARE = 0.1
"""Share of the images of a batch that the queue holds."""
QUEUE_WEIGHT = 0.4
"""lambda' of the cosine to the queue."""


@compiled(static=(), out=replicated)
def whitened_deviation(
    moments: ClassMoments,
    labels: Float[jax.Array, "classes dim"],
    mask: Bool[jax.Array, " classes"],
    ridge: Any,
) -> Float[jax.Array, ""]:
    """Returns the standard deviation of -f(x, t_c, c) of `whitened.py` over fitted images, as the mean over classes."""
    moments = in_dtype(moments, labels)
    inverse = whitening_within_classes(moments, mask, ridge)
    label = unit(whiten(labels.astype(moments.mean.dtype), inverse))
    within = whiten(whiten(pooled_covariance(moments, mask), inverse).T, inverse)
    spread = jnp.sum(jnp.matmul(label, within, precision=lax.Precision.HIGHEST) * label, axis=1)
    deviation = jnp.where(mask, jnp.sqrt(jnp.maximum(spread, jnp.finfo(spread.dtype).tiny)), 0)
    return deviation.sum() / jnp.maximum(mask.sum(), 1).astype(deviation.dtype)


def cosine_deviation(
    moments: ClassMoments, normal: Bool[jax.Array, " classes"]
) -> Float[jax.Array, ""]:
    """Returns d, the standard deviation of the cosine to a random direction within the normal classes."""
    spread = jnp.trace(pooled_covariance(moments, normal))
    return jnp.sqrt(jnp.maximum(spread / moments.mean.shape[1], jnp.finfo(spread.dtype).tiny))


def memory_of_fit(
    dictionary_embeddings: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    normal: Bool[jax.Array, " classes"],
) -> ProxyMemory:
    """Returns a memory without images, with anchors from the fitted means and the dictionary."""
    centres = unit(moments.mean)
    # A class without images has no direction. Its slot is masked, and any unit vector may stand there.
    centres = jnp.where((moments.count > 0)[:, None], centres, dictionary_embeddings[:1])
    chosen = negative_labels(centres, dictionary_embeddings, normal=normal)
    return init_proxies(centres, dictionary_embeddings[chosen])


def proxies_of_batch(
    embeddings: jax.Array,
    static: jax.Array,
    dictionary_embeddings: jax.Array,
    moments: ClassMoments,
    normal: jax.Array,
    counted: jax.Array,
    settings: Proxies,
) -> Float[jax.Array, " images"]:
    """Computes static(x) + weight * margin(x) of a whole batch."""
    memory = memory_of_fit(dictionary_embeddings, moments, normal)
    return update_proxies(
        memory, embeddings, static, low=settings.low, high=settings.high,
        weight=settings.weight / cosine_deviation(moments, normal), normal=normal, where=counted,
    )[1]  # fmt: skip


def whitened_static(
    embeddings: jax.Array,
    label_embeddings: jax.Array,
    dictionary_embeddings: jax.Array,
    moments: ClassMoments,
    k: int,
    weight: Any,
    normal: jax.Array,
) -> Float[jax.Array, " images"]:
    """Computes whitened BLISS in standard deviations of its internal part."""
    score = whitened_bliss_score(
        embeddings, label_embeddings, dictionary_embeddings, moments, k,
        weight=weight, normal=normal,
    )  # fmt: skip
    return score / whitened_deviation(moments, label_embeddings, normal, WHITENING_RIDGE)


def _bliss_proxies(
    embeddings, dictionary_embeddings, moments, internal, external, weight, normal, counted
) -> jax.Array:
    static = combine(internal, external, weight, normal=normal)
    return proxies_of_batch(
        embeddings, static, dictionary_embeddings, moments, normal, counted, BLISS_PROXIES
    )


def _whitened_proxies(
    embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, normal, counted
) -> jax.Array:
    static = whitened_static(
        embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, normal
    )
    return proxies_of_batch(
        embeddings, static, dictionary_embeddings, moments, normal, counted, WHITENED_PROXIES
    )


def _bliss_queue(embeddings, moments, internal, external, weight, normal, counted) -> jax.Array:
    static = combine(internal, external, weight, normal=normal)
    scale = QUEUE_WEIGHT / cosine_deviation(moments, normal)
    return queue_of_batch(embeddings, static, counted, scale, share=QUEUE_SHARE)


def _whitened_queue(
    embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, normal, counted
) -> jax.Array:
    static = whitened_static(
        embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, normal
    )
    scale = QUEUE_WEIGHT / cosine_deviation(moments, normal)
    return queue_of_batch(embeddings, static, counted, scale, share=QUEUE_SHARE)


def _no_covariance_or_texts(facts: Facts) -> str | None:
    return one_image_per_class(facts) or too_few_texts(facts)


def _said(settings: Proxies) -> dict[str, float]:
    """Returns the settings of a row; `weight` would be lambda of BLISS."""
    return {"low": settings.low, "high": settings.high, "margin_weight": settings.weight}


_QUEUE = {"queue": QUEUE_SHARE, "queue_weight": QUEUE_WEIGHT}
_SHARED: dict[str, Any] = {"one_split_at_a_time": True, "transductive": True}
SCORES = (
    Score(
        "bliss_proxies", _bliss_proxies, order=44, settings=_said(BLISS_PROXIES),
        unavailable=_no_covariance_or_texts,         **_SHARED,
    ),
    Score(
        "whitened_proxies", _whitened_proxies, order=45, settings=_said(WHITENED_PROXIES),
        unavailable=_no_covariance_or_texts, **_SHARED,
    ),
    Score(
        "bliss_queue", _bliss_queue, order=46, settings=_QUEUE,
        unavailable=one_image_per_class, **_SHARED,
    ),
    Score(
        "whitened_queue", _whitened_queue, order=47, settings=_QUEUE,
        unavailable=one_image_per_class, **_SHARED,
    ),
)  # fmt: skip
