"""Random checkpoints in transformers' formats, written with NumPy from a seed, without PyTorch.

`random_tensors` makes every parameter matter: the scales of layer norms are not 1, biases are not 0, and
the weights are large enough that the layers dominate the residual stream. A seed gives the same file in
every environment. `record_oracles.py` therefore records only outputs, and a test writes the checkpoint.

The functions at the end of the file need PyTorch; tests that call them are marked `torch`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Config = dict[str, Any]

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
# Widths, heads and patches of the published CLIP models. The number of layers is the test's choice.
_VISION = {
    "B/32": {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 32},
    "B/16": {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 16},
    "L/14": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
    "L/14-336": {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 336,
    },
    "H/14": {"hidden_size": 1280, "num_attention_heads": 16, "patch_size": 14},
}
_TEXT = {
    "B/32": {"hidden_size": 512, "num_attention_heads": 8},
    "B/16": {"hidden_size": 512, "num_attention_heads": 8},
    "L/14": {"hidden_size": 768, "num_attention_heads": 12},
    "L/14-336": {"hidden_size": 768, "num_attention_heads": 12},
    "H/14": {"hidden_size": 1024, "num_attention_heads": 16},
}
_PROJECTION = {"B/32": 512, "B/16": 512, "L/14": 768, "L/14-336": 768, "H/14": 1024}


def clip_config(*, text: Config | None = None, vision: Config | None = None, **top) -> Config:
    """Returns the config.json of a tiny CLIP, or of a MetaCLIP 2 with `model_type="metaclip_2"`."""
    act = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    words = {"vocab_size": 64, "eos_token_id": 63, "max_position_embeddings": 77}
    pixels = {"image_size": 32, "patch_size": 8}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": _SMALL | act | words | (text or {}),
        "vision_config": _SMALL | act | pixels | (vision or {}),
    } | top
    if config["model_type"] == "metaclip_2":
        config["architectures"] = ["MetaClip2Model"]
    return config


def published_clip_config(
    size: str, *, layers: int = 2, text: Config | None = None, vision: Config | None = None
) -> Config:
    """Returns the config.json of a CLIP with the widths of a published model, e.g. "B/32"."""
    words, pixels = _TEXT[size], _VISION[size]

    def tower(sizes: Config) -> Config:
        wide = {"num_hidden_layers": layers, "intermediate_size": 4 * sizes["hidden_size"]}
        return sizes | wide

    return clip_config(
        text=tower(words) | {"vocab_size": 1000, "eos_token_id": 999} | (text or {}),
        vision={"image_size": 224} | tower(pixels) | (vision or {}),
        projection_dim=_PROJECTION[size],
    )


def siglip_config(*, text: Config | None = None, vision: Config | None = None) -> Config:
    """Returns the config.json of a tiny SigLIP, or of a SigLIP 2 at fixed resolution."""
    act = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    words = _SMALL | act | {"vocab_size": 64, "max_position_embeddings": 16} | (text or {})
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"projection_size": words["hidden_size"]} | words,
        "vision_config": _SMALL | act | {"image_size": 32, "patch_size": 8} | (vision or {}),
    }


def naflex_config(*, text: Config | None = None, vision: Config | None = None) -> Config:
    """Returns the config.json of a tiny SigLIP 2 with a variable number of patches (NaFlex)."""
    config = siglip_config(text=text, vision={"num_patches": 16} | (vision or {}))
    config["vision_config"].pop("image_size")
    return config | {"architectures": ["Siglip2Model"], "model_type": "siglip2"}


def published_siglip_config(*, layers: int = 2, text=None, vision=None) -> Config:
    """Returns the config.json of a SigLIP with the widths of the published base model."""
    wide = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": layers,
    }
    words = wide | {"vocab_size": 1000, "max_position_embeddings": 64} | (text or {})
    return siglip_config(
        text=words, vision=wide | {"image_size": 224, "patch_size": 16} | (vision or {})
    )


def _linear(name: str, features: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (features, width)
    yield f"{name}.bias", (features,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _mlp(name: str, width: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear(f"{name}.fc1", inner, width)
    yield from _linear(f"{name}.fc2", width, inner)


def _layers(name: str, sizes: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = sizes["hidden_size"]
    for index in range(sizes["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _norm(f"{layer}.layer_norm2", width)
        yield from _mlp(f"{layer}.mlp", width, sizes["intermediate_size"])


def _shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes of the parameters of transformers' PyTorch model."""
    text, vision, kind = config["text_config"], config["vision_config"], config["model_type"]
    clip, naflex = kind in ("clip", "metaclip_2"), kind == "siglip2"
    words, width, p = text["hidden_size"], vision["hidden_size"], vision["patch_size"]
    patches = vision["num_patches"] if naflex else (vision["image_size"] // p) ** 2

    table = "text_model.embeddings.token_embedding.weight"
    yield table, (text["vocab_size"], words)
    length = text["max_position_embeddings"]
    yield "text_model.embeddings.position_embedding.weight", (length, words)
    yield from _layers("text_model", text)
    yield from _norm("text_model.final_layer_norm", words)

    patch = "vision_model.embeddings.patch_embedding"
    yield f"{patch}.weight", (width, 3 * p * p) if naflex else (width, 3, p, p)
    yield "vision_model.embeddings.position_embedding.weight", (patches + clip, width)
    yield from _layers("vision_model", vision)
    yield from _norm("vision_model.post_layernorm", width)
    if clip:
        yield "vision_model.embeddings.class_embedding", (width,)
        yield from _norm("vision_model.pre_layrnorm", width)
        yield "visual_projection.weight", (config["projection_dim"], width)
        yield "text_projection.weight", (config["projection_dim"], words)
        yield "logit_scale", ()
    else:
        yield f"{patch}.bias", (width,)
        yield from _linear("text_model.head", text["projection_size"], words)
        head = "vision_model.head"
        yield f"{head}.probe", (1, 1, width)
        yield f"{head}.attention.in_proj_weight", (3 * width, width)
        yield f"{head}.attention.in_proj_bias", (3 * width,)
        yield from _linear(f"{head}.attention.out_proj", width, width)
        yield from _norm(f"{head}.layernorm", width)
        yield from _mlp(f"{head}.mlp", width, vision["intermediate_size"])
        yield "logit_scale", (1,)
        yield "logit_bias", (1,)


def random_tensors(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns float32 parameters under the names and in the layouts of transformers' PyTorch model."""
    rng = np.random.default_rng(seed)
    return {name: random_values(rng, name, shape) for name, shape in sorted(_shapes(config))}


def random_values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the values of one parameter, which depend on its kind."""
    noise = rng.standard_normal(shape, np.float32)
    norm = any(part in name for part in ("norm", "ln_", "layrnorm"))
    if len(shape) <= 1:
        center = float(norm and name.endswith("weight"))
        return np.asarray(np.float32(center) + np.float32(0.2) * noise, np.float32)
    if "embed" in name and "patch" not in name:
        return np.float32(0.7) * noise
    return noise * np.float32(np.prod(shape[1:]) ** -0.5)


def save_random_checkpoint(directory: Path, config: Config, seed: int = 0) -> Config:
    """Writes config.json and model.safetensors, and returns the configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config, seed)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return config


def random_tower(directory: Path, config: Config) -> tuple[Any, Any]:
    """Writes a random checkpoint, and returns its parameters and configuration as the library reads them."""
    from bliss_jax.models.checkpoint import read_config
    from bliss_jax.models.weights import load_params

    save_random_checkpoint(directory, config)
    read = read_config(directory, "float32")
    return load_params(directory, read)[0], read


def split_into_shards(directory: Path, shards: int = 4, stem: str = "model") -> list[Path]:
    """Replaces model.safetensors by shards and their index, and returns the shards."""
    tensors = load_file(directory / "model.safetensors")
    names, files, weight_map = sorted(tensors), [], {}
    for index in range(shards):
        file = directory / f"{stem}-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        save_file(part, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file.name)
        files.append(file)
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def random_inputs(config: Config, n: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels [n, size, size, 3] and tokens [n, context] with an end of text in each row.

    The end of text is the largest id, which both of CLIP's conventions recognise.
    """
    rng = np.random.default_rng(seed)
    vision, text = config["vision_config"], config["text_config"]
    size = vision["image_size"]
    pixels = rng.standard_normal((n, size, size, 3), np.float32)
    return pixels, random_tokens(text["vocab_size"], text["max_position_embeddings"], n, rng)


def random_tokens(vocab_size: int, length: int, n: int, rng) -> np.ndarray:
    """Returns tokens [n, length]; the last id of the vocabulary ends each row at its own position."""
    tokens = rng.integers(3, vocab_size - 1, (n, length)).astype(np.int32)
    for row, end in enumerate(np.linspace(5, length - 1, n).astype(int)):
        tokens[row, end:] = vocab_size - 1
    return tokens


def save_clip_tokenizer(directory: Path, words: str = "abcdefghijklmnopqrstuvwxyz") -> None:
    """Writes a CLIP tokenizer over single letters, whose last id is the end of text."""
    letters = [*words, *(letter + "</w>" for letter in words)]
    vocabulary = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')


def save_preprocessor(directory: Path, size: int, **fields) -> None:
    """Writes a preprocessor_config.json in the form that OpenAI's checkpoints have."""
    config = {
        "crop_size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": size,
    } | fields
    (directory / "preprocessor_config.json").write_text(json.dumps(config))


def save_tiny_clip(directory: Path, seed: int = 0, **kwargs) -> Config:
    """Writes a complete tiny CLIP: weights, configuration, tokenizer and preprocessing."""
    text = {"vocab_size": 54, "eos_token_id": 53, "max_position_embeddings": 16}
    config = clip_config(text=text, **kwargs)
    save_random_checkpoint(directory, config, seed)
    save_clip_tokenizer(directory)
    save_preprocessor(directory, config["vision_config"]["image_size"])
    return config


def save_siglip_tokenizer(directory: Path, sentences, vocab_size: int) -> bytes:
    """Writes SigLIP's tokenizer over a small sentencepiece model, and returns that model.

    The special ids are those of the published model.
    """
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    fields = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return model.getvalue()


def save_tiny_siglip(directory: Path, seed: int = 0) -> Config:
    """Writes a complete tiny SigLIP: weights, configuration, tokenizer and preprocessing."""
    config = save_random_checkpoint(directory, siglip_config(), seed)
    save_siglip_tokenizer(directory, ["a cat", "a dog", "the photo"] * 9, 24)
    size = {"height": 32, "width": 32}
    fields = {"image_processor_type": "SiglipImageProcessor", "size": size, "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    return config


# --- With PyTorch --------------------------------------------------------------------------------


def torch_model(directory: Path):
    """Returns transformers' PyTorch model of a checkpoint, in float32 with plain attention."""
    import torch
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def torch_embeddings(model, pixels, tokens) -> tuple[np.ndarray, np.ndarray]:
    """Returns the unit-norm image and text embeddings that transformers' PyTorch model computes."""
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2),
        )
    return out.image_embeds.numpy(), out.text_embeds.numpy()
