"""Both parts of BLISS for every class, from a prepared table. `bliss.py` contains their equations."""

from typing import Any

import jax
from jaxtyping import Float

from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.parts import nan_if_empty
from bliss_jax.scores.prepared import PreparedBliss, check_prepared, prepared_parts
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.top_k import check_chunk_size


def class_scores_prepared(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    *,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> tuple[Float[jax.Array, "images classes"], Float[jax.Array, "images classes"]]:
    """Computes internal(x, c) and external(x, c) of every class c from the table of `prepare_bliss`.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: Table from `prepare_bliss`. Its dictionary must not be sharded.
        k: Texts per image, 1 <= k <= texts; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Both parts, at least float32. A class without fitted images has NaN. Under tracing, an image that is not finite
        has NaN.

    Raises:
        ValueError: One of the reasons listed in `bliss_score_prepared`.
    """
    a = check_prepared(embeddings, prepared, k, weight=1.0, normal=None)
    return _class_scores(
        a.x, a.prepared, k=k, chunk_size=check_chunk_size(chunk_size), precision=precision
    )


@compiled(static=("k", "chunk_size", "precision"), out=lambda x, *_: (rows(x), rows(x)))
def _class_scores(
    x: jax.Array, prepared: PreparedBliss, *, k: int, **static: Any
) -> tuple[jax.Array, jax.Array]:
    parts = prepared_parts(x, prepared, None, None, k=k, places=k, dictionary_axis=None, **static)
    internal, external = (
        nan_unless_finite(nan_if_empty(part, prepared.count), x)
        for part in (parts.internal, parts.external)
    )
    return internal, external
