"""NegLabel: the softmax mass that the normal labels lose to far-away words.

    negatives = the share of a lexicon whose 0.95 quantile of cosines to the normal labels is lowest
    score(x)  = mean over groups G of N_G / (P + N_G),
                P = sum_c exp(s(x, t_c) / T),   N_G = sum_{w in G} exp(s(x, w) / T)

with c over the normal classes, T = 0.01, and the negatives dealt at random into 100 groups.

Source: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
ICLR 2024, sections 3.1 (NegMining) and 3.3 (grouping).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits
from bliss_jax.scores.top_k import similarity

NEGATIVE_FRACTION = 0.15
"""Share of the lexicon that becomes negative labels, as in the paper."""


def negative_labels(
    label_embeddings: Float[Array, "classes dim"],
    lexicon_embeddings: Float[Array, "words dim"],
    normal: Bool[Array, " classes"] | None = None,
    *,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float = 0.95,
) -> Int[jax.Array, " negatives"]:
    """The words least similar to the normal labels, by the quantile of their cosines to them.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        lexicon_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        normal: Mask of the normal classes [classes]; all by default.
        fraction: Share of the lexicon to take, in (0, 1]; static.
        quantile: Which quantile over the normal labels stands for a word, in [0, 1].

    Returns:
        Indices of the words [negatives], least similar first.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not finite or not of unit norm, a
            fraction or quantile out of range or one that takes no word, no normal class.
    """
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    lexicon = _checks.embeddings_as_float("lexicon_embeddings", lexicon_embeddings)
    _checks.same_dim(label_embeddings=labels, lexicon_embeddings=lexicon)
    mask = _checks.normal_mask(normal, len(labels))
    if not 0 < fraction <= 1 or not 0 <= quantile <= 1:
        raise ValueError(
            f"expected fraction in (0, 1] and quantile in [0, 1], got {fraction} and {quantile}"
        )
    size = int(fraction * len(lexicon))
    if size < 1:
        raise ValueError(f"fraction: {fraction} of {len(lexicon)} words is less than one word")
    distance = _quantile_where(similarity(lexicon, labels), mask, quantile)
    return jnp.argsort(distance, stable=True)[:size]


def _quantile_where(
    values: Float[jax.Array, "rows columns"], where: Bool[jax.Array, " columns"], quantile: float
) -> Float[jax.Array, " rows"]:
    """The linearly interpolated quantile of each row over some of its columns, at least one.

    What is sorted does not depend on the columns: over many masks a compiler sorts once, where
    `jnp.nanquantile` would sort for each.
    """
    order = jnp.argsort(values, axis=1)
    ascending = jnp.take_along_axis(values, order, axis=1)
    counted = where[order]
    rank = jnp.cumsum(counted, axis=1) - 1
    position = quantile * (where.sum() - 1).astype(values.dtype)
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
    normal: Bool[Array, " classes"] | None = None,
    *,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    fraction: float = NEGATIVE_FRACTION,
    quantile: float = 0.95,
    groups: int = 100,
) -> Float[jax.Array, " images"]:
    """1 - softmax mass on the normal labels against groups of negative labels, averaged over groups.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        lexicon_embeddings: Unit-norm embeddings of the candidate words [words, dim].
        key: Deals the negatives into groups.
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        fraction: Share of the lexicon taken as negatives; static.
        quantile: See `negative_labels`.
        groups: Number of groups, of sizes that differ by at most one (the paper's code drops the
            remainder; here every negative is used); static. At most one group per negative.

    Returns:
        Scores [images] in [0, 1], higher = more anomalous.

    Raises:
        ValueError: as `negative_labels`, a temperature that is not positive, fewer than one group.
    """
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    labels = label_logits(embeddings, label_embeddings, temperature, normal)
    chosen = negative_labels(
        label_embeddings, lexicon_embeddings, normal, fraction=fraction, quantile=quantile
    )
    chosen = jax.random.permutation(key, chosen)
    groups = min(groups, len(chosen))
    lexicon = jnp.asarray(lexicon_embeddings)[chosen]
    negatives = label_logits(embeddings, lexicon, temperature, None)

    # Dealt like cards: negative i goes to group i mod groups, and the last round may be short.
    short = -len(chosen) % groups
    negatives = jnp.pad(negatives, ((0, 0), (0, short)), constant_values=-jnp.inf)
    negatives = negatives.reshape(len(negatives), -1, groups)
    against = jax.nn.logsumexp(negatives, axis=1)
    mass = jax.nn.logsumexp(labels, axis=1)
    return jnp.mean(jax.nn.sigmoid(against - mass[:, None]), axis=1)
