"""AdaNeg: NegLabel with proxies that adapt to the test images.

    nl(x)     = N / (P + N),    P = sum_c exp(s(x, t_c) / T),    N = sum over the negative labels w of exp(s(x, w) / T)
    ada(x)    = the same with the proxies P_s(x) of `proxies.py` in place of the labels and of the negative labels
    score(x)  = nl(x) + lambda ada(x)

An image is stored as normal if 1 - nl(x) > b + (1 - b) g, and as anomalous if 1 - nl(x) < b - b g. The anchors of the
slots are the embeddings of the labels and of the negative labels. Higher is more anomalous.

Source: Zhang, Zhang, "AdaNeg: Adaptive Negative Proxy Guided OOD Detection with Vision-Language Models", NeurIPS 2024,
with L = 10, beta = 5.5, b = 0.5, g = 0.5, lambda = 0.1 and T = 0.01. The negative labels are one group (five in the
source), and a slot holds exactly L images beside its anchor.

Scores depend on the other images; see `bliss_jax.scores.streams`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.neglabel import negative_labels, too_few_texts
from bliss_jax.scores.proxies import BETA, ProxyMemory, check_batch, evidence, init_proxies, store
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.softmax import CLIP_TEMPERATURE, label_logits

BOUND, GAP, WEIGHT = 0.5, 0.5, 0.1
"""b, g and lambda of the source."""


def update_adaneg(
    memory: ProxyMemory,
    embeddings: Float[Array, "images dim"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    weight: float | Float[Array, ""] = WEIGHT,
    bound: float | Float[Array, ""] = BOUND,
    gap: float | Float[Array, ""] = GAP,
    beta: float | Float[Array, ""] | None = BETA,
    temperature: float | Float[Array, ""] = CLIP_TEMPERATURE,
    where: Bool[Array, " images"] | None = None,
    precision: Precision = HIGHEST,
) -> tuple[ProxyMemory, Float[jax.Array, " images"]]:
    """Stores the confident images of a batch, and computes nl(x) + lambda ada(x).

    Args:
        memory: State, from `init_proxies(labels, negatives)` with the embeddings of the prompts and of the negative
            labels (`negative_labels`), or from an earlier update.
        embeddings: Unit-norm image embeddings [images, dim].
        normal: Mask of the normal classes [classes]; all by default.
        weight: lambda.
        bound: b, in [0, 1].
        gap: g, in [0, 1].
        beta: Sharpness of the attention in a slot, >= 0. None for the mean of the slot.
        temperature: T > 0; may be traced.
        where: Images that count [images]; False marks padding, which is never stored. All by default.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The memory, and the scores [images], at least float32, higher = more anomalous, in [0, 1 + lambda]. Under
        tracing, an image that is not finite has the score NaN and is never stored.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, a number is out of
            range, or no class is normal.
    """
    _checks.scalar("weight", weight)
    for name, value in (("bound", bound), ("gap", gap)):
        _checks.scalar(name, value, minimum=0.0)
    x, mask, counted = check_batch(memory, embeddings, normal, beta, temperature, where)
    return _update(
        memory, x, mask, counted, weight, bound, gap, beta, temperature, precision=precision
    )


@compiled(static=("precision",), out=lambda memory, x, *_: (PartitionSpec(), rows(x)))
def _update(
    memory: ProxyMemory,
    x: jax.Array,
    mask: jax.Array,
    counted: jax.Array,
    weight: Any,
    bound: Any,
    gap: Any,
    beta: Any,
    temperature: Any,
    *,
    precision: Precision,
) -> tuple[ProxyMemory, jax.Array]:
    anchors = memory.negatives.anchors
    every = jnp.ones(len(anchors), bool)
    of_labels = label_logits(x, memory.classes.anchors, mask, temperature, precision)
    of_negatives = label_logits(x, anchors, every, temperature, precision)
    logit = jax.nn.logsumexp(of_negatives, axis=1) - jax.nn.logsumexp(of_labels, axis=1)
    static = jax.nn.sigmoid(logit)
    bound, gap, weight = (jnp.asarray(v).astype(static.dtype) for v in (bound, gap, weight))
    memory = store(
        memory, x,
        counted & (1 - static > bound + (1 - bound) * gap),
        counted & (1 - static < bound - bound * gap),
        mask, temperature, precision=precision,
    )  # fmt: skip
    positive, negative = evidence(memory, x, mask, every, beta, temperature, precision=precision)
    adapted = jax.nn.sigmoid(negative - positive).astype(static.dtype)
    return memory, nan_unless_finite(static + weight * adapted, x)


def _of_split(embeddings, label_embeddings, dictionary_embeddings, normal, counted) -> jax.Array:
    chosen = negative_labels(label_embeddings, dictionary_embeddings, normal=normal)
    memory = init_proxies(label_embeddings, dictionary_embeddings[chosen])
    return update_adaneg(memory, embeddings, normal=normal, where=counted)[1]


SCORE = Score(
    "adaneg",
    _of_split,
    source="Zhang, Zhang, NeurIPS 2024",
    order=40,
    one_split_at_a_time=True,
    transductive=True,
    unavailable=too_few_texts,
)
