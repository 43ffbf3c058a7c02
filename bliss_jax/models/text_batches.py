"""Rows of tokens cut to what a text tower has to see, in batches of few shapes.

Prompts are about ten tokens long and the context is 77, and prompts made of one template begin alike.
Where no position sees a later one, as in CLIP's text tower, two things change no embedding but for
rounding:

- what follows a row's end of text is left out, and rows of similar length share a batch;
- what all rows begin with goes through the tower once, not once for each row.

SigLIP's text tower sees every position, padding included: there a row is its whole context.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

# A shared beginning shorter than this, or shared by fewer rows, is not worth a shape of its own.
_MIN_PREFIX = 4
_MIN_ROWS_WITH_PREFIX = 17
_MIN_BATCH = 16


class TextBatch(NamedTuple):
    """Rows to be encoded at once."""

    rows: Int[np.ndarray, " rows"]
    """Their positions among all rows; the batch may be longer, what follows them is padding."""
    tokens: Int32[np.ndarray, "batch length"]
    """What follows the prefix, in as many columns as the longest row needs, rounded up."""


def shared_prefix(
    tokens: Int32[np.ndarray, "texts context"], lengths: Int[np.ndarray, " texts"]
) -> int:
    """How many columns all rows begin with alike, short of any row's last token; 0 where few."""
    if len(tokens) < _MIN_ROWS_WITH_PREFIX:
        return 0
    alike = (tokens == tokens[0]).all(axis=0)[: int(lengths.min()) - 1]
    prefix = int(np.argmin(alike)) if not alike.all() else len(alike)
    return prefix if prefix >= _MIN_PREFIX else 0


def text_batches(
    tokens: Int32[np.ndarray, "texts context"],
    lengths: Int[np.ndarray, " texts"],
    prefix: int,
    batch_size: int,
) -> Iterator[TextBatch]:
    """Cuts rows into batches, short ones first.

    Few shapes occur: the batches have `batch_size` rows, but for one of a power of two, and lengths as
    `_rounded` gives them.

    Args:
        tokens: Rows of token ids.
        lengths: How many tokens of each row have to be seen, from its beginning.
        prefix: Columns to leave out, which are shorter than any row.
        batch_size: Rows at once.
    """
    context = tokens.shape[1]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        end = min(prefix + _rounded(int(lengths[rows[-1]]) - prefix), context)
        size = min(batch_size, max(_MIN_BATCH, 1 << (len(rows) - 1).bit_length()))
        # Padding repeats a row, so that it holds nothing that no text has.
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        yield TextBatch(rows, tokens[padded, prefix:end])


def _rounded(length: int) -> int:
    """Up to a multiple of 4 while short, of 16 beyond 32."""
    step = 4 if length <= 16 else 8 if length <= 32 else 16
    return -(-length // step) * step
