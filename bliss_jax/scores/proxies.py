"""Proxies from confident test images (AdaNeg): images that resemble stored anomalies are anomalous, too.

    M_s       = the anchor of slot s and at most L stored images
    P_s       = unit( sum over y in M_s of y )                                            (beta=None)
    P_s(x)    = unit( sum over y in M_s of exp(-beta (1 - s(x, y))) y )                   (otherwise)
    pos(x)    = log sum over the normal classes s of exp(s(x, P_s) / T)
    neg(x)    = log sum over the negative slots s that hold an image of exp(s(x, P_s) / T)
    margin(x) = T (neg(x) - pos(x)), or 0 if no anomaly is stored
    score(x)  = static(x) + weight * margin(x)

Each class has a slot, and so has each negative text. A test image is stored if its static score is below `low`, in the
slot of the normal class whose anchor is nearest, or if it is above `high`, in the slot of the nearest negative text. If
a slot is full, it keeps the L images with the smallest entropy of the softmax over the anchors of its kind, at the
temperature T. The memory therefore does not depend on the order of the images, only the scores of a stream do: a batch
is scored with the memory after it. Higher is more anomalous.

Source of the memory and of the proxies: Zhang, Zhang, "AdaNeg: Adaptive Negative Proxy Guided OOD Detection with
Vision-Language Models", NeurIPS 2024, section 3, with L = 10, beta = 5.5 and T = 0.01; the first form of P_s is its
task-adaptive proxy, the second its sample-adaptive one. `adaneg.py` is the published score on NegLabel. The margin on
another static score is in the manner of the source, which adds the softmax mass of the negative slots instead: the mass
is almost 0 or 1 for all images if the proxies are images, because cosines of images are large against T.

Scores depend on the other images; see `bliss_jax.scores.streams`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, replicated, rows
from bliss_jax.scores.blocks import BLOCK, map_images
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits
from bliss_jax.scores.statistics import unit
from bliss_jax.scores.streams import check_counted, check_static_scores
from bliss_jax.scores.top_k import similarity

PLACES = 10
"""L of the source."""
BETA = 5.5
"""beta of the source."""


class Slots(NamedTuple):
    """Anchors and the images stored beside each of them; a pytree."""

    anchors: Float[jax.Array, "*mapped slots dim"]
    """Embedding with which a slot starts. It is never replaced."""
    images: Float[jax.Array, "*mapped slots places dim"]
    """Embeddings of the stored images, in ascending order of the entropy; 0 in free places."""
    entropy: Float[jax.Array, "*mapped slots places"]
    """Entropy of each image's softmax over the anchors; +inf in free places."""


class ProxyMemory(NamedTuple):
    """The slots of the classes and of the negative texts; a pytree."""

    classes: Slots
    negatives: Slots


def init_proxies(
    class_anchors: Float[Array, "classes dim"],
    negative_anchors: Float[Array, "negatives dim"],
    *,
    places: int = PLACES,
) -> ProxyMemory:
    """Returns a memory without images.

    Args:
        class_anchors: Unit-norm embedding of each class [classes, dim]: its prompt, as in the source, or the direction
            of the mean of its normal images.
        negative_anchors: Unit-norm embeddings of negative texts [negatives, dim], e.g. of `negative_labels`.
        places: L, images per slot; static.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, or `places` is below 1.
    """
    _checks.static_integer("places", places, 1)
    checks = _checks.ValueChecks()
    classes = checks.embeddings("class_anchors", class_anchors)
    negatives = checks.embeddings("negative_anchors", negative_anchors)
    same_dim(class_anchors=classes, negative_anchors=negatives)
    checks.run()
    return _empty(classes, negatives, places=places)


@compiled(static=("places",), out=replicated)
def _empty(classes: jax.Array, negatives: jax.Array, *, places: int) -> ProxyMemory:
    dtype = _checks.accumulation_dtype(classes, negatives)

    def of_anchors(anchors: jax.Array) -> Slots:
        slots, dim = anchors.shape
        images = jnp.zeros((slots, places, dim), dtype)
        return Slots(anchors.astype(dtype), images, jnp.full((slots, places), jnp.inf, dtype))

    return ProxyMemory(of_anchors(classes), of_anchors(negatives))


def update_proxies(
    memory: ProxyMemory,
    embeddings: Float[Array, "images dim"],
    scores: Float[Array, " images"],
    *,
    low: float | Float[Array, ""],
    high: float | Float[Array, ""],
    weight: float | Float[Array, ""],
    normal: Bool[Array, " classes"] | None = None,
    beta: float | Float[Array, ""] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    where: Bool[Array, " images"] | None = None,
    precision: Precision = HIGHEST,
) -> tuple[ProxyMemory, Float[jax.Array, " images"]]:
    """Stores the confident images of a batch, and computes static(x) + weight * margin(x).

    Args:
        memory: State, from `init_proxies` or an earlier update.
        embeddings: Unit-norm image embeddings [images, dim].
        scores: Static scores [images], higher = more anomalous, from any score of this library.
        low: Images with a smaller static score are stored as normal.
        high: Images with a larger static score are stored as anomalous, `high` >= `low`.
        weight: Weight of the margin, in units of the static score per unit of cosine.
        normal: Mask of the normal classes [classes]; all by default.
        beta: Sharpness of the attention in a slot, >= 0. None for the mean of the slot.
        temperature: T > 0; may be traced.
        where: Images that count [images]; False marks padding, which is never stored. All by default.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The memory, and the scores [images], at least float32, higher = more anomalous. Under tracing, an image that is
        not finite has the score NaN and is never stored.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, a number is out of
            range, `high` is below `low`, or no class is normal.
    """
    for name, value in (("low", low), ("high", high), ("weight", weight)):
        _checks.scalar(name, value)
    if _checks.is_concrete(low) and _checks.is_concrete(high) and float(high) < float(low):
        raise ValueError(f"high: expected at least low ({float(low):g}), got {float(high):g}")
    x, mask, counted = check_batch(memory, embeddings, normal, beta, temperature, where)
    static = check_static_scores(scores, len(x))
    return _update(
        memory, x, static, mask, counted, low, high, weight, beta, temperature, precision=precision
    )


def check_batch(
    memory: ProxyMemory, embeddings: Any, normal: Any, beta: Any, temperature: Any, where: Any
) -> tuple[jax.Array, Any, jax.Array]:
    """Checks a batch and returns its embeddings, the mask of normal classes and the mask of images that count.

    Raises:
        ValueError: One of the reasons listed in `update_proxies`.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    same_dim(embeddings=x, memory=memory.classes.anchors)
    if beta is not None:
        _checks.scalar("beta", beta, minimum=0.0)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    mask = checks.normal_mask(normal, len(memory.classes.anchors))
    counted = check_counted(where, x)
    checks.run()
    return x, mask, counted


@compiled(static=("precision",), out=lambda memory, x, *_: (PartitionSpec(), rows(x)))
def _update(
    memory: ProxyMemory,
    x: jax.Array,
    static: jax.Array,
    mask: jax.Array,
    counted: jax.Array,
    low: Any,
    high: Any,
    weight: Any,
    beta: Any,
    temperature: Any,
    *,
    precision: Precision,
) -> tuple[ProxyMemory, jax.Array]:
    low, high = (jnp.asarray(value).astype(static.dtype) for value in (low, high))
    memory = store(
        memory, x, counted & (static < low), counted & (static > high), mask, temperature,
        precision=precision,
    )  # fmt: skip
    holds = jnp.any(jnp.isfinite(memory.negatives.entropy), axis=1)
    positive, negative = evidence(memory, x, mask, holds, beta, temperature, precision=precision)
    known = jnp.any(holds)
    margin = jnp.where(known, jnp.where(known, negative, 0) - positive, 0)
    margin = jnp.asarray(temperature).astype(margin.dtype) * margin
    dtype = _checks.accumulation_dtype(static, margin)
    score = static.astype(dtype) + jnp.asarray(weight).astype(dtype) * margin.astype(dtype)
    return memory, nan_unless_finite(score, x)


def store(
    memory: ProxyMemory,
    x: Float[jax.Array, "images dim"],
    is_normal: Bool[jax.Array, " images"],
    is_anomalous: Bool[jax.Array, " images"],
    mask: Bool[jax.Array, " classes"],
    temperature: Any,
    *,
    precision: Precision,
) -> ProxyMemory:
    """Stores the images of both kinds in the slots of their nearest anchors."""

    def into(slots: Slots, stored: jax.Array, allowed: jax.Array) -> Slots:
        logits = label_logits(x, slots.anchors, allowed, temperature, precision)
        log_p = jnp.where(allowed[None, :], jax.nn.log_softmax(logits, axis=1), 0)
        entropy = -jnp.sum(jnp.where(allowed[None, :], jnp.exp(log_p) * log_p, 0), axis=1)
        return _insert(slots, x, jnp.argmax(logits, axis=1), entropy, stored)

    negatives = jnp.ones(len(memory.negatives.anchors), bool)
    return ProxyMemory(
        into(memory.classes, is_normal, mask), into(memory.negatives, is_anomalous, negatives)
    )


def _insert(
    slots: Slots,
    x: Float[jax.Array, "images dim"],
    slot: Int[jax.Array, " images"],
    entropy: Float[jax.Array, " images"],
    stored: Bool[jax.Array, " images"],
) -> Slots:
    """Returns the slots with the images of the smallest entropy among those in them and the given ones."""
    number, places, dim = slots.images.shape
    dtype = slots.images.dtype
    every = jnp.concatenate([slots.images.reshape(-1, dim), x.astype(dtype)])
    priority = jnp.concatenate(
        [slots.entropy.reshape(-1), jnp.where(stored, entropy.astype(dtype), jnp.inf)]
    )
    own = jnp.repeat(jnp.arange(number, dtype=jnp.int32), places)
    belongs = jnp.concatenate([own, slot.astype(jnp.int32)])
    belongs = jnp.where(jnp.isinf(priority), number, belongs)
    # Stored images come first, so they stay if entropies are equal.
    order = jnp.lexsort((priority, belongs))
    of_slot = belongs[order]
    rank = jnp.arange(len(order)) - jnp.searchsorted(of_slot, of_slot, side="left")
    # Images beyond the last place, and free places, are written outside the array, i.e. dropped.
    row = jnp.where(rank < places, of_slot, number)
    column = jnp.minimum(rank, places - 1)
    return Slots(
        slots.anchors,
        jnp.zeros_like(slots.images).at[row, column].set(every[order], mode="drop"),
        jnp.full_like(slots.entropy, jnp.inf).at[row, column].set(priority[order], mode="drop"),
    )


def evidence(
    memory: ProxyMemory,
    x: Float[jax.Array, "images dim"],
    mask: Bool[jax.Array, " classes"],
    negatives: Bool[jax.Array, " negatives"],
    beta: Any,
    temperature: Any,
    *,
    precision: Precision,
) -> tuple[Float[jax.Array, " images"], Float[jax.Array, " images"]]:
    """Computes pos(x) and neg(x) over the slots of the two masks; -inf without a slot."""
    return (
        _log_mass(memory.classes, x, mask, beta, temperature, precision),
        _log_mass(memory.negatives, x, negatives, beta, temperature, precision),
    )


def _log_mass(
    slots: Slots, x: jax.Array, mask: jax.Array, beta: Any, temperature: Any, precision: Precision
) -> Float[jax.Array, " images"]:
    """Computes log sum_s exp(s(x, P_s(x)) / T) over the slots of the mask."""
    members = jnp.concatenate([slots.anchors[:, None], slots.images], axis=1)
    filled = jnp.concatenate([jnp.ones((len(members), 1), bool), jnp.isfinite(slots.entropy)], 1)
    dtype = _checks.accumulation_dtype(x, members)
    members, temperature = members.astype(dtype), jnp.asarray(temperature).astype(dtype)
    if beta is None:  # free places are 0
        to_proxy = similarity(x, unit(members.sum(axis=1)), precision=precision).astype(dtype)
        return jax.nn.logsumexp(jnp.where(mask[None, :], to_proxy / temperature, -jnp.inf), axis=1)
    beta = jnp.asarray(beta).astype(dtype)
    products = jnp.einsum("sld,smd->slm", members, members, precision=lax.Precision.HIGHEST)
    tiny = jnp.finfo(dtype).tiny

    def of_images(x: jax.Array) -> jax.Array:
        cosines = jnp.einsum("nd,sld->nsl", x.astype(dtype), members, precision=precision)
        attention = jnp.where(filled[None], jnp.exp(-beta * (1 - cosines)), 0)
        along = jnp.sum(attention * cosines, axis=2)
        # |sum_l a_l y_l|^2 = sum a_l a_m y_l . y_m, so no proxy [images, slots, dim] is built.
        weighted = jnp.einsum("nsl,slm->nsm", attention, products, precision=precision)
        squared = jnp.sum(attention * weighted, axis=2)
        to_proxy = along / jnp.sqrt(jnp.maximum(squared, tiny))
        return jax.nn.logsumexp(jnp.where(mask[None, :], to_proxy / temperature, -jnp.inf), axis=1)

    return map_images(of_images, x, max(1, BLOCK // max(1, filled.size)))
