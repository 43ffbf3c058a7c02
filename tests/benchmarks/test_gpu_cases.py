"""The GPU benchmark's cases: selections of the top k, replaced layers, parts of an encoder, programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import architectures, hlo, roofline, scores, variants
from bliss_jax.models import layers
from bliss_jax.models.untrained import untrained_config


@pytest.mark.parametrize("kind", ["sort", "two stages", "lax.top_k"])
@pytest.mark.parametrize(
    "chunk", [1280, *(pytest.param(n, marks=pytest.mark.slow) for n in (1330, 4000))]
)
def test_exact_selectors_find_the_k_largest_for_every_chunk_size(kind, chunk):
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 16), np.float32) for n in (7, 4000))
    with jax.numpy_rank_promotion("allow"):
        values, index = scores.nearest(scores.SELECTORS[kind], images, jnp.asarray(texts), chunk)
    similarity = images.astype(np.float64) @ texts.T.astype(np.float64)
    np.testing.assert_array_equal(index, np.argsort(-similarity, axis=1)[:, : scores.K])
    np.testing.assert_allclose(values, -np.sort(-similarity, axis=1)[:, : scores.K], rtol=1e-5)


def test_a_last_chunk_of_fewer_than_k_texts_is_refused():
    texts = jnp.zeros((1003, 16))
    with pytest.raises(ValueError, match="the last of 1003 texts has 3"):
        scores.nearest(scores.SELECTORS["sort"], texts[:2], texts, 500)


def test_recall_is_the_share_of_the_exact_texts():
    found, exact = np.array([[1, 2], [9, 4]]), np.array([[2, 1], [4, 5]])
    assert scores.recall_of(found, exact) == 0.75


def test_quantised_values_use_the_whole_range_and_round_to_three_bits():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 40)), jnp.float32)
    values, scale = variants.quantised(x)
    assert values.dtype == jnp.float8_e4m3fn
    assert float(jnp.abs(values.astype(jnp.float32)).max()) == 448
    # Normal numbers of e4m3 begin at 2^-6. A mantissa of three bits rounds by at most 2^-4 of the value.
    normal = np.abs(x) >= scale * 2.0**-6
    back = np.asarray(values.astype(jnp.float32) * scale)
    assert normal.mean() > 0.9
    np.testing.assert_allclose(back[normal], np.asarray(x)[normal], rtol=2.0**-4 * (1 + 1e-6))
    zeros, scale = variants.quantised(jnp.zeros(3))
    assert not np.asarray(zeros.astype(jnp.float32)).any()
    assert scale == 1


def test_fp8_replaces_products_with_weights_and_no_others():
    contract = variants.Fp8Contract()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 64)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)
    exact = layers.contract("...i,io->...o", x, weights, "float32")
    rounded = contract("...i,io->...o", x, weights, "bfloat16")
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0.005 < error < 0.06  # both operands are rounded by at most 2^-4
    assert contract.products == 1
    both = [f("nik,njk->nij", x, x, "bfloat16") for f in (contract, layers.contract)]
    np.testing.assert_array_equal(*both)
    assert contract.products == 1


def test_replaced_functions_are_restored_after_an_error_and_must_exist():
    before = layers.contract
    with pytest.raises(RuntimeError), variants.patched(contract=print):
        assert layers.contract is print
        raise RuntimeError
    assert layers.contract is before
    with (
        pytest.raises(ValueError, match="no function no_such_name"),
        variants.patched(no_such_name=print),
    ):
        pass


@pytest.mark.slow
def test_the_parts_of_the_roofline_add_up_to_the_encoder():
    """They have all products of the encoder except the projection, which belongs to no layer."""
    config, batch = untrained_config("bfloat16"), 3
    parts = roofline.parts_of(config, batch).values()
    projection = 2 * config.vision.hidden_size * config.projection_dim
    total = architectures.vision_flops(config) - projection
    assert sum(part.number * part.flops for part in parts) == batch * total


def test_programs_in_bfloat16_have_no_float32_products_and_no_host_transfers():
    """Lowered for CUDA, which needs no accelerator."""
    programs = hlo.programs(quick=True)
    config = architectures.architectures(True)["B/32"].config
    for name in ("encode_image, B/32", "encode_text, B/32, 4 tokens after a prefix of 7"):
        function, arguments = programs[name]
        found = hlo.lowered(function, *arguments)
        assert set(found.products) == {"bf16 x bf16 -> f32"}, name
        assert found.host_transfers == 0
    # Per layer: queries, keys, values, logits, mixture, output and two of the MLP; patches and projection.
    function, arguments = programs["encode_image, B/32"]
    expected = 8 * config.vision.num_hidden_layers + 2
    assert hlo.lowered(function, *arguments).products["bf16 x bf16 -> f32"] == expected


@pytest.mark.slow
def test_all_programs_are_lowered_without_host_transfers(unchecked):
    for name, (function, arguments) in hlo.programs(quick=True).items():
        found = hlo.lowered(function, *arguments)
        assert found.host_transfers == 0, name
        kinds = {"bf16 x bf16 -> f32"} if name.startswith("encode") else {"f32 x f32 -> f32"}
        assert set(found.products) <= kinds, name


def test_lowered_properties_find_float32_products_callbacks_and_donated_buffers():
    """The checks above would fail on such a program."""

    def program(x, y):
        jax.debug.callback(lambda value: None, x)
        return x @ x + y

    x = jnp.zeros((4, 4))
    found = hlo.lowered(jax.jit(program, donate_argnums=1), x, x, platform="cpu")
    assert found == hlo.Lowered({"f32 x f32 -> f32": 1}, host_transfers=1, donated=1)


def test_compiled_counts_find_fusions_and_library_calls():
    text = """
  %fusion.1 = f32[4]{0} fusion(%p), kind=kLoop, calls=%a
  %gemm.2 = (f32[4]{0}, s8[8]{0}) custom-call(%p), custom_call_target="__cublas$lt$matmul$f8"
  ROOT %fusion.3 = f32[4]{0} fusion(%gemm.2), kind=kLoop, calls=%b
"""
    assert hlo.compiled_counts(text) == {"fusion": 2, "__cublas$lt$matmul$f8": 1}


def test_kernel_seconds_add_up_kernels_that_differ_by_a_number():
    class Item:
        def __init__(self, name, **others):
            self.name = name
            self.__dict__.update(others)

    events = [Item("gemm_1", duration_ns=2e9), Item("gemm_12", duration_ns=1e9)]
    streams = [Item("Stream #7", events=events), Item("XLA Ops", events=events)]
    profile = Item("", planes=[Item("/device:GPU:0", lines=streams), Item("/host:CPU", lines=[])])
    seconds, launches = roofline.kernel_seconds(profile, "gpu")
    assert dict(seconds) == {"gemm": 3.0}
    assert dict(launches) == {"gemm": 2}
    with pytest.raises(ValueError, match="expected events in lines tf_XLA"):
        roofline.kernel_seconds(profile, "cpu")
