"""The GPU benchmark's models: their FLOPs, random weights, tokens, images and shared programs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.encoders import PROMPT_LENGTHS
from benchmarks.gpu import architectures, floors, peers
from benchmarks.gpu.embedding import dictionary_prompts, prompt_batches
from benchmarks.gpu.measuring import agreement
from bliss_jax.datasets import ImageDataset
from bliss_jax.embedding import embed_images
from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.preprocessing import apply_preprocessing
from bliss_jax.models.untrained import untrained_config, untrained_params

ARCHITECTURES = architectures.ARCHITECTURES


def product_flops(function, *arguments):
    """Operations of the matrix products in a function's traced program."""
    return 2 * _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(program):
    """Multiplications of the matrix products, those of inner functions included."""
    products = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            products += equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        products += sum(
            _products(getattr(inner, "jaxpr", inner))
            for value in equation.params.values()
            for inner in (value if isinstance(value, tuple) else (value,))
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr")
        )
    return products


def shapes_of(config):
    params = jax.eval_shape(lambda: untrained_params(config))
    size = config.vision.image_size
    return params, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


@pytest.mark.torch
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_flops_of_an_image_equal_those_that_pytorch_counts(name):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = ARCHITECTURES[name].config
    sizes = {**vars(config.vision), "projection_dim": config.projection_dim}
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
        pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(pixel_values=pixels)
    assert architectures.vision_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "quick"),
    [("L/14", True), *(pytest.param(n, False, marks=pytest.mark.slow) for n in ("B/32", "L/14"))],
)
def test_computed_flops_are_those_of_the_programs_products(name, quick):
    """They are the FLOPs of the architecture without those that the last layer leaves out."""
    config = architectures.architectures(quick)[name].config
    params, pixels = shapes_of(config)
    counted = product_flops(lambda p, x: encode_image(p, config, x), params, pixels)
    assert architectures.computed_flops(config) == counted


def test_text_flops_are_those_of_the_programs_products():
    config = architectures.architectures(True)["B/32"].config
    params, _ = shapes_of(config)
    tokens = jnp.zeros((1, 9), jnp.int32)
    counted = product_flops(lambda p, x: encode_text(p, config, x), params, tokens)
    assert architectures.text_flops(config, 9) == counted


def test_random_tensors_have_the_models_names_and_shapes():
    config = architectures.architectures(True)["B/16"].config
    params, _ = shapes_of(config)
    tensors = architectures.random_tensors(config)
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert {name: x.shape for name, x in tensors.items()} == expected
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in tensors.values())


def test_one_tower_alone_has_the_same_weights():
    """JAX and PyTorch draw their weights in different processes, PyTorch the vision tower only."""
    config = architectures.architectures(True)["B/16"].config
    both, vision = (
        architectures.random_tensors(config, towers) for towers in (("vision", "text"), ("vision",))
    )
    assert not any(name.startswith("text") for name in vision)
    for name, tensor in vision.items():
        np.testing.assert_array_equal(tensor, both[name])


def test_prompts_have_about_as_many_tokens_as_with_openais_tokenizer():
    model = architectures.random_model("B/32", True)
    lengths = model.config.used_lengths(model.tokenize(dictionary_prompts(1860)))
    openai = np.repeat(list(PROMPT_LENGTHS), list(PROMPT_LENGTHS.values()))
    assert abs(lengths.mean() - openai.mean()) < 1
    assert lengths.min() == openai.min()


def test_prompts_are_batched_as_the_library_does_it():
    """The batches leave the shared prefix out and have few shapes."""
    model = architectures.random_model("B/32", True)
    tokens = model.tokenize(dictionary_prompts(600))
    batches = prompt_batches(tokens, model.config)
    assert sum(len(batch) for batch in batches) >= 600
    assert max(batch.shape[1] for batch in batches) < tokens.shape[1]
    assert len({batch.shape for batch in batches}) <= 3


def test_images_repeat_after_sixty_four():
    images = architectures.random_images(70, 12)
    assert images.shape == (70, 12, 12, 3)
    assert len(np.unique(images[:64].reshape(64, -1), axis=0)) == 64
    np.testing.assert_array_equal(images[64:], images[:6])


def test_embed_images_reuses_the_program_of_the_encoder_case(caplog):
    """Otherwise the benchmark would compile each large model twice."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))
    batch = architectures.architectures(True)["B/32"].batch
    replicated, divided = architectures.placement(mesh)
    model = architectures.random_model("B/32", True)
    params = jax.device_put(model.params, replicated)
    images = architectures.random_images(batch, model.image_size)
    preprocess = jax.jit(apply_preprocessing, static_argnums=1)
    pixels = preprocess(jax.device_put(images, divided), model.preprocessing)
    dataset = ImageDataset("random", images, np.zeros(batch, int), ("a", "b"), "test")

    def programs(call):
        caplog.clear()
        with jax.log_compiles():
            call()
        messages = [record.getMessage() for record in caplog.records]
        return [m for m in messages if m.startswith("Compiling") and "encode_image" in m]

    assert programs(lambda: architectures.encode(params, model.config, pixels))
    assert not programs(lambda: embed_images(model, dataset, batch_size=batch, mesh=mesh))


@pytest.mark.torch
def test_pytorchs_tower_holds_the_same_weights():
    """A weight that is missing or transposed would change the embeddings."""
    import torch

    config = untrained_config()
    params = untrained_params(config)
    size = config.vision.image_size
    given = peers.torch_pixels(4, size, "cpu")
    pixels = jnp.asarray(given.numpy().transpose(0, 2, 3, 1))
    ours = encode_image(params, config, pixels)
    tower = peers.torch_tower(config, params, "cpu")
    with torch.inference_mode():
        theirs = tower(pixel_values=given).image_embeds.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_agreement_is_the_smallest_cosine_before_and_after_centring():
    reference = np.array([[1.0, 0.1], [1.0, -0.1]])
    moved = np.array([[1.0, 0.1], [1.1, -0.1]])
    close = agreement(moved, reference)
    assert close.cosine == pytest.approx(1.11 / np.sqrt(1.22 * 1.01))
    assert close.centred == pytest.approx(np.sqrt(0.5))
    assert agreement(reference, reference) == pytest.approx((1, 1))


def test_the_floor_is_the_larger_of_arithmetic_and_memory():
    card = floors.Card(bfloat16=10.0, float8=20.0, float32=1.0, bandwidth=2.0)
    assert floors.floor_seconds(floors.Work(bfloat16=30.0, moved=4.0), card) == (3.0, "bfloat16")
    assert floors.floor_seconds(floors.Work(bfloat16=30.0, moved=8.0), card) == (4.0, "bandwidth")
    work = floors.Work(bfloat16=30.0, between=10.0)
    assert floors.expected_seconds(work, card) == pytest.approx(3 + 0.6 * 10 / 2)


def test_cards_are_found_by_the_beginning_of_the_devices_name():
    assert floors.card_of("NVIDIA H100 80GB HBM3") is floors.CARDS["NVIDIA H100"]
    assert floors.card_of("cpu") is None
