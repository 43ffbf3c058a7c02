"""Encoders in bfloat16 on NVIDIA GPUs, as far as a machine without one can show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from bliss_jax._checks import compiled, rows
from bliss_jax.models import cuda, layers


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture
def gpu(monkeypatch):
    """A machine that has an NVIDIA GPU. cuDNN's attention is replaced, because JAX has it on GPUs only."""
    monkeypatch.setattr(cuda, "has_cuda", lambda: True)


def products(lowered) -> list[str]:
    return [line for line in lowered.as_text().splitlines() if "dot_general" in line]


@pytest.mark.parametrize(("platform", "result"), [("cuda", "bf16"), ("cpu", "f32"), ("tpu", "f32")])
def test_products_are_written_in_bfloat16_on_cuda_only(gpu, platform, result):
    def product(x, y):
        return layers.contract("ij,jk->ik", x, y, "bfloat16")

    x, y = normal(0, 3, 8), normal(1, 8, 5)
    (line,) = products(jax.jit(product).trace(x, y).lower(lowering_platforms=(platform,)))
    assert line.rstrip().endswith(f"-> tensor<3x5x{result}>")


def test_a_gpu_changes_no_bit_of_products_on_the_cpu(gpu, monkeypatch):
    x, y = normal(0, 3, 8), normal(1, 8, 5)
    with_gpu = layers.contract("ij,jk->ik", x, y, "bfloat16")
    monkeypatch.setattr(cuda, "has_cuda", lambda: False)
    np.testing.assert_array_equal(with_gpu, layers.contract("ij,jk->ik", x, y, "bfloat16"))


def test_products_in_float32_are_the_same_everywhere(gpu):
    product = jax.jit(lambda x, y: layers.contract("ij,jk->ik", x, y, "float32"))
    traced = product.trace(normal(0, 3, 8), normal(1, 8, 5))
    (line,) = products(traced.lower(lowering_platforms=("cuda",)))
    assert "HIGHEST" in line
    assert line.rstrip().endswith("-> tensor<3x5xf32>")


def test_derivatives_of_fused_attention_are_those_of_the_definition(gpu, monkeypatch):
    """Reverse mode, forward mode and a Hessian: the fused call itself, which has none of them, is never traced."""

    def refuse(*arrays, implementation):
        raise NotImplementedError

    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)

    def definition(query, key, value):
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key), axis=-1)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, value)

    def total(attention, query):
        return jnp.sin(attention(query, normal(1, 2, 5, 2, 8), normal(2, 2, 5, 2, 8))).sum()

    def fused(*arrays):
        return cuda.fused_attention(definition, *arrays)

    query = normal(0, 2, 5, 2, 8)
    for derivative in (jax.grad, jax.jacfwd):
        found, expected = (
            derivative(lambda q, f=f: total(f, q))(query) for f in (fused, definition)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    along = normal(3, *query.shape)
    found, expected = (
        jax.jvp(jax.grad(lambda q, f=f: total(f, q)), (query,), (along,))[1]
        for f in (fused, definition)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_fused_for_whole_rows_on_automatic_axes_outside_of_portable_programs(gpu):
    query = normal(0, 2, 6, 3, 64)
    assert cuda.can_fuse_attention(query, keys=6)
    assert not cuda.can_fuse_attention(query[:, :1], keys=6)
    assert not cuda.can_fuse_attention(normal(0, 2, 6, 3, 20), keys=6)
    assert not cuda.can_fuse_attention(normal(0, 2, 6, 3, 136), keys=6)
    with cuda.portable():
        assert not cuda.can_fuse_attention(query, keys=6)
    for kind, fused in ((AxisType.Auto, True), (AxisType.Explicit, False)):
        with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
            assert cuda.can_fuse_attention(query, keys=6) is fused


def test_a_machine_without_a_gpu_has_no_fused_attention():
    assert not cuda.has_cuda()
    assert not cuda.can_fuse_attention(normal(0, 2, 6, 3, 64), keys=6)


def test_the_compiler_has_no_options_without_a_gpu():
    assert cuda.compiler_options() is None


def test_compiler_options_apply_to_calls_that_run_at_once(monkeypatch):
    """XLA refuses an unknown option, which shows where the options arrive."""
    monkeypatch.setattr(cuda, "compiler_options", lambda: {"unknown_option": True})

    @cuda.with_compiler_options(compiled(static=(), out=rows))
    def double(x):
        return 2 * x

    x = normal(0, 4, 3)
    with pytest.raises(RuntimeError, match="unknown_option"):
        double(x)
    np.testing.assert_array_equal(jax.vmap(double)(x), 2 * x)
    np.testing.assert_array_equal(jax.grad(lambda x: double(x).sum())(x), 2)
    np.testing.assert_array_equal(jax.jvp(double, (x,), (x,))[1], 2 * x)
    np.testing.assert_array_equal(jax.linearize(double, x)[1](x), 2 * x)
    np.testing.assert_array_equal(jax.jit(double)(x), 2 * x)
    np.testing.assert_array_equal(jax.lax.map(double, x), 2 * x)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: double(x).sum()))(x), 2)


@pytest.mark.parametrize(("platform", "result"), [("cuda", "bf16"), ("cpu", "f32")])
def test_a_bias_before_rounding_is_added_in_the_type_of_the_product(gpu, platform, result):
    dense = layers.Dense(5, "bfloat16", rounds_next=True)
    x = normal(0, 3, 8)
    params = dense.init(jax.random.key(0), x)
    lowered = jax.jit(dense.apply).trace(params, x).lower(lowering_platforms=(platform,))
    (line,) = [line for line in lowered.as_text().splitlines() if "stablehlo.add" in line]
    assert line.rstrip().endswith(f"tensor<3x5x{result}>")
