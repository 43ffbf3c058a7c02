"""Test-time activated negative labels (TANL): the words that anomalous test images activate, and normal ones do not.

    p_w(x)   = exp(s(x, w) / T) / (sum_c exp(s(x, t_c) / T) + sum over all words w' of exp(s(x, w') / T))
    act(w)   = mean of p_w over confident anomalies - mean of p_w over confident normal images
    w_1, ... = the M words with the largest act, in descending order
    S(x)     = mean over m = 1..M of P / (P + sum_{i <= m} exp(s(x, w_i) / T)),    P = sum_c exp(s(x, t_c) / T)
    score(x) = 1 - S(x)

An image is confidently normal if S(x) > g + (1 - g) b and confidently anomalous if S(x) < b - g b. The threshold b
separates the values of S so far into two groups with the least variance within the groups (Otsu), on a grid of 0.01,
and g is the gap. c runs over the normal classes, the words are the dictionary, and T = 0.01. Words with a large
activation are in more terms of the mean, so they have more weight. Higher is more anomalous.

An update first scores the batch with the words so far, takes the confident images into the means, chooses the words
anew, and scores the batch again. Before the first image, the labels' own embeddings are the normal images.

Source: "Activation Matters: Test-time Activated Negative Labels for OOD Detection with Vision-Language Models", CVPR
2026, arXiv 2603.25250, and the behaviour of its code. Three things differ: the means are over all confident images
so far instead of the last few hundred, the encodings of noise images that the source counts as anomalies at the start
are replaced by equal activations of all words, and M is a share of the dictionary (1,000 of 10,000 words there).

Scores depend on the other images of the stream; see `bliss_jax.scores.streams`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, replicated, rows
from bliss_jax.scores.record import Facts, Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, check_labels_and_texts, label_logits
from bliss_jax.scores.streams import check_counted, scan_stream

BINS = 100
"""Number of intervals of S, at whose bounds the threshold lies."""
FRACTION = 0.1
"""Share of the dictionary that become negative labels: 1,000 of 10,000 words in the source."""
GAP = 0.5
"""g of the source."""
BATCH = 256
"""Batch size of the source, and of an evaluation."""


class TanlState(NamedTuple):
    """Sums over the images so far; a pytree."""

    normal: Float[jax.Array, "*mapped words"]
    """Sum of p_w over the confidently normal images."""
    normal_images: Float[jax.Array, "*mapped"]
    """Number of these images."""
    anomalous: Float[jax.Array, "*mapped words"]
    """Sum of p_w over the confidently anomalous images."""
    anomalous_images: Float[jax.Array, "*mapped"]
    """Number of these images."""
    histogram: Float[jax.Array, "*mapped bins 3"]
    """Number, sum and sum of squares of the values of S in each interval."""


def init_tanl(
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "words dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    precision: Precision = HIGHEST,
) -> TanlState:
    """Returns the state before the first image, from the activations of the words by the labels.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Raises:
        ValueError: One of the reasons listed in `update_tanl`.
    """
    checks = _checks.ValueChecks()
    a = check_labels_and_texts(
        checks, label_embeddings, label_embeddings, dictionary_embeddings, normal
    )
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    checks.run()
    return _init(a.labels, a.texts, a.mask, temperature, precision=precision)


def update_tanl(
    state: TanlState,
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "words dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    fraction: float = FRACTION,
    gap: float | Float[Array, ""] = GAP,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    where: Bool[Array, " images"] | None = None,
    precision: Precision = HIGHEST,
) -> tuple[TanlState, Float[jax.Array, " images"]]:
    """Takes the confident images of a batch into the activations, and scores the batch with the words they choose.

    Memory grows with images x words, so large sets are passed in batches.

    Args:
        state: State, from `init_tanl` or an earlier update.
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        normal: Mask of the normal classes [classes]; all by default.
        fraction: Share of the words that become negative labels, in (0, 1]; static.
        gap: g, in [0, 1].
        temperature: T > 0; may be traced.
        where: Images that count [images]; False marks padding, which changes nothing. All by default.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The state, and the scores [images] in [0, 1], higher = more anomalous. Under tracing, an image that is not
        finite has the score NaN and changes nothing.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, a number is out of
            range, the fraction takes no word, or no class is normal.
    """
    checks = _checks.ValueChecks()
    a = check_labels_and_texts(checks, embeddings, label_embeddings, dictionary_embeddings, normal)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    _checks.scalar("gap", gap, minimum=0.0)
    if not isinstance(fraction, float | int) or not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a Python number in (0, 1], got {fraction}")
    words = len(a.texts)
    taken = int(fraction * words)
    if taken < 1:
        raise ValueError(f"fraction: {fraction} of {words} words is less than one word")
    if state.normal.shape != (words,):
        raise ValueError(
            f"state: expected the activations of {words} words, got {list(state.normal.shape)}"
        )
    counted = check_counted(where, a.x)
    checks.run()
    return _update(state, *a, counted, gap, temperature, taken=taken, precision=precision)


def _logits(
    x: jax.Array, labels: jax.Array, texts: jax.Array, mask: jax.Array, t: Any, precision: Precision
) -> tuple[Float[jax.Array, " images"], Float[jax.Array, "images words"]]:
    """Returns log P, and the logits of all words."""
    positive = jax.nn.logsumexp(label_logits(x, labels, mask, t, precision), axis=1)
    return positive, label_logits(x, texts, jnp.ones(len(texts), bool), t, precision)


def _activation(
    positive: Float[jax.Array, " images"], words: Float[jax.Array, "images words"]
) -> Float[jax.Array, "images words"]:
    """Returns p_w(x)."""
    total = jnp.logaddexp(positive, jax.nn.logsumexp(words, axis=1).astype(positive.dtype))
    return jnp.exp(words - total[:, None].astype(words.dtype))


@compiled(static=("precision",), out=replicated)
def _init(
    labels: jax.Array, texts: jax.Array, mask: jax.Array, temperature: Any, *, precision: Precision
) -> TanlState:
    shares = _activation(*_logits(labels, labels, texts, mask, temperature, precision))
    own = jnp.sum(jnp.where(mask[:, None], shares, 0), axis=0)
    one = jnp.ones((), own.dtype)
    return TanlState(
        own,
        mask.sum().astype(own.dtype),
        jnp.full_like(own, 1 / max(1, len(own))),
        one,
        jnp.zeros((BINS, 3), own.dtype),
    )


def _chosen(state: TanlState, taken: int) -> jax.Array:
    """Returns the words with the largest activation, in descending order."""
    of_normal = state.normal / jnp.maximum(state.normal_images, 1)
    of_anomalous = state.anomalous / jnp.maximum(state.anomalous_images, 1)
    return lax.top_k(of_anomalous - of_normal, taken)[1]


def _aware(
    positive: Float[jax.Array, " images"], words: Float[jax.Array, "images taken"]
) -> Float[jax.Array, " images"]:
    """Returns S(x) for words in descending order of their activation."""
    largest = jnp.maximum(positive, words.max(axis=1).astype(positive.dtype))
    p = jnp.exp(positive - largest)[:, None]
    cumulated = jnp.cumsum(jnp.exp(words.astype(positive.dtype) - largest[:, None]), axis=1)
    return jnp.mean(p / (p + cumulated), axis=1)


def _threshold(histogram: Float[jax.Array, "bins 3"]) -> Float[jax.Array, ""]:
    """Returns the bound between two intervals with the least variance within the two groups; 0.5 without values.

    Of several equal bounds it is the one in the middle.
    """
    below = jnp.cumsum(histogram, axis=0)[:-1]
    above = histogram.sum(axis=0)[None, :] - below

    def squares(group: jax.Array) -> jax.Array:
        number = jnp.maximum(group[:, 0], 1)
        return group[:, 2] - group[:, 1] ** 2 / number

    both = (below[:, 0] > 0.5) & (above[:, 0] > 0.5)
    within = jnp.where(both, squares(below) + squares(above), jnp.inf)
    bounds = jnp.arange(1, len(histogram)).astype(histogram.dtype) / len(histogram)
    least = both & (within <= within.min() * (1 + 1e-5) + 1e-9)
    place = jnp.cumsum(least)
    middle = jnp.argmax(place > place[-1] // 2)
    return jnp.where(jnp.any(both), bounds[middle], 0.5)


@compiled(static=("taken", "precision"), out=lambda state, x, *_: (PartitionSpec(), rows(x)))
def _update(
    state: TanlState,
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    counted: jax.Array,
    gap: Any,
    temperature: Any,
    *,
    taken: int,
    precision: Precision,
) -> tuple[TanlState, jax.Array]:
    positive, words = _logits(x, labels, texts, mask, temperature, precision)
    dtype = state.normal.dtype
    confidence = _aware(positive, words[:, _chosen(state, taken)]).astype(dtype)
    interval = jnp.clip(jnp.floor(confidence * BINS), 0, BINS - 1)
    member = (interval[:, None] == jnp.arange(BINS, dtype=dtype)[None, :]) & counted[:, None]
    values = jnp.stack([jnp.ones_like(confidence), confidence, confidence**2], axis=1)
    values = jnp.where(counted[:, None], values, 0)
    added = jnp.matmul(member.astype(dtype).T, values, precision=lax.Precision.HIGHEST)
    histogram = state.histogram + added

    bound, gap = _threshold(histogram), jnp.asarray(gap).astype(dtype)
    is_normal = counted & (confidence > bound + (1 - bound) * gap)
    is_anomalous = counted & (confidence < bound - bound * gap)
    shares = _activation(positive, words).astype(dtype)

    def total(accepted: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums = jnp.sum(jnp.where(accepted[:, None], shares, 0), axis=0)
        return sums, accepted.sum().astype(dtype)

    more_normal, normal_images = total(is_normal)
    more_anomalous, anomalous_images = total(is_anomalous)
    state = TanlState(
        state.normal + more_normal,
        state.normal_images + normal_images,
        state.anomalous + more_anomalous,
        state.anomalous_images + anomalous_images,
        histogram,
    )
    score = 1 - _aware(positive, words[:, _chosen(state, taken)])
    return state, nan_unless_finite(score, x)


def _of_split(
    embeddings, label_embeddings, dictionary_embeddings, key, normal, counted
) -> jax.Array:
    """Computes the scores of a stream of the images in random order."""
    texts = label_embeddings, dictionary_embeddings
    order = jax.random.permutation(key, len(embeddings))

    def update(state: TanlState, x: jax.Array, in_test: jax.Array, *, where: jax.Array):
        return update_tanl(state, x, *texts, normal=normal, where=where & in_test)

    start = init_tanl(*texts, normal=normal)
    stream = embeddings[order], counted[order]
    scores = scan_stream(update, start, *stream, batch_size=BATCH)[1]
    return jnp.zeros_like(scores).at[order].set(scores)


def _too_few_words(facts: Facts) -> str | None:
    if int(FRACTION * facts.texts) >= 1:
        return None
    return (
        f"it uses {100 * FRACTION:g} % of the dictionary, which is less than one of "
        f"{facts.texts} texts"
    )


SCORE = Score(
    "tanl",
    _of_split,
    source="CVPR 2026, arXiv 2603.25250",
    order=42,
    one_split_at_a_time=True,
    transductive=True,
    settings={"fraction": FRACTION, "gap": GAP, "batch": BATCH},
    unavailable=_too_few_words,
)
