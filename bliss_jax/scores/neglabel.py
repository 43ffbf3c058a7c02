"""NegLabel: the softmax probability of words that are dissimilar to the normal labels.

    negatives = the share of a lexicon whose 0.95 quantile of cosines to the normal labels is lowest
    score(x)  = mean over groups G of N_G / (P + N_G),
                P = sum_c exp(s(x, t_c) / T),   N_G = sum_{w in G} exp(s(x, w) / T)

The sum over c is over the normal classes, T = 0.01, and the negatives are divided at random into 100 groups.

Source: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
ICLR 2024, sections 3.1 (NegMining) and 3.3 (grouping).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, replicated, rows
from bliss_jax.scores.record import Facts, Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits
from bliss_jax.scores.top_k import similarity

NEGATIVE_FRACTION = 0.15
"""Share of the lexicon that becomes negative labels, as in the paper."""


def negative_labels(
    label_embeddings: Float[Array, "classes dim"],
    lexicon_embeddings: Float[Array, "words dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float | Float[Array, ""] = 0.95,
    precision: Precision = HIGHEST,
) -> Int[jax.Array, " negatives"]:
    """Returns the words that are least similar to the normal labels, by a quantile of their cosines to the labels.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        lexicon_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        normal: Mask of the normal classes [classes]; all by default.
        fraction: Share of the lexicon to take, in (0, 1]; static.
        quantile: The quantile over the normal labels by which words are ordered, in [0, 1].
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Positions of the words in the lexicon [negatives], int32, least similar first.

    Raises:
        ValueError: Shapes do not fit, embeddings are not finite or not of unit norm, fraction or quantile is out
            of range, the fraction takes no word, or no class is normal.
    """
    checks = _checks.ValueChecks()
    labels = checks.embeddings("label_embeddings", label_embeddings)
    lexicon = checks.embeddings("lexicon_embeddings", lexicon_embeddings)
    same_dim(label_embeddings=labels, lexicon_embeddings=lexicon)
    mask = checks.normal_mask(normal, len(labels))
    size = _number_of_negatives(fraction, quantile, len(lexicon))
    checks.run()
    return _negative_labels(labels, lexicon, mask, quantile, size=size, precision=precision)


def _number_of_negatives(fraction: Any, quantile: Any, words: int) -> int:
    _checks.scalar("quantile", quantile, minimum=0.0)
    if not isinstance(fraction, float | int) or not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a Python number in (0, 1], got {fraction}")
    if _checks.is_concrete(quantile) and float(quantile) > 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {float(quantile):g}")
    size = int(fraction * words)
    if size < 1:
        raise ValueError(f"fraction: {fraction} of {words} words is less than one word")
    return size


def _least_similar(
    labels: jax.Array,
    lexicon: jax.Array,
    mask: jax.Array,
    quantile: Any,
    *,
    size: int,
    precision: Precision,
) -> Int[jax.Array, " negatives"]:
    cosines = similarity(lexicon, labels, precision=precision)
    return jnp.argsort(_quantile_where(cosines, mask, quantile), stable=True)[:size]


_negative_labels = compiled(static=("size", "precision"), out=replicated)(_least_similar)


def _quantile_where(
    values: Float[jax.Array, "rows columns"], where: Bool[jax.Array, " columns"], quantile: Any
) -> Float[jax.Array, " rows"]:
    """Returns the linearly interpolated quantile of each row over the columns in `where`, at least one.

    The sort does not depend on the mask of columns, so `vmap` over masks sorts once. `jnp.nanquantile` would sort
    for each mask.
    """
    order = jnp.argsort(values, axis=1)
    ascending = jnp.take_along_axis(values, order, axis=1)
    counted = where[order]
    rank = jnp.cumsum(counted, axis=1) - 1
    position = jnp.asarray(quantile).astype(values.dtype) * (where.sum() - 1).astype(values.dtype)
    lower, upper = jnp.floor(position), jnp.ceil(position)

    def at(place):
        here = counted & (rank == place.astype(rank.dtype))
        return jnp.sum(jnp.where(here, ascending, 0), axis=1)

    share = position - lower
    return (1 - share) * at(lower) + share * at(upper)


def neglabel_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    lexicon_embeddings: Float[Array, "words dim"],
    key: PRNGKeyArray | Key[jax.Array, ""],
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float | Float[Array, ""] = 0.95,
    groups: int = 100,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes the mean of N_G / (P + N_G) over groups G of negative labels.

    P is the sum of exp(s(x, t_c) / T) over the normal classes c, and N_G the sum of exp(s(x, w) / T) over the
    negative labels w in G. Memory grows with images x negatives.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        lexicon_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        key: Random key that divides the negatives into groups.
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        fraction: Share of the lexicon taken as negatives; static.
        quantile: Quantile of the cosines by which words are ordered, see `negative_labels`.
        groups: Number of groups, at most one per negative; static. The sizes of groups differ by at most one, and
            every negative is used (the paper's code drops the remainder).
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images] in [0, 1], higher = more anomalous; NaN under tracing for an image that is not finite.

    Raises:
        ValueError: One of the reasons listed in `negative_labels`, the temperature is not one positive number, or
            `groups` is below 1.
    """
    _checks.static_integer("groups", groups, 1)
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    lexicon = checks.embeddings("lexicon_embeddings", lexicon_embeddings)
    same_dim(embeddings=x, label_embeddings=labels, lexicon_embeddings=lexicon)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    mask = checks.normal_mask(normal, len(labels))
    size = _number_of_negatives(fraction, quantile, len(lexicon))
    checks.run()
    return _neglabel(
        x, labels, lexicon, key, mask, temperature, quantile,
        size=size, groups=min(groups, size), precision=precision,
    )  # fmt: skip


@compiled(static=("size", "groups", "precision"), out=lambda x, *_: rows(x))
def _neglabel(
    x: jax.Array,
    labels: jax.Array,
    lexicon: jax.Array,
    key: jax.Array,
    mask: jax.Array,
    temperature: Any,
    quantile: Any,
    *,
    size: int,
    groups: int,
    precision: Precision,
) -> jax.Array:
    chosen = _least_similar(labels, lexicon, mask, quantile, size=size, precision=precision)
    chosen = jax.random.permutation(key, chosen)
    of_labels = label_logits(x, labels, mask, temperature, precision)
    negatives = label_logits(x, lexicon[chosen], jnp.ones(size, bool), temperature, precision)

    # Negative i belongs to group i mod groups. Padding fills the last round.
    short = -size % groups
    negatives = jnp.pad(negatives, ((0, 0), (0, short)), constant_values=-jnp.inf)
    negatives = negatives.reshape(x.shape[0], (size + short) // groups, groups)
    against = jax.nn.logsumexp(negatives, axis=1)
    mass = jax.nn.logsumexp(of_labels, axis=1).astype(against.dtype)
    return nan_unless_finite(jnp.mean(jax.nn.sigmoid(against - mass[:, None]), axis=1), x)


def _of_split(embeddings, label_embeddings, dictionary_embeddings, key, normal) -> jax.Array:
    return neglabel_score(embeddings, label_embeddings, dictionary_embeddings, key, normal=normal)


def _too_few_texts(facts: Facts) -> str | None:
    if int(NEGATIVE_FRACTION * facts.texts) >= 1:
        return None
    return (
        f"it uses {100 * NEGATIVE_FRACTION:g} % of the dictionary, which is less than one of "
        f"{facts.texts} texts"
    )


SCORE = Score(
    "neglabel",
    _of_split,
    source="Jiang et al., ICLR 2024",
    default=True,
    order=12,
    one_split_at_a_time=True,
    unavailable=_too_few_texts,
)
