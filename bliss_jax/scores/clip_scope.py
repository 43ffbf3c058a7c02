"""CLIPScope: the softmax confidence, corrected by how often each class was predicted so far.

    q(x)     = softmax over the normal classes of s(x, t_c) / T,    c(x) = argmax_c q_c(x)
    m(x)     = sum_c exp(s(x, t_c) / T) / (sum_c exp(s(x, t_c) / T) + sum over the dictionary of exp(s(x, d) / T))
    h_c      = (1 + number of earlier images with prediction c) / (their sum over the normal classes)
    score(x) = -q_{c(x)}(x) m(x) / h_{c(x)}

The histogram h is the prior of Bayes' rule: a class that is predicted often, also for anomalies, is weaker evidence of
a normal image. T = 0.01. Higher is more anomalous. With one normal class h is 1.

Source: Fu, Patel, Krishnamurthy, Khorrami, "CLIPScope: Enhancing Zero-Shot OOD Detection with Bayesian Scoring", WACV
2025. The publication mines nouns near to and far from the labels as negative texts; here the dictionary takes their
place.

Scores depend on the earlier images of the stream, one by one; see `bliss_jax.scores.streams`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import (
    CLIP_TEMPERATURE,
    LabelAndTextArguments,
    check_labels_and_texts,
    label_logits,
)
from bliss_jax.scores.streams import check_counted
from bliss_jax.scores.text_mass import log_mass
from bliss_jax.scores.top_k import check_chunk_size


def init_clip_scope(num_classes: int) -> Float[jax.Array, " classes"]:
    """Returns the histogram before the first image: 1 for each class.

    Raises:
        ValueError: `num_classes` is not a positive integer.
    """
    _checks.static_integer("num_classes", num_classes, 1)
    return jnp.ones(num_classes)


def update_clip_scope(
    histogram: Float[Array, " classes"],
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    where: Bool[Array, " images"] | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> tuple[Float[jax.Array, " classes"], Float[jax.Array, " images"]]:
    """Scores a batch image by image, each with the predictions of all earlier images, and counts its predictions.

    The order of the images matters, and the batches into which a stream is cut do not.

    Args:
        histogram: State [classes], from `init_clip_scope` or an earlier update.
        embeddings: Unit-norm image embeddings [images, dim], in the order of the stream.
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the negative texts [texts, dim].
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        where: Images that count [images]; False marks padding. All by default.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The histogram, and the scores [images], at least float32, higher = more anomalous. Under tracing, an image that
        is not finite has the score NaN and is not counted.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the temperature is not
            one positive number, or no class is normal.
    """
    a, counted = _check(
        histogram, embeddings, label_embeddings, dictionary_embeddings, normal, temperature, where
    )
    return _update(
        histogram, *a, counted, temperature,
        chunk_size=check_chunk_size(chunk_size), precision=precision,
    )  # fmt: skip


def clip_scope_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    histogram: Float[Array, " classes"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -q_{c(x)}(x) m(x) / h_{c(x)} with a given histogram, e.g. that of the whole batch.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the negative texts [texts, dim].
        histogram: Number of predictions of each class [classes], from `update_clip_scope`.
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. Under tracing, an image that is not finite has the
        score NaN.

    Raises:
        ValueError: One of the reasons listed in `update_clip_scope`.
    """
    a, _ = _check(
        histogram, embeddings, label_embeddings, dictionary_embeddings, normal, temperature, None
    )
    return _with_histogram(
        *a, histogram, temperature, chunk_size=check_chunk_size(chunk_size), precision=precision
    )


def _check(
    histogram: Any,
    embeddings: Any,
    labels: Any,
    texts: Any,
    normal: Any,
    temperature: Any,
    where: Any,
) -> tuple[LabelAndTextArguments, jax.Array]:
    checks = _checks.ValueChecks()
    a = check_labels_and_texts(checks, embeddings, labels, texts, normal)
    if jnp.shape(histogram) != (len(a.labels),):
        raise ValueError(
            f"histogram: expected a [{len(a.labels)}] array, one number per class, got "
            f"{list(jnp.shape(histogram))}"
        )
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    counted = check_counted(where, a.x)
    checks.run()
    return a, counted


def _evidence(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    chunk_size: int,
    precision: Precision,
) -> tuple[Float[jax.Array, " images"], Float[jax.Array, "images classes"]]:
    """Returns q_{c(x)}(x) m(x), and the prediction c(x) as 0 and 1."""
    logits = label_logits(x, labels, mask, temperature, precision)
    negatives = log_mass(x, texts, temperature, chunk_size=chunk_size, precision=precision)
    total = jnp.logaddexp(jax.nn.logsumexp(logits, axis=1), negatives.astype(logits.dtype))
    # q m is exp(l_max) / (sum_c exp(l_c) + negatives): the sum over the labels cancels.
    evidence = jnp.exp(logits.max(axis=1) - total)
    return evidence, jax.nn.one_hot(jnp.argmax(logits, axis=1), len(labels), dtype=logits.dtype)


@compiled(
    static=("chunk_size", "precision"), out=lambda histogram, x, *_: (PartitionSpec(), rows(x))
)
def _update(
    histogram: jax.Array,
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    counted: jax.Array,
    temperature: Any,
    **static: Any,
) -> tuple[jax.Array, jax.Array]:
    evidence, predicted = _evidence(x, labels, texts, mask, temperature, **static)
    added = jnp.where(counted[:, None], predicted, 0)
    start = jnp.where(mask, jnp.asarray(histogram).astype(added.dtype), 0)
    before = start[None, :] + jnp.cumsum(added, axis=0) - added
    prior = jnp.sum(predicted * before, axis=1) / before.sum(axis=1)
    after = jnp.asarray(histogram) + added.sum(axis=0).astype(histogram.dtype)
    return after, nan_unless_finite(-evidence / prior, x)


@compiled(static=("chunk_size", "precision"), out=lambda x, *_: rows(x))
def _with_histogram(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    histogram: jax.Array,
    temperature: Any,
    **static: Any,
) -> jax.Array:
    evidence, predicted = _evidence(x, labels, texts, mask, temperature, **static)
    counts = jnp.where(mask, jnp.asarray(histogram).astype(evidence.dtype), 0)
    prior = jnp.sum(predicted * counts[None, :], axis=1) / counts.sum()
    return nan_unless_finite(-evidence / prior, x)


def _of_split(
    embeddings, label_embeddings, dictionary_embeddings, normal, counted, num_classes
) -> jax.Array:
    texts = label_embeddings, dictionary_embeddings
    start = init_clip_scope(num_classes)
    histogram, _ = update_clip_scope(start, embeddings, *texts, normal=normal, where=counted)
    return clip_scope_score(embeddings, *texts, histogram, normal=normal)


SCORE = Score(
    "clip_scope",
    _of_split,
    source="Fu et al., WACV 2025",
    order=41,
    one_split_at_a_time=True,
    transductive=True,
)
