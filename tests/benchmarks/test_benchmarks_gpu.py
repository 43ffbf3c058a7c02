"""The GPU benchmark counts, selects, quantises and replaces what it says; what it cannot run is blank."""

import math
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bliss_jax.models import encode_image, layers
from bliss_jax.models.untrained import untrained_config, untrained_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    """Imports a module of benchmarks.gpu, which is not installed; last on the path, as in test_benchmarks."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    return lambda name: import_module(f"benchmarks.gpu.{name}")


def settings(gpu, seconds=1000.0):
    return gpu("measuring").Settings(quick=True, deadline=time.time() + seconds)


@pytest.mark.parametrize("name", ["B/32", "B/16", "L/14", "L/14-336"])
def test_the_flops_of_an_image_are_those_that_pytorch_counts(gpu, name):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    architectures = gpu("architectures")
    config = architectures.ARCHITECTURES[name].config
    sizes = {**vars(config.vision), "projection_dim": config.projection_dim}
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
        pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(pixel_values=pixels)
    assert architectures.vision_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["B/32", "L/14"])
def test_the_flops_that_are_computed_are_those_of_the_program_s_products(gpu, name):
    """What `vision_flops` counts, less what the last layer leaves out."""
    architectures = gpu("architectures")
    config = architectures.ARCHITECTURES[name].config
    params = jax.eval_shape(lambda: untrained_params(config))
    size = config.vision.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    program = jax.make_jaxpr(lambda params, pixels: encode_image(params, config, pixels))
    products = 0
    for equation in program(params, pixels).eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            products += equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
    assert architectures.computed_flops(config) == 2 * products


def test_the_parts_of_the_roofline_add_up_to_the_encoder(gpu):
    """All products of the encoder but the projection, which is no part of a layer."""
    config, batch = untrained_config("bfloat16"), 3
    parts = gpu("encoders").parts_of(config, batch).values()
    projection = 2 * config.vision.hidden_size * config.projection_dim
    total = gpu("architectures").vision_flops(config) - projection
    assert sum(part.number * part.flops for part in parts) == batch * total


def test_pytorch_s_tower_holds_the_same_weights(gpu):
    """A weight that is missing or transposed would move the embeddings."""
    import torch

    config = untrained_config()
    params = untrained_params(config)
    pixels = gpu("architectures").pixels_for(config, 4)
    ours = gpu("architectures").float32_embeddings(config, params, pixels)
    tower = gpu("peers").torch_tower(config, params, "cpu")
    given = torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        theirs = tower(pixel_values=given).image_embeds.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sort", "two stages", "lax.top_k"])
@pytest.mark.parametrize("chunk", [1280, 1330, 4000])
def test_exact_selectors_find_the_k_largest_for_every_chunk_size(gpu, kind, chunk):
    scores = gpu("scores")
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 16), np.float32) for n in (7, 4000))
    with jax.numpy_rank_promotion("allow"):
        values, index = scores.nearest(scores.SELECTORS[kind], images, jnp.asarray(texts), chunk)
    similarity = images.astype(np.float64) @ texts.T.astype(np.float64)
    np.testing.assert_array_equal(index, np.argsort(-similarity, axis=1)[:, : scores.K])
    np.testing.assert_allclose(values, -np.sort(-similarity, axis=1)[:, : scores.K], rtol=1e-5)


def test_a_chunk_that_leaves_less_than_k_texts_is_refused(gpu):
    scores = gpu("scores")
    texts = jnp.zeros((1003, 16))
    with pytest.raises(ValueError, match="leaves 3 of 1003 texts"):
        scores.nearest(scores.SELECTORS["sort"], texts[:2], texts, 500)


def test_recall_is_the_share_of_the_exact_texts(gpu):
    found, exact = np.array([[1, 2], [9, 4]]), np.array([[2, 1], [4, 5]])
    assert gpu("scores").recall_of(found, exact) == 0.75


def test_quantised_values_use_the_whole_range_and_round_to_three_bits(gpu):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 40)), jnp.float32)
    values, scale = gpu("variants").quantised(x)
    assert values.dtype == jnp.float8_e4m3fn
    assert float(jnp.abs(values.astype(jnp.float32)).max()) == 448
    # Normal numbers of e4m3 begin at 2^-6; a mantissa of three bits rounds by 2^-4 of the value at most.
    normal = np.abs(x) >= scale * 2.0**-6
    back = np.asarray(values.astype(jnp.float32) * scale)
    assert normal.mean() > 0.9
    np.testing.assert_allclose(back[normal], np.asarray(x)[normal], rtol=2.0**-4 * (1 + 1e-6))
    zeros, scale = gpu("variants").quantised(jnp.zeros(3))
    assert not np.asarray(zeros.astype(jnp.float32)).any()
    assert scale == 1


def test_fp8_replaces_products_with_weights_and_no_others(gpu):
    contract = gpu("variants").Fp8Contract()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 64)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)
    exact = layers.contract("...i,io->...o", x, weights, "float32")
    rounded = contract("...i,io->...o", x, weights, "bfloat16")
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0.005 < error < 0.06  # two operands, each rounded by at most 2^-4
    assert contract.products == 1
    both = [f("nik,njk->nij", x, x, "bfloat16") for f in (contract, layers.contract)]
    np.testing.assert_array_equal(*both)
    assert contract.products == 1


def test_replaced_functions_come_back_after_an_error_and_must_exist(gpu):
    variants, before = gpu("variants"), layers.contract
    with pytest.raises(RuntimeError), variants.patched(contract=print):
        assert layers.contract is print
        raise RuntimeError
    assert layers.contract is before
    with (
        pytest.raises(ValueError, match="no function no_such_name"),
        variants.patched(no_such_name=print),
    ):
        pass


@pytest.mark.parametrize("causal", [False, True])
def test_jax_s_attention_is_the_library_s_equation(gpu, causal):
    q, k, v = (
        jnp.asarray(np.random.default_rng(i).standard_normal((2, 6, 3, 8)), jnp.float32)
        for i in range(3)
    )
    mask = jnp.tril(jnp.ones((6, 6), bool)) if causal else None
    logits = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(8)
    weights = np.exp(logits) if mask is None else np.exp(logits) * np.asarray(mask)
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("nhqk,nkhd->nqhd", weights, v)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = gpu("variants").attention_by("xla")(q, k, v, mask, "bfloat16")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03)


def test_buckets_hold_every_prompt_once_and_cut_none(gpu):
    inputs, config = gpu("inputs"), gpu("architectures").ARCHITECTURES["B/32"].config
    tokens = inputs.prompt_tokens(200, config)
    end = config.text.eos_token_id
    groups = inputs.buckets(tokens, end, 4)
    assert all((group == end).any(axis=1).all() for group in groups)
    assert len({group.shape[1] for group in groups}) == len(groups)
    padded = [
        np.pad(group, ((0, 0), (0, 77 - group.shape[1])), constant_values=end) for group in groups
    ]
    assert sorted(map(tuple, np.concatenate(padded))) == sorted(map(tuple, tokens))


def test_what_cannot_run_is_blank_and_says_why(gpu):
    sheet = gpu("measuring").Sheet(settings(gpu), "title", "name | number | twice")
    assert sheet.add(("one", 1), lambda: 1, lambda one: (2 * one,)) == 1

    def fail():
        raise MemoryError("no room\nand more")

    assert sheet.add(("none", 2), fail, lambda never: (never,)) is None
    assert sheet.rows == [("one", "1", "2"), ("none", "2", "")]
    assert sheet.notes == ["none, 2: MemoryError: no room"]


def test_no_case_is_begun_after_the_budget(gpu):
    result, reason = gpu("measuring").attempt(lambda: pytest.fail("begun"), settings(gpu, -1.0))
    assert result is None
    assert "time budget" in reason


def test_agreement_is_the_smallest_cosine_before_and_after_centring(gpu):
    reference = np.array([[1.0, 0.1], [1.0, -0.1]])
    moved = np.array([[1.0, 0.1], [1.1, -0.1]])
    close = gpu("measuring").agreement(moved, reference)
    assert close.cosine == pytest.approx(1.11 / np.sqrt(1.22 * 1.01))
    assert close.centred == pytest.approx(np.sqrt(0.5))
    assert gpu("measuring").agreement(reference, reference) == pytest.approx((1, 1))


def test_the_command_runs_with_jax_flax_and_numpy_alone(tmp_path):
    """In a new interpreter that refuses every other package; the kept numbers are of this machine only."""
    program = """
import runpy, sys
refused = ("torch", "transformers", "tokenizers", "sklearn", "click", "PIL", "tensorflow_datasets", "rich")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused[:-1]:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from benchmarks.gpu.command import SECTIONS
from benchmarks.gpu.measuring import Settings
import time
numbers = SECTIONS["ceiling"](Settings(True, time.time() + 100), {})
print(numbers.markdown())
table = SECTIONS["peers"](Settings(True, time.time() + 100), {})
print(table.markdown())
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "memory bandwidth" in done.stdout
    assert "both in float32: ImportError: torch" in done.stdout


def test_numbers_of_another_machine_are_refused(gpu, tmp_path):
    file = tmp_path / "numbers.json"
    main = gpu("command")
    assert main.read_kept(file, {"device": "one"}, True)["sections"] == {}
    file.write_text('{"machine": {"device": "other"}, "quick": true, "sections": {}}')
    with pytest.raises(ValueError, match=r"numbers\.json.*other"):
        main.read_kept(file, {"device": "one"}, True)
