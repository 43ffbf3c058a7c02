"""Tests of reading a checkpoint's configuration files and of fetching its files."""

import json

import pytest
from random_checkpoints import clip_config, save_preprocessor, save_tiny_clip, siglip_config

from bliss_jax.models import Preprocessing, checkpoint
from bliss_jax.models.checkpoint import fetch, read_config, read_preprocessing, weight_patterns
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
        ('{"model_type": "siglip2"}', "model type 'siglip2' .* expected 'clip' or 'siglip'"),
        ('{"model_type": "bert"}', "model type 'bert'"),
        ('{"model_type": "no-such-model"}', "config.json' is not valid|config.json is not valid"),
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
    with pytest.raises(ValueError, match=r"no config.json in .*: not a checkpoint"):
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
        {"size": {"height": 32, "width": 32}},
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
    assert weight_patterns("a/b", everything) == ["model.safetensors"]
    index = "model.safetensors.index.json"
    assert weight_patterns("a/b", [index, *everything[1:]]) == [index, "model-*.safetensors"]
    assert weight_patterns("a/b", everything[1:]) == ["flax_model.msgpack"]
    with pytest.raises(ValueError, match=r"a/b holds its weights only as pytorch_model.bin"):
        weight_patterns("a/b", ["pytorch_model-00001-of-00002.bin"])
    with pytest.raises(ValueError, match="no weights in a/b"):
        weight_patterns("a/b", ["tf_model.h5"])


def test_fetching_downloads_only_the_needed_files(tmp_path, monkeypatch):
    import huggingface_hub

    commit, asked = tmp_path / ("c" * 40), []
    commit.mkdir()
    (commit / "config.json").write_text("{}")

    def hf_hub_download(repository, name, revision):
        assert (repository, name, revision) == ("owner/name", "config.json", "v1")
        return str(commit / name)

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))

    class Hub:
        def list_repo_files(self, repository, revision):
            assert (repository, revision) == ("owner/name", commit.name)
            return ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert fetch("owner/name", "v1") == commit
    assert asked == [
        ("owner/name", commit.name, checkpoint.DESCRIPTIONS),
        ("owner/name", commit.name, ["model.safetensors"]),
    ]
    # A complete snapshot in the cache causes no further request.
    (commit / "model.safetensors").touch()
    assert fetch("owner/name", "v1") == commit
    assert len(asked) == 2


def test_a_complete_cache_suffices_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository, commit = tmp_path / "models--owner--name", "d" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save_tiny_clip(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", commit):
        assert fetch("owner/name", revision) == snapshot
    for name, revision in (("owner/name", "v2"), ("owner/other", None), ("not a/valid/name", None)):
        with pytest.raises(ValueError, match=f"cannot get '{name}' at revision {revision!r}"):
            fetch(name, revision)
