"""Tests of saving a checkpoint: this library and transformers read the saved parameters."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from random_checkpoints import (
    clip_config,
    naflex_config,
    save_random_checkpoint,
    save_siglip_tokenizer,
    save_tiny_clip,
    save_tiny_siglip,
    torch_embeddings,
    torch_model,
)

from bliss_jax.models import Preprocessing, encode_image, encode_text, load_model
from bliss_jax.models.checkpoint import read_config, read_preprocessing
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.export import save_checkpoint
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.naflex import NaflexPreprocessing
from bliss_jax.models.preprocessing import STATS
from bliss_jax.models.weights import expected_shapes, flatten, load_params

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-4,
}
CONFIG = CLIPConfig(
    vision=VisionConfig(**TOWER, num_hidden_layers=2, image_size=24, patch_size=6),
    text=CLIPTextConfig(
        **TOWER, num_hidden_layers=1, vocab_size=50, max_position_embeddings=12, eos_token_id=49
    ),
    projection_dim=20,
)
PREPROCESSING = Preprocessing(24, mean=STATS["reference"][0], std=STATS["reference"][1])


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return unflatten_dict(
        {
            name: jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32)
            for name, shape in expected_shapes(CONFIG).items()
        },
        sep="/",
    )


def test_a_saved_checkpoint_loads_unchanged(params, tmp_path):
    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING)
    config = read_config(tmp_path, "float32")
    assert config == CONFIG
    assert read_preprocessing(tmp_path, config) == PREPROCESSING
    found, expected = flatten(load_params(tmp_path, config)[0]), flatten(params)
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parity
@pytest.mark.torch
def test_transformers_computes_the_same_embeddings(params, tmp_path):
    import torch
    from transformers import CLIPModel

    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING)
    model, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    # The logit scale belongs to the loss and not to the encoder.
    assert set(report["missing_keys"]) <= {"logit_scale"}
    assert not report["unexpected_keys"]
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(3, 24, 24, 3)).astype(np.float32)
    tokens = np.full((3, 12), 49, np.int32)
    tokens[:, :5] = rng.integers(0, 48, (3, 5))
    image, text = torch_embeddings(model.to(torch.float32).eval(), pixels, tokens)
    found = encode_image(params, CONFIG, jnp.asarray(pixels))
    np.testing.assert_allclose(found, image, atol=2e-6, rtol=0)
    found = encode_text(params, CONFIG, jnp.asarray(tokens))
    np.testing.assert_allclose(found, text, atol=2e-6, rtol=0)


def test_half_precision_only_rounds_the_parameters(params, tmp_path):
    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING, dtype="float16")
    for name, leaf in flatten(load_params(tmp_path, CONFIG)[0]).items():
        expected = np.asarray(flatten(params)[name]).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_a_value_that_the_file_cannot_hold_is_refused_by_name(params, tmp_path, value):
    damaged = {**params, "damaged": jnp.full(2, value)}
    with pytest.raises(ValueError, match="damaged is not finite in float16"):
        save_checkpoint(tmp_path, CONFIG, damaged, PREPROCESSING, dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module", params=["clip", "metaclip_2", "siglip", "siglip2"])
def family(request, tmp_path_factory):
    """Returns a random checkpoint of each family with its tokenizer, and the loaded model."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "clip":
        save_tiny_clip(directory)
    elif request.param == "siglip":
        save_tiny_siglip(directory)
    else:
        naflex = request.param == "siglip2"
        text = {"vocab_size": 64, "eos_token_id": 1}
        config = naflex_config() if naflex else clip_config(model_type="metaclip_2", text=text)
        save_random_checkpoint(directory, config)
        save_siglip_tokenizer(directory, ["a cat", "a dog", "the photo"] * 9, 24)
        fields = {"patch_size": 8, "max_num_patches": 20} if naflex else {}
        (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    return load_model(directory)


def test_every_family_with_its_tokenizer_loads_unchanged(family, tmp_path):
    arguments = (family.config, family.params, family.preprocessing)
    save_checkpoint(tmp_path, *arguments, tokenizer=family.tokenizer)
    found = load_model(tmp_path)
    assert found.config == family.config
    assert found.preprocessing == family.preprocessing
    assert found.weights_hash == family.weights_hash
    texts = ["a cat", "The DOG!", ""]
    np.testing.assert_array_equal(found.tokenize(texts), family.tokenize(texts))


@pytest.mark.parity
@pytest.mark.torch
def test_transformers_reads_every_family(family, tmp_path):
    from transformers import AutoImageProcessor, AutoTokenizer

    arguments = (family.config, family.params, family.preprocessing)
    save_checkpoint(tmp_path, *arguments, tokenizer=family.tokenizer)
    model = torch_model(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("a cat")["input_ids"]
    assert ids == family.tokenizer.backend("a cat")["input_ids"]
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert tuple(processor.image_mean) == family.preprocessing.mean
    tokens = family.tokenize(["a cat", "a dog"])
    if isinstance(family.preprocessing, NaflexPreprocessing):
        return  # tests/models/test_naflex.py compares its embeddings
    size = family.image_size
    pixels = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    image, text = torch_embeddings(model, pixels, tokens)
    found = encode_image(family.params, family.config, jnp.asarray(pixels))
    np.testing.assert_allclose(found, image, atol=2e-6, rtol=0)
    found = encode_text(family.params, family.config, jnp.asarray(tokens))
    np.testing.assert_allclose(found, text, atol=2e-6, rtol=0)


def test_other_geometries_load_unchanged(params, tmp_path):
    squash = replace(PREPROCESSING, geometry="squash")
    save_checkpoint(tmp_path, CONFIG, params, squash)
    assert read_preprocessing(tmp_path, read_config(tmp_path, "float32")) == squash
