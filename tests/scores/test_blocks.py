"""Tests of loops over blocks: results equal those of `vmap`, and blocks bound the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bliss_jax.scores import block_map


@pytest.mark.parametrize("length", [1, 7, 12, 13])
@pytest.mark.parametrize("block", [1, 30, 50, 10_000])
def test_block_map_equals_vmap_for_every_block_size(length, block):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(length, 5)), rng.normal(size=(length, 5))

    def function(a, b):
        return jnp.sort(a) * b, a.sum()

    expected = jax.vmap(function)(x, y)
    found = jax.jit(lambda x, y: block_map(function, x, y, size=5, block=block))(x, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_block_has_no_more_rows_than_its_size_allows():
    def largest_sort(block):
        def function(row):
            return jnp.sort(row)

        jaxpr = jax.make_jaxpr(lambda x: block_map(function, x, size=10, block=block))
        return str(jaxpr(np.zeros((12, 10), np.float32)))

    assert "f32[12,10] = sort" in largest_sort(1000)
    assert "f32[4,10] = sort" in largest_sort(40)
    assert "f32[12,10] = sort" not in largest_sort(40)
