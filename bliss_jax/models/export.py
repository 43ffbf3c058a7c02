"""Parameters written as a checkpoint in transformers' CLIP format: the inverse of `weights`.

    config.json                 sizes of both towers
    model.safetensors           tensors under the names and in the layouts of PyTorch's `CLIPModel`
    preprocessor_config.json    size, geometry, filter and statistics

With the tokenizer's files beside them, `bliss_jax.load_model` and transformers'
`CLIPModel.from_pretrained` read the directory.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bliss_jax.models.checkpoint import RESAMPLE
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.preprocessing import Preprocessing
from bliss_jax.models.weights import SAFETENSORS, Params, flatten
from bliss_jax.storage import replacing

_VISION = ("image_size", "patch_size")
_TEXT = ("vocab_size", "max_position_embeddings", "eos_token_id")
_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


def save_checkpoint(
    directory: Path,
    config: CLIPConfig,
    params: Params,
    preprocessing: Preprocessing,
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes the three files above; the directory must exist.

    Args:
        directory: Where; files of the same names are replaced.
        config: Of a CLIP.
        params: Its parameters, as `CLIPConfig.module().init` makes them.
        preprocessing: What its images go through; the geometry is "crop".
        dtype: Of the tensors in the file. Values that float16 cannot hold are refused.

    Raises:
        ValueError: The geometry is another, or a parameter is not finite in `dtype`.
    """
    from safetensors.numpy import save

    if preprocessing.geometry != "crop":
        raise ValueError(f"CLIP's processor crops, got the geometry {preprocessing.geometry!r}")
    tensors = {}
    for name, leaf in flatten(params).items():
        name, tensor = to_torch(name, np.asarray(leaf))
        with np.errstate(over="ignore"):  # said below, with the tensor's name
            tensors[name] = tensor.astype(dtype).copy(order="C")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is not finite in {dtype}")
    files = {
        "config.json": _as_json(config_fields(config)),
        "preprocessor_config.json": _as_json(processor_fields(preprocessing)),
        # transformers asks for this word before it opens a file.
        SAFETENSORS: save(tensors, metadata={"format": "pt"}),
    }
    for name, content in files.items():
        with replacing(directory / name) as file:
            file.write(content)


def to_torch(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """One parameter under its PyTorch name and in its PyTorch layout; see `weights.to_flax`."""
    path, _, leaf = name.rpartition("/")
    torch_path = path.replace("/", ".")
    if leaf == "kernel":
        layout = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        return f"{torch_path}.weight", layout
    if leaf in ("scale", "embedding"):
        return f"{torch_path}.weight", tensor
    return f"{torch_path}.{leaf}" if path else leaf, tensor


def config_fields(config: CLIPConfig) -> dict[str, Any]:
    """The content of `config.json`."""

    def tower(part: Any, own: tuple[str, ...]) -> dict[str, Any]:
        fields = {name: getattr(part, name) for name in (*_TOWER, *own)}
        return fields | {"projection_dim": config.projection_dim}

    vocabulary = {
        "bos_token_id": config.text.vocab_size - 2,
        "pad_token_id": config.text.eos_token_id,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "vision_config": {"model_type": "clip_vision_model"} | tower(config.vision, _VISION),
        "text_config": {"model_type": "clip_text_model"} | tower(config.text, _TEXT) | vocabulary,
    }


def processor_fields(preprocessing: Preprocessing) -> dict[str, Any]:
    """The content of `preprocessor_config.json`."""
    size = preprocessing.size
    numbers = {name: number for number, name in RESAMPLE.items()}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": numbers[preprocessing.resample],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _as_json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
