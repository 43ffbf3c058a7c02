"""Random checkpoints in OpenCLIP's layout, written with NumPy from a seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from random_checkpoints import Config, random_values
from safetensors.numpy import save_file

WIDTH, LAYERS, PATCH, SIZE, DIM = 32, 2, 8, 32, 24
TIMM_PATCH, TIMM_SIZE = 16, 64
TINY_TIMM: dict[str, Any] = {
    "embed_dim": WIDTH,
    "depth": LAYERS,
    "num_heads": 2,
    "img_size": TIMM_SIZE,
}
"""Arguments that make a model of timm tiny. The test puts the same sizes into `open_clip.TIMM_SIZES`."""
TIMM_NAMES = {False: "vit_base_patch16_siglip_224", True: "vit_so400m_patch16_siglip_256"}
"""Models of timm with the exact and the approximate GELU."""


def open_clip_config(*, quick_gelu: bool = False, text: Config | None = None) -> Config:
    """Returns the open_clip_config.json of a tiny CLIP."""
    sizes = {"width": WIDTH, "layers": LAYERS}
    vision = sizes | {"image_size": SIZE, "patch_size": PATCH, "head_width": 16}
    words = sizes | {"heads": 2, "context_length": 20, "vocab_size": 64}
    model = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": words | (text or {})}
    if quick_gelu:
        model["quick_gelu"] = True
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": std}}


def open_clip_siglip_config(*, tanh: bool) -> Config:
    """Returns the open_clip_config.json of a tiny SigLIP, or of a SigLIP 2 with `tanh`."""
    text: Config = {
        "context_length": 16,
        "vocab_size": 64,
        "hf_tokenizer_name": "timm/tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": WIDTH,
        "heads": 2,
        "layers": LAYERS,
        "mlp_ratio": 3.7362,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    if tanh:
        text["act_kwargs"] = {"approximate": "tanh"}
    vision = {
        "image_size": TIMM_SIZE,
        "timm_model_name": TIMM_NAMES[tanh],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    model = {"embed_dim": WIDTH, "init_logit_bias": -10, "custom_text": True}
    half = [0.5, 0.5, 0.5]
    return {
        "model_cfg": model | {"vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": half, "std": half, "interpolation": "bicubic"}
        | {"resize_mode": "squash"},
    }


def timm_sizes(tanh: bool) -> dict[str, int]:
    """Returns the sizes of the tiny timm model, in the form of `open_clip.TIMM_SIZES`."""
    inner = int(WIDTH * 3.7362) if tanh else 4 * WIDTH
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": inner,
    }


def _pair(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _blocks(prefix: str, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(LAYERS):
        block = f"{prefix}transformer.resblocks.{index}"
        yield from _pair(f"{block}.ln_1", WIDTH)
        yield from _pair(f"{block}.ln_2", WIDTH)
        yield f"{block}.attn.in_proj_weight", (3 * WIDTH, WIDTH)
        yield f"{block}.attn.in_proj_bias", (3 * WIDTH,)
        yield from _pair(f"{block}.attn.out_proj", WIDTH, WIDTH)
        yield from _pair(f"{block}.mlp.c_fc", inner, WIDTH)
        yield from _pair(f"{block}.mlp.c_proj", WIDTH, inner)


def _shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes of the parameters of OpenCLIP's model."""
    model = config["model_cfg"]
    text, patches = model["text_cfg"], (SIZE // PATCH) ** 2
    prefix = "text." if model.get("custom_text") else ""
    yield f"{prefix}token_embedding.weight", (text["vocab_size"], WIDTH)
    yield f"{prefix}positional_embedding", (text["context_length"], WIDTH)
    yield from _blocks(prefix, int(WIDTH * text.get("mlp_ratio", 4)))
    yield from _pair(f"{prefix}ln_final", WIDTH)
    yield "logit_scale", ()
    if not prefix:
        yield "text_projection", (WIDTH, DIM)
        yield "visual.proj", (WIDTH, DIM)
        yield "visual.class_embedding", (WIDTH,)
        yield "visual.positional_embedding", (patches + 1, WIDTH)
        yield "visual.conv1.weight", (WIDTH, 3, PATCH, PATCH)
        yield from _pair("visual.ln_pre", WIDTH)
        yield from _pair("visual.ln_post", WIDTH)
        yield from _blocks("visual.", 4 * WIDTH)
        return
    yield "logit_bias", ()
    yield from _pair("text.text_projection", WIDTH, WIDTH)
    tanh = model["vision_cfg"]["timm_model_name"] == TIMM_NAMES[True]
    inner, trunk = timm_sizes(tanh)["intermediate_size"], "visual.trunk"
    yield f"{trunk}.pos_embed", (1, (TIMM_SIZE // TIMM_PATCH) ** 2, WIDTH)
    yield from _pair(f"{trunk}.patch_embed.proj", WIDTH, 3, TIMM_PATCH, TIMM_PATCH)
    for index in range(LAYERS):
        block = f"{trunk}.blocks.{index}"
        yield from _pair(f"{block}.norm1", WIDTH)
        yield from _pair(f"{block}.norm2", WIDTH)
        yield from _pair(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        yield from _pair(f"{block}.attn.proj", WIDTH, WIDTH)
        yield from _pair(f"{block}.mlp.fc1", inner, WIDTH)
        yield from _pair(f"{block}.mlp.fc2", WIDTH, inner)
    yield from _pair(f"{trunk}.norm", WIDTH)
    pool = f"{trunk}.attn_pool"
    yield f"{pool}.latent", (1, 1, WIDTH)
    yield from _pair(f"{pool}.q", WIDTH, WIDTH)
    yield from _pair(f"{pool}.kv", 2 * WIDTH, WIDTH)
    yield from _pair(f"{pool}.proj", WIDTH, WIDTH)
    yield from _pair(f"{pool}.norm", WIDTH)
    yield from _pair(f"{pool}.mlp.fc1", inner, WIDTH)
    yield from _pair(f"{pool}.mlp.fc2", WIDTH, inner)


def save_open_clip_checkpoint(
    directory: Path, config: Config, name: str = "open_clip_model.safetensors", seed: int = 0
) -> None:
    """Writes open_clip_config.json and the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {key: random_values(rng, key, shape) for key, shape in sorted(_shapes(config))}
    save_file(tensors, directory / name, metadata={"format": "pt"})
