"""NegLabel: the softmax probability of words that are dissimilar to the normal labels.

    negatives = the share of a lexicon whose 0.95 quantile of cosines to the normal labels is lowest
    score(x)  = mean over groups G of N_G / (P + N_G),
                P = sum_c exp(s(x, t_c) / T),   N_G = sum_{w in G} exp(s(x, w) / T)

The sum over c is over the normal classes, T = 0.01, and the negatives are divided at random into 100 groups.

The published lexicon is all nouns and adjectives of WordNet, each in a prompt of its kind
(`bliss_jax.text.neglabel_lexicon`), and the share is taken of the nouns and of the adjectives apart (`parts`). With the
lexicon of `bliss_jax.text.conjugated_lexicon` the score is that of the conjugated semantic pool (CSP).

If normal images are known, the negatives can be chosen by them instead of by the labels: a word is then compared with
the mean embedding of each normal class (`moments`). This criterion is an option of this library.

Sources: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
ICLR 2024, sections 3.1 (NegMining) and 3.3 (grouping); Chen, Gao, Xu, "Conjugated Semantic Pool Improves OOD
Detection with Pre-trained Vision-Language Models", NeurIPS 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, replicated, rows
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.parts import nan_if_normal_is_empty
from bliss_jax.scores.record import Facts, Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits
from bliss_jax.scores.statistics import unit
from bliss_jax.scores.top_k import similarity

NEGATIVE_FRACTION = 0.15
"""Share of the lexicon that becomes negative labels, as in the paper."""

QUANTILE = 0.95
"""Default quantile of the cosines to the normal labels by which words are ordered."""

GROUPS = 100
"""Default number of groups of negative labels."""


def negative_labels(
    label_embeddings: Float[Array, "classes dim"],
    lexicon_embeddings: Float[Array, "words dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float | Float[Array, ""] = QUANTILE,
    parts: tuple[int, ...] | None = None,
    precision: Precision = HIGHEST,
) -> Int[jax.Array, " negatives"]:
    """Returns the words that are least similar to the normal labels, by a quantile of their cosines to the labels.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim], or another direction for each
            class, such as its mean image embedding.
        lexicon_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        normal: Mask of the normal classes [classes]; all by default.
        fraction: Share of the lexicon to take, in (0, 1]; static.
        quantile: The quantile over the normal labels by which words are ordered, in [0, 1].
        parts: Sizes of consecutive parts of the lexicon, of each of which the share is taken; static. By default the
            lexicon is one part.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Positions of the words in the lexicon [negatives], int32, part by part, and least similar first in each part.

    Raises:
        ValueError: Shapes do not fit, embeddings are not finite or not of unit norm, fraction or quantile is out
            of range, the fraction takes no word, the parts do not add up to the lexicon, or no class is normal.
    """
    checks = _checks.ValueChecks()
    labels = checks.embeddings("label_embeddings", label_embeddings)
    lexicon = checks.embeddings("lexicon_embeddings", lexicon_embeddings)
    same_dim(label_embeddings=labels, lexicon_embeddings=lexicon)
    mask = checks.normal_mask(normal, len(labels))
    taken = _negatives_of_parts(fraction, quantile, len(lexicon), parts)
    checks.run()
    return _negative_labels(labels, lexicon, mask, quantile, taken=taken, precision=precision)


def _negatives_of_parts(
    fraction: Any, quantile: Any, words: int, parts: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...]:
    """Returns the number of words and the number of negatives of each part of the lexicon."""
    _checks.scalar("quantile", quantile, minimum=0.0)
    if not isinstance(fraction, float | int) or not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a Python number in (0, 1], got {fraction}")
    if _checks.is_concrete(quantile) and float(quantile) > 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {float(quantile):g}")
    sizes = (words,) if parts is None else tuple(parts)
    if sum(sizes) != words:
        raise ValueError(f"parts: expected sizes that add up to {words} words, got {sizes}")
    taken = tuple((size, int(fraction * size)) for size in sizes)
    if sum(number for _, number in taken) < 1:
        raise ValueError(f"fraction: {fraction} of {words} words is less than one word")
    return taken


def _least_similar(
    labels: jax.Array,
    lexicon: jax.Array,
    mask: jax.Array,
    quantile: Any,
    *,
    taken: tuple[tuple[int, int], ...],
    precision: Precision,
) -> Int[jax.Array, " negatives"]:
    cosines = similarity(lexicon, labels, precision=precision)
    order = _quantile_where(cosines, mask, quantile)
    chosen, first = [], 0
    for size, number in taken:
        of_part = jnp.argsort(order[first : first + size], stable=True)[:number]
        chosen.append(first + of_part)
        first += size
    return jnp.concatenate(chosen)


_negative_labels = compiled(static=("taken", "precision"), out=replicated)(_least_similar)


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
    moments: ClassMoments | None = None,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float | Float[Array, ""] = QUANTILE,
    parts: tuple[int, ...] | None = None,
    groups: int = GROUPS,
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
        moments: Fitted on normal images. If they are given, words are compared with the direction of the mean
            embedding of each normal class instead of with its label.
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        fraction: Share of the lexicon taken as negatives; static.
        quantile: Quantile of the cosines by which words are ordered, see `negative_labels`.
        parts: Sizes of the parts of the lexicon, see `negative_labels`; static.
        groups: Number of groups, at most one per negative; static. The sizes of groups differ by at most one, and
            every negative is used (the paper's code drops the remainder).
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images] in [0, 1], higher = more anomalous; NaN under tracing for an image that is not finite.

    Raises:
        ValueError: One of the reasons listed in `negative_labels`, the temperature is not one positive number,
            `groups` is below 1, or no image of a normal class was fitted.
    """
    _checks.static_integer("groups", groups, 1)
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    lexicon = checks.embeddings("lexicon_embeddings", lexicon_embeddings)
    same_dim(embeddings=x, label_embeddings=labels, lexicon_embeddings=lexicon)
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    count = None
    if moments is not None:
        moments = check_moments(checks, moments, labels=labels, embeddings=x)
        count = moments.count
    mask = checks.normal_mask(normal, len(labels), count)
    taken = _negatives_of_parts(fraction, quantile, len(lexicon), parts)
    checks.run()
    return _neglabel(
        x, labels, lexicon, key, moments, mask, temperature, quantile,
        taken=taken, groups=groups, precision=precision,
    )  # fmt: skip


@compiled(static=("taken", "groups", "precision"), out=lambda x, *_: rows(x))
def _neglabel(
    x: jax.Array,
    labels: jax.Array,
    lexicon: jax.Array,
    key: jax.Array,
    moments: ClassMoments | None,
    mask: jax.Array,
    temperature: Any,
    quantile: Any,
    *,
    taken: tuple[tuple[int, int], ...],
    groups: int,
    precision: Precision,
) -> jax.Array:
    chosen = _shuffled_negatives(labels, lexicon, key, moments, mask, quantile, taken, precision)
    score = _mass_of_negatives(
        x, labels, lexicon[chosen], mask, temperature, groups=groups, precision=precision
    )
    if moments is not None:
        score = nan_if_normal_is_empty(score, mask, moments.count)
    return nan_unless_finite(score, x)


def _shuffled_negatives(
    labels: jax.Array,
    lexicon: jax.Array,
    key: jax.Array,
    moments: ClassMoments | None,
    mask: jax.Array,
    quantile: Any,
    taken: tuple[tuple[int, int], ...],
    precision: Precision,
) -> Int[jax.Array, " negatives"]:
    """Returns the positions of the negative labels in the lexicon, in the random order that makes the groups."""
    anchors = labels if moments is None else unit(moments.mean)
    chosen = _least_similar(anchors, lexicon, mask, quantile, taken=taken, precision=precision)
    return jax.random.permutation(key, chosen)


def _mass_of_negatives(
    x: jax.Array,
    labels: jax.Array,
    words: jax.Array,
    mask: jax.Array,
    temperature: Any,
    *,
    groups: int,
    precision: Precision,
) -> Float[jax.Array, " images"]:
    """Computes the mean of N_G / (P + N_G) over the groups of the negative labels `words`."""
    size = len(words)
    groups = min(groups, size)
    of_labels = label_logits(x, labels, mask, temperature, precision)
    negatives = label_logits(x, words, jnp.ones(size, bool), temperature, precision)

    # Negative i belongs to group i mod groups. Padding fills the last round.
    short = -size % groups
    negatives = jnp.pad(negatives, ((0, 0), (0, short)), constant_values=-jnp.inf)
    negatives = negatives.reshape(x.shape[0], (size + short) // groups, groups)
    against = jax.nn.logsumexp(negatives, axis=1)
    mass = jax.nn.logsumexp(of_labels, axis=1).astype(against.dtype)
    return jnp.mean(jax.nn.sigmoid(against - mass[:, None]), axis=1)


def _of_split(embeddings, label_embeddings, dictionary_embeddings, key, normal) -> jax.Array:
    return neglabel_score(embeddings, label_embeddings, dictionary_embeddings, key, normal=normal)


def _of_split_by_images(
    embeddings, label_embeddings, dictionary_embeddings, key, moments, normal
) -> jax.Array:
    return neglabel_score(
        embeddings, label_embeddings, dictionary_embeddings, key, moments=moments, normal=normal
    )


class _Negatives(NamedTuple):
    """Texts of a detector; a pytree."""

    labels: Float[jax.Array, "*mapped classes dim"]
    words: Float[jax.Array, "*mapped negatives dim"]
    """Negative labels, in the random order that makes the groups."""
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes."""


def _prepare(label_embeddings, dictionary_embeddings, key, normal) -> _Negatives:
    return _prepare_by_images(label_embeddings, dictionary_embeddings, key, None, normal)


def _prepare_by_images(label_embeddings, dictionary_embeddings, key, moments, normal) -> _Negatives:
    taken = _negatives_of_parts(NEGATIVE_FRACTION, QUANTILE, len(dictionary_embeddings), None)
    chosen = _shuffled_negatives(
        label_embeddings, dictionary_embeddings, key, moments, normal, QUANTILE, taken, HIGHEST
    )
    return _Negatives(label_embeddings, dictionary_embeddings[chosen], normal)


def _from_prepared(embeddings, prepared) -> jax.Array:
    labels, words, normal = prepared
    score = _mass_of_negatives(
        embeddings, labels, words, normal, CLIP_TEMPERATURE, groups=GROUPS, precision=HIGHEST
    )
    return nan_unless_finite(score, embeddings)


def too_few_texts(facts: Facts) -> str | None:
    """Returns the reason why there are no negative labels, or None."""
    if int(NEGATIVE_FRACTION * facts.texts) >= 1:
        return None
    return (
        f"it uses {100 * NEGATIVE_FRACTION:g} % of the dictionary, which is less than one of "
        f"{facts.texts} texts"
    )


SCORES = (
    Score(
        "neglabel",
        _of_split,
        source="Jiang et al., ICLR 2024",
        default=True,
        order=12,
        one_split_at_a_time=True,
        unavailable=too_few_texts,
        prepare=_prepare,
        from_prepared=_from_prepared,
    ),
    Score(
        "neglabel_images",
        _of_split_by_images,
        source="Jiang et al., ICLR 2024",
        order=24,
        one_split_at_a_time=True,
        settings={"negatives": "chosen by the normal images"},
        unavailable=too_few_texts,
        prepare=_prepare_by_images,
        from_prepared=_from_prepared,
    ),
)
