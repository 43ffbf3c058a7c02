"""Batches of token rows, without padding that the text tower ignores.

Prompts have about ten tokens, the context has 77, and prompts of one template share a prefix. Under the
causal mask of CLIP's text tower two optimisations leave embeddings unchanged up to rounding:

- tokens after a row's end of text are dropped, and rows of similar length share a batch;
- the prefix that all rows share is encoded once.

SigLIP's text tower attends to all positions including the padding, so its rows keep the whole context.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

# A separate shape is not worth its compilation for a shorter prefix or for fewer rows.
_MIN_PREFIX = 4
_MIN_ROWS_WITH_PREFIX = 17
_MIN_BATCH = 16


class TextBatch(NamedTuple):
    """Rows that are encoded together."""

    rows: Int[np.ndarray, " rows"]
    """Indices of the rows among all rows. A batch may be longer; its further rows are padding."""
    tokens: Int32[np.ndarray, "batch length"]
    """Tokens after the prefix, in as many columns as the longest row needs, rounded up."""


def shared_prefix(
    tokens: Int32[np.ndarray, "texts context"], lengths: Int[np.ndarray, " texts"]
) -> int:
    """Returns the length of the prefix that all rows share.

    The prefix excludes the last token of every row. The result is 0 if the prefix or the number of rows is
    too small to be worth a shape of its own.
    """
    if len(tokens) < _MIN_ROWS_WITH_PREFIX:
        return 0
    same = (tokens == tokens[0]).all(axis=0)[: int(lengths.min()) - 1]
    prefix = int(np.argmin(same)) if not same.all() else len(same)
    return prefix if prefix >= _MIN_PREFIX else 0


def text_batches(
    tokens: Int32[np.ndarray, "texts context"],
    lengths: Int[np.ndarray, " texts"],
    prefix: int,
    batch_size: int,
) -> Iterator[TextBatch]:
    """Splits rows into batches, short rows first.

    The batches have few distinct shapes, each of which is compiled once: all batches have `batch_size`
    rows except the last, whose size is a power of two, and `_rounded` rounds the lengths.

    Args:
        tokens: Rows of token ids.
        lengths: Number of tokens of each row that its embedding depends on, counted from its beginning.
        prefix: Number of columns to drop at the beginning. It is smaller than every length.
        batch_size: Rows per batch.
    """
    context = tokens.shape[1]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        end = min(prefix + _rounded(int(lengths[rows[-1]]) - prefix), context)
        size = min(batch_size, max(_MIN_BATCH, 1 << (len(rows) - 1).bit_length()))
        # The padding repeats a row, so it contains valid tokens.
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        yield TextBatch(rows, tokens[padded, prefix:end])


def _rounded(length: int) -> int:
    """Rounds a length up to a multiple of 4 (up to 16), of 8 (up to 32) or of 16."""
    step = 4 if length <= 16 else 8 if length <= 32 else 16
    return -(-length // step) * step
