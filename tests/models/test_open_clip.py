"""Tests of checkpoints in OpenCLIP's layout against outputs of OpenCLIP."""

import json

import jax
import numpy as np
import pytest
from random_checkpoints import random_tensors, save_clip_tokenizer, save_siglip_tokenizer
from random_open_clip import (
    open_clip_config,
    open_clip_siglip_config,
    save_open_clip_checkpoint,
    timm_sizes,
)
from record_oracles import GROUPS, OPEN_CLIP, TEXTS, open_clip_inputs, recorded
from safetensors.numpy import save_file

from bliss_jax.models import encode_image, encode_text, load_model, open_clip
from bliss_jax.models.checkpoint import read_config, read_preprocessing
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.preprocessing import STATS, Preprocessing
from bliss_jax.models.tokenize import CLEANINGS
from bliss_jax.models.weights import load_params


@pytest.fixture(autouse=True)
def tiny_timm(monkeypatch):
    """Gives the models of timm the sizes of the tiny ones."""
    monkeypatch.setitem(open_clip.TIMM_SIZES, "base", timm_sizes(False))
    monkeypatch.setitem(open_clip.TIMM_SIZES, "so400m", timm_sizes(True))


@pytest.mark.parity
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_embeddings_equal_the_recorded_ones_of_open_clip(name, tmp_path):
    save_open_clip_checkpoint(tmp_path, OPEN_CLIP[name])
    config = read_config(tmp_path, "float32")
    params, _ = load_params(tmp_path, config)
    pixels, tokens = open_clip_inputs(name)
    expected = recorded("open_clip")
    if name != "vit-worldwide":  # its vision tower is that of "vit"
        found = jax.jit(encode_image, static_argnums=1)(params, config, pixels)
        np.testing.assert_allclose(found, expected[f"{name}/image"], atol=2e-6, rtol=0)
    found = jax.jit(encode_text, static_argnums=1)(params, config, tokens)
    np.testing.assert_allclose(found, expected[f"{name}/text"], atol=2e-6, rtol=0)


@pytest.mark.torch
def test_recorded_outputs_of_open_clip_equal_todays():
    """This needs `pip install open_clip_torch`, which no extra installs."""
    pytest.importorskip("open_clip", exc_type=ImportError)
    expected = recorded("open_clip")
    for name, array in GROUPS["open_clip"]().items():
        if array.dtype.kind == "U":
            np.testing.assert_array_equal(array, expected[name])
        else:
            np.testing.assert_allclose(array, expected[name], atol=5e-7, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["whitespace", "lower", "canonicalize"])
def test_text_cleaning_equals_that_of_open_clip(kind):
    assert [CLEANINGS[kind](text) for text in TEXTS] == list(recorded("open_clip")[f"clean/{kind}"])


def test_the_pull_requests_file_name_is_read_as_well(tmp_path):
    for folder, name in (
        ("a", "open_clip_model.safetensors"),
        ("b", "open_clip_pytorch_model.safetensors"),
    ):
        save_open_clip_checkpoint(tmp_path / folder, open_clip_config(), name)
    config = read_config(tmp_path / "a", "float32")
    hashes = {load_params(tmp_path / folder, config)[1] for folder in "ab"}
    assert len(hashes) == 1


def test_a_config_json_without_model_type_does_not_matter(tmp_path):
    save_open_clip_checkpoint(tmp_path, open_clip_config(quick_gelu=True))
    (tmp_path / "config.json").write_text("{}")
    config = read_config(tmp_path, "bfloat16")
    assert isinstance(config, CLIPConfig)
    assert (config.vision.hidden_act, config.embedding_dim) == ("quick_gelu", 24)
    assert read_preprocessing(tmp_path, config) == Preprocessing(32)


def test_preprocessing_of_siglip(tmp_path):
    save_open_clip_checkpoint(tmp_path, open_clip_siglip_config(tanh=False))
    found = read_preprocessing(tmp_path, read_config(tmp_path, "float32"))
    assert found == Preprocessing(64, "squash", "bicubic", *STATS["siglip"])


def test_the_whole_model_loads_and_cleans_texts(tmp_path):
    config = open_clip_siglip_config(tanh=True)
    config["model_cfg"]["text_cfg"]["vocab_size"] = 64
    save_open_clip_checkpoint(tmp_path, config)
    save_siglip_tokenizer(tmp_path, ["a cat", "a dog", "the photo"] * 9, 24)
    loaded = load_model(tmp_path)
    assert loaded.tokenizer.clean is CLEANINGS["canonicalize"]
    np.testing.assert_array_equal(loaded.tokenize(["A_CAT!"]), loaded.tokenize(["a cat"]))
    assert loaded.encode_texts(["a dog"]).shape == (1, 32)


def test_clip_has_its_own_tokenizer_and_cleaning(tmp_path):
    config = open_clip_config(text={"vocab_size": 54})
    save_open_clip_checkpoint(tmp_path, config)
    save_clip_tokenizer(tmp_path)
    loaded = load_model(tmp_path)
    tokens = loaded.tokenize(["A &amp;amp; B", "a & b"])
    np.testing.assert_array_equal(tokens[0], tokens[1])
    # The padding is the end of text, the largest id, whose first occurrence is the end.
    assert loaded.config.used_lengths(loaded.tokenize(["ab"]))[0] == 4


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "resnet|not supported|not valid"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg has attentional_pool = True"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "'convnext_base' of timm"),
        (
            "text_cfg",
            {"hf_model_name": "roberta-base"},
            "text_cfg has hf_model_name = 'roberta-base'",
        ),
        ("text_cfg", {"pool_type": "first"}, "pool_type = 'first', expected one of"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask = True"),
    ],
)
def test_unsupported_models_are_refused_by_option(section, change, message, tmp_path):
    config = open_clip_config()
    config["model_cfg"][section] |= change
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path, "float32")


def test_an_invalid_configuration_is_refused(tmp_path):
    for text in ("{", "[]", "{}", '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}'):
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"open_clip_config.json is not valid"):
            read_config(tmp_path, "float32")


def test_weights_of_another_layout_are_refused(tmp_path):
    save_open_clip_checkpoint(tmp_path, open_clip_config())
    from random_checkpoints import clip_config

    save_file(random_tensors(clip_config()), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="do not fit its configuration"):
        load_params(tmp_path, read_config(tmp_path, "float32"))
