"""Tests of the batches of token rows: each row occurs once, with all tokens it depends on."""

import numpy as np
import pytest

from bliss_jax.models.text_batches import shared_prefix, text_batches

CONTEXT = 77


def rows_of(lengths, prefix=0, seed=0):
    """Returns random tokens whose first `prefix` columns are equal in all rows and whose next is not."""
    tokens = np.random.default_rng(seed).integers(1000, 9000, (len(lengths), CONTEXT), np.int32)
    tokens[:, :prefix] = np.arange(prefix)
    tokens[:, prefix] = np.arange(len(lengths))
    return tokens, np.asarray(lengths)


@pytest.mark.parametrize("batch_size", [1, 16, 50, 256])
@pytest.mark.parametrize("prefix", [0, 7])
def test_each_row_occurs_once_with_all_its_tokens(batch_size, prefix):
    lengths = np.random.default_rng(1).integers(prefix + 1, CONTEXT + 1, 333)
    tokens, lengths = rows_of(lengths, prefix)
    seen = []
    for batch in text_batches(tokens, lengths, prefix, batch_size):
        given = batch.tokens.shape[1]
        assert given + prefix <= CONTEXT
        for row, of_row in zip(batch.rows, batch.tokens, strict=False):
            assert lengths[row] <= prefix + given
            np.testing.assert_array_equal(of_row, tokens[row, prefix : prefix + given])
        seen.extend(batch.rows)
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(lengths)))


def test_batches_have_few_distinct_shapes():
    shapes = set()
    for texts in range(1, 700, 13):
        lengths = np.random.default_rng(texts).integers(2, CONTEXT + 1, texts)
        batches = text_batches(*rows_of(lengths), 0, 256)
        shapes |= {batch.tokens.shape for batch in batches}
    assert {rows for rows, _ in shapes} <= {16, 32, 64, 128, 256}
    assert {length for _, length in shapes} <= {4, 8, 12, 16, 24, 32, 48, 64, CONTEXT}


def test_short_rows_are_batched_apart_from_long_ones():
    lengths = [CONTEXT] + [9] * 511
    shapes = [batch.tokens.shape for batch in text_batches(*rows_of(lengths), 0, 256)]
    assert shapes == [(256, 12), (256, CONTEXT)]


def test_the_shared_prefix_is_found():
    tokens, lengths = rows_of([9, 12, 30] * 10, prefix=6)
    assert shared_prefix(tokens, lengths) == 6


def test_the_prefix_excludes_the_last_token_of_every_row():
    tokens, lengths = np.ones((20, CONTEXT), np.int32), np.full(20, 8)
    assert shared_prefix(tokens, lengths) == 7
    lengths[3] = 1
    assert shared_prefix(tokens, lengths) == 0


def test_few_rows_or_a_short_prefix_are_not_split():
    assert shared_prefix(*rows_of([9] * 16, prefix=6)) == 0
    assert shared_prefix(*rows_of([9] * 17, prefix=6)) == 6
    assert shared_prefix(*rows_of([9] * 17, prefix=3)) == 0
