"""Tests of reading a checkpoint's configuration files and of fetching its files."""

import json

import numpy as np
import pytest
from random_checkpoints import clip_config, naflex_config, save_preprocessor, siglip_config

from bliss_jax.models import Preprocessing, checkpoint, load_model, tokenize
from bliss_jax.models.checkpoint import read_config, read_preprocessing
from bliss_jax.models.layout import PickleOnlyError, find_layout
from bliss_jax.models.naflex import NaflexPreprocessing
from bliss_jax.models.preprocessing import STATS

HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(clip_config()))
    return tmp_path, read_config(tmp_path, "float32")


@pytest.fixture
def siglip(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(siglip_config()))
    return tmp_path, read_config(tmp_path, "float32")


def preprocessing(checkpoint, fields, file="preprocessor_config.json"):
    directory, config = checkpoint
    (directory / file).write_text(json.dumps(fields))
    return read_preprocessing(directory, config)


def test_missing_fields_have_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    config = read_config(tmp_path, "bfloat16")
    assert config.dtype == "bfloat16"
    assert config.embedding_dim == 512
    assert (config.vision.hidden_size, config.vision.patch_size) == (768, 32)
    assert (config.text.hidden_act, config.text.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert (config.text.vocab_size, config.text.eos_token_id) == (49408, 49407)
    hash(config)

    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    config = read_config(tmp_path, "float32")
    assert (config.embedding_dim, config.text.max_position_embeddings) == (768, 64)
    assert (config.vision.hidden_act, config.vision.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    hash(config)


def test_a_file_that_states_all_fields_is_read_as_transformers_reads_it(clip, monkeypatch):
    directory, config = clip
    monkeypatch.setattr(checkpoint, "_stated_config", lambda given: None)
    assert read_config(directory, "float32") == config


def test_images_are_embedded_without_importing_transformers(monkeypatch):
    def refuse():
        raise ImportError("transformers")

    for module in (checkpoint, tokenize):
        monkeypatch.setattr(module, "import_transformers", refuse)
    model = load_model("bliss-jax/tiny")
    assert model.encode_images(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 64)
    with pytest.raises(ImportError):
        model.encode_texts(["a cat"])


def test_the_config_json_of_openai_is_read(tmp_path):
    """OpenAI's files repeat the towers as `*_config_dict`, null or filled, and have eos_token_id 2."""
    towers = {
        "text_config": {"eos_token_id": 2, "num_hidden_layers": 12},
        "vision_config": {"image_size": 336, "hidden_size": 1024, "num_attention_heads": 16},
    }
    fields = {"model_type": "clip", "projection_dim": 768, **towers, "text_config_dict": None}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vision_config_dict": None}))
    config = read_config(tmp_path, "float32")
    assert (config.text.eos_token_id, config.vision.image_size) == (2, 336)
    assert config.embedding_dim == 768


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model_type": "flava"}',
            r"'flava' \(FLAVA\) is not supported; expected one of 'clip' \(CLIP\)",
        ),
        ('{"model_type": "altclip"}', r"model type 'altclip' \(AltCLIP\) is not supported"),
        ('{"model_type": "clip_vision_model"}', "a vision tower of CLIP without its text tower"),
        ('{"model_type": "bert"}', "model type 'bert' is not supported"),
        ("{}", "model type None is not supported"),
        ("[]", "config.json is not valid: expected a JSON object"),
        ("{", "config.json is not valid"),
        (
            '{"model_type": "clip", "text_config": {"hidden_size": 100}}',
            "100.* is not a multiple of .*8",
        ),
        (
            '{"model_type": "clip", "vision_config": {"hidden_act": "quickgelu"}}',
            "unknown hidden_act 'quickgelu'",
        ),
    ],
)
def test_unsupported_configurations_are_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path, "float32")


def test_a_directory_without_configuration_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"no config.json and no open_clip_config.json in .*: not a checkpoint"
    ):
        read_config(tmp_path, "float32")


def test_preprocessing_of_clip(clip):
    expected = Preprocessing(size=32)
    save_preprocessor(clip[0], 32)
    assert read_preprocessing(*clip) == expected
    newer = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_convert_rgb": True,
        "resample": None,
    }
    assert preprocessing(clip, newer) == expected
    assert preprocessing(clip, {}) == expected
    squashed = {"do_center_crop": False, "size": {"height": 32, "width": 32}, "resample": 2}
    assert preprocessing(clip, squashed | HALVES) == Preprocessing(
        32, "squash", "bilinear", *STATS["siglip"]
    )


def test_a_centre_crop_after_a_square_size_has_no_effect(clip):
    size = {"height": 32, "width": 32}
    found = preprocessing(clip, {"size": size, "crop_size": size, "do_center_crop": True})
    assert found == Preprocessing(32, "squash")


def test_preprocessing_of_naflex(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(naflex_config()))
    config = read_config(tmp_path, "float32")
    fields = {"resample": 2, "patch_size": 8, "max_num_patches": 20, **HALVES}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = read_preprocessing(tmp_path, config)
    assert isinstance(found, NaflexPreprocessing)
    assert (found.patch_size, found.max_patches, found.resample) == (8, 20, "bilinear")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields | {"patch_size": 16}))
    with pytest.raises(ValueError, match=r"patch_size 16, but config.json has 8"):
        read_preprocessing(tmp_path, config)


def test_preprocessing_of_siglip(siglip):
    fields = {"size": {"height": 32, "width": 32}, "resample": 2, **HALVES}
    expected = Preprocessing(32, "squash", "bilinear", *STATS["siglip"])
    assert preprocessing(siglip, fields) == expected
    assert preprocessing(siglip, {"resample": 2}) == expected


def test_the_processor_config_of_transformers_5_is_read(siglip):
    fields = {"image_processor": {"resample": 3, **HALVES}, "processor_class": "SiglipProcessor"}
    expected = Preprocessing(32, "squash", "bicubic", *STATS["siglip"])
    assert preprocessing(siglip, fields, "processor_config.json") == expected
    # If both files exist, the older one decides, as in transformers.
    assert preprocessing(siglip, {"resample": 2}).resample == "bilinear"


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 48},
        {"size": {"height": 32, "width": 30}},
        {"crop_size": 28},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"do_resize": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 1},
    ],
    ids=str,
)
def test_unsupported_preprocessing_is_refused(clip, fields):
    name = "size" if "do_center_crop" in fields else next(iter(fields))
    with pytest.raises(ValueError, match=rf"not supported with a tower for 32 x 32.*: {name} "):
        preprocessing(clip, fields)


def test_a_missing_or_unreadable_processor_is_refused(clip):
    with pytest.raises(ValueError, match=r"no preprocessor_config.json in .* are unknown"):
        read_preprocessing(*clip)
    for file in ("processor_config.json", "preprocessor_config.json"):
        for text in ("{", "[1]"):
            (clip[0] / file).write_text(text)
            with pytest.raises(ValueError, match="no image processor can be read from"):
                read_preprocessing(*clip)


def test_safetensors_are_preferred_and_pickles_refused():
    everything = ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5"]
    index = "model.safetensors.index.json"
    for names, expected in (
        (everything, "model.safetensors"),
        ([index, *everything[1:]], index),
        (everything[1:], "flax_model.msgpack"),
        (["pytorch_model.safetensors", *everything[1:]], "pytorch_model.safetensors"),
    ):
        assert find_layout("a/b", names, "clip").weights == expected
    for pickle in ("pytorch_model-00001-of-00002.bin", "open_clip_pytorch_model.bin"):
        with pytest.raises(PickleOnlyError, match=r"a/b holds its weights only as a pickle"):
            find_layout("a/b", [pickle], "clip")
    with pytest.raises(ValueError, match="no weights in a/b"):
        find_layout("a/b", ["tf_model.h5"], "clip")


def test_the_layout_of_transformers_is_preferred_if_it_is_complete():
    both = ["config.json", "open_clip_config.json", "open_clip_model.safetensors"]
    weights = [*both, "model.safetensors"]
    assert find_layout("a/b", weights, "clip") == ("transformers", "model.safetensors")
    assert find_layout("a/b", both, "clip") == ("open_clip", "open_clip_model.safetensors")
    assert find_layout("a/b", weights, None) == ("open_clip", "open_clip_model.safetensors")


def test_messages_about_pickles_name_a_mirror_or_the_conversion():
    name = "openai/clip-vit-large-patch14-336"
    with pytest.raises(
        PickleOnlyError, match=r"timm/vit_large_patch14_clip_336.openai holds the same"
    ):
        find_layout(name, ["pytorch_model.bin"], "clip")
    with pytest.raises(PickleOnlyError, match=r"AutoModel.*AutoProcessor.from_pretrained\('a/b'\)"):
        find_layout("a/b", ["pytorch_model.bin"], "clip")
    with pytest.raises(PickleOnlyError, match=r"hf-hub:a/b.*open_clip_model.safetensors"):
        find_layout("a/b", ["open_clip_config.json", "open_clip_pytorch_model.bin"], None)
