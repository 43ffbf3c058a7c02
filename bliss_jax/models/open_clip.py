"""Checkpoints in OpenCLIP's layout: `open_clip_config.json` and the names of OpenCLIP's parameters.

Three kinds of model are read: CLIP with a vision transformer, with GELU or quick GELU; SigLIP and SigLIP 2,
whose vision tower is a model of timm (`timm_model_name`). Repositories of timm and LAION have this layout.
The preprocessing is OpenCLIP's: `resize_mode` "shortest" crops the centre, "squash" scales both sides.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig, FirstEosTextConfig
from bliss_jax.models.layers import Dtype, VisionConfig
from bliss_jax.models.layout import OPEN_CLIP_CONFIG, config_fields
from bliss_jax.models.preprocessing import STATS, Geometry, Preprocessing
from bliss_jax.models.siglip import SiglipConfig, SiglipTextConfig
from bliss_jax.models.tensors import Tensor

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
"""Repository of CLIP's tokenizer. OpenCLIP saves this tokenizer with models that name none."""

TIMM_SIZES: dict[str, dict[str, int]] = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"intermediate_size": 4096},
    "so400m": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16}
    | {"intermediate_size": 4304},
    "giantopt": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 16}
    | {"intermediate_size": 6144},
}
"""Sizes of timm's `vit_SIZE_patchN_siglip_PIXELS`, from `timm/models/vision_transformer.py` of timm 1.0."""

_TANH = re.compile(r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_\d+")
"""Models of timm with the tanh approximation of GELU. The others have the exact GELU."""

# OpenCLIP's names as those of transformers. The rules are applied in this order.
_RULES = [
    (r"^text\.", ""),
    (r"^(token_embedding\.weight)$", r"text_model.embeddings.\1"),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.kernel"),
    (r"^text_projection\.(weight|bias)$", r"text_model.head.\1"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.trunk\.blocks\.", "vision_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (
        r"^visual\.(positional_embedding|trunk\.pos_embed)$",
        "vision_model.embeddings.position_embedding.weight",
    ),
    (r"^visual\.(conv1|trunk\.patch_embed\.proj)\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.(ln_post|trunk\.norm)\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.kernel"),
    (r"^visual\.trunk\.attn_pool\.latent$", "vision_model.head.probe"),
    (r"^visual\.trunk\.attn_pool\.(q|kv)\.", r"vision_model.head.attention.\1_proj."),
    (r"^visual\.trunk\.attn_pool\.proj\.", "vision_model.head.attention.out_proj."),
    (r"^visual\.trunk\.attn_pool\.norm\.", "vision_model.head.layernorm."),
    (r"^visual\.trunk\.attn_pool\.mlp\.", "vision_model.head.mlp."),
    (r"(layers\.\d+)\.(?:ln_|norm)([12])\.", r"\1.layer_norm\2."),
    (r"(layers\.\d+)\.attn\.qkv\.(weight|bias)$", r"\1.self_attn.in_proj_\2"),
    (r"(layers\.\d+)\.attn\.(?:out_)?proj\.", r"\1.self_attn.out_proj."),
    (r"(layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
]


def renamed(tensor: Tensor) -> Iterator[Tensor]:
    """Yields a tensor of OpenCLIP under its name in transformers, with stacked keys and values split."""
    name = tensor.name
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    if ".kv_proj." in name:
        yield from tensor.blocks(tuple(name.replace(".kv_", f".{part}_") for part in "kv"))
    elif len(tensor.shape) == 3 and name.endswith("position_embedding.weight"):
        yield tensor.changed(name, tensor.shape[1:], lambda values: values[0])
    else:
        yield tensor.renamed(name)


def _sections(directory: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the sections for the model, its vision tower and its text tower."""
    fields = config_fields(directory / OPEN_CLIP_CONFIG)
    model = fields.get("model_cfg", fields)
    try:
        return model, dict(model["vision_cfg"]), dict(model["text_cfg"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / OPEN_CLIP_CONFIG} is not valid: it has no {error} for the model"
        ) from error


def read_config(directory: Path, dtype: Dtype) -> CLIPConfig | SiglipConfig:
    """Reads the configuration in `open_clip_config.json`.

    Raises:
        ValueError: The file is not valid, or describes a model that is not supported.
    """
    model, vision, text = _sections(directory)
    where = directory / OPEN_CLIP_CONFIG
    try:
        if vision.get("timm_model_name"):
            return _siglip(where, model, vision, text, dtype)
        return _clip(where, model, vision, text, dtype)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} is not valid: {error!r}") from error


def _clip(where: Path, model: dict, vision: dict, text: dict, dtype: Dtype) -> CLIPConfig:
    _only(
        where,
        {"text_cfg": text},
        {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        | {"mlp_ratio": 4.0, "hf_tokenizer_name": "", "tokenizer_kwargs": None, "eos_id": 2},
        {"pool_type": ("argmax", "eos"), "no_causal_mask": (False,), "proj_bias": (False,)}
        | {
            "proj_type": ("linear",),
            "embed_cls": (False,),
            "output_tokens": (False,),
            "pad_id": None,
        }
        | {"norm_kwargs": None, "act_kwargs": (None, {}), "ls_init_value": (None,)},
    )
    _only(
        where,
        {"vision_cfg": vision},
        {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16}
        | {"mlp_ratio": 4.0, "patch_dropout": 0.0},
        {"pool_type": ("tok",), "no_ln_pre": (False,), "attentional_pool": (False,)}
        | {"final_ln_after_pool": (False,), "output_tokens": (False,), "norm_kwargs": None}
        | {"act_kwargs": (None, {}), "ls_init_value": (None,), "pos_embed_type": ("learnable",)},
    )
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    width, words = vision.get("width", 768), text.get("width", 512)
    sizes = VisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=vision.get("layers", 12),
        num_attention_heads=width // vision.get("head_width", 64),
        hidden_act=act,
        layer_norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
    )
    # Without "eos" OpenCLIP pools at the largest id, which is this class's meaning of 2.
    pool_eos = text.get("pool_type") == "eos"
    kind = FirstEosTextConfig if pool_eos else CLIPTextConfig
    tower = kind(
        hidden_size=words,
        intermediate_size=int(words * text.get("mlp_ratio", 4.0)),
        num_hidden_layers=text.get("layers", 12),
        num_attention_heads=text.get("heads", 8),
        hidden_act=act,
        layer_norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        vocab_size=text.get("vocab_size", 49408),
        max_position_embeddings=text.get("context_length", 77),
        eos_token_id=text.get("eos_id", 2) if pool_eos else 2,
    )
    return CLIPConfig(sizes, tower, model["embed_dim"], dtype)


def _siglip(where: Path, model: dict, vision: dict, text: dict, dtype: Dtype) -> SiglipConfig:
    name = vision["timm_model_name"]
    found = re.fullmatch(r"vit_(\w+?)_patch(\d+)_siglip_(\d+)", name)
    if not found or found[1] not in TIMM_SIZES or vision.get("timm_pool") != "map":
        raise ValueError(
            f"{where}: the vision tower {name!r} of timm with timm_pool {vision.get('timm_pool')!r} is not "
            f"supported; expected timm_pool 'map' and vit_SIZE_patchN_siglip_PIXELS with one of the sizes "
            f"{list(TIMM_SIZES)}"
        )
    _only(
        where,
        {"text_cfg": text},
        {"context_length": 77, "vocab_size": 0, "width": 512, "heads": 8, "layers": 12}
        | {"mlp_ratio": 4.0, "hf_tokenizer_name": "", "tokenizer_kwargs": None},
        {"pool_type": ("last",), "no_causal_mask": (True,), "proj_bias": (True,)}
        | {"proj_type": ("linear",), "embed_cls": (False,), "norm_kwargs": None}
        | {"act_kwargs": (None, {}, {"approximate": "tanh"}), "output_tokens": (False,)},
    )
    _only(
        where, {"vision_cfg": {"timm_proj": vision.get("timm_proj")}}, {}, {"timm_proj": ("none",)}
    )
    words = text["width"]
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    tower = SiglipTextConfig(
        hidden_size=words,
        intermediate_size=int(words * text.get("mlp_ratio", 4.0)),
        num_hidden_layers=text.get("layers", 12),
        num_attention_heads=text.get("heads", 8),
        hidden_act="gelu_pytorch_tanh" if tanh else "gelu",
        layer_norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["context_length"],
        projection_size=model["embed_dim"],
    )
    sizes = VisionConfig(
        **TIMM_SIZES[found[1]],
        hidden_act="gelu_pytorch_tanh" if _TANH.fullmatch(name) else "gelu",
        layer_norm_eps=1e-6,
        image_size=vision.get("image_size", int(found[3])),
        patch_size=int(found[2]),
    )
    return SiglipConfig(sizes, tower, dtype)


def _only(
    where: Path, section: dict[str, dict], free: dict[str, Any], fixed: dict[str, tuple | None]
) -> None:
    """Refuses options that are not supported: `free` ones take any value, `fixed` ones the listed values."""
    for title, options in section.items():
        for option, value in options.items():
            allowed = fixed.get(option)
            if option in free or (option in fixed and allowed is None) or value in (allowed or ()):
                continue
            expected = f"expected one of {list(allowed)}" if allowed else "which is unknown"
            raise ValueError(
                f"{where}: {title} has {option} = {value!r}, {expected}; this model is not supported"
            )


def read_preprocessing(directory: Path, config: CLIPConfig | SiglipConfig) -> Preprocessing:
    """Reads the preprocessing in `open_clip_config.json`, with OpenCLIP's defaults.

    Raises:
        ValueError: The file asks for a preprocessing that is not supported.
    """
    where = directory / OPEN_CLIP_CONFIG
    fields = config_fields(where).get("preprocess_cfg") or {}
    geometries: dict[str, Geometry] = {"shortest": "crop", "squash": "squash"}
    mode, resample = fields.get("resize_mode", "shortest"), fields.get("interpolation", "bicubic")
    size = config.vision.image_size
    asked = fields.get("size", size)
    if mode not in geometries or resample not in ("bicubic", "bilinear"):
        raise ValueError(
            f"{where} asks for resize_mode {mode!r} and interpolation {resample!r}; expected 'shortest' or "
            "'squash', and 'bicubic' or 'bilinear'"
        )
    if asked not in (size, [size, size]):
        raise ValueError(f"{where} asks for images of size {asked!r}, but the tower needs {size}")
    mean, std = (
        tuple(fields.get(key, value))
        for key, value in zip(("mean", "std"), STATS["clip"], strict=True)
    )
    return Preprocessing(size, geometries[mode], resample, mean, std)


def tokenizer_options(directory: Path) -> tuple[str, str]:
    """Returns the repository of a model's tokenizer and the name of its text cleaning."""
    text = _sections(directory)[2]
    name = text.get("hf_tokenizer_name")
    if not name:
        return DEFAULT_TOKENIZER, "lower"
    return name, (text.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
