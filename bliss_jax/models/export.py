"""Models written as checkpoints in transformers' layout: the inverse of `weights` and `checkpoint`.

    config.json                 sizes of both towers
    model.safetensors           tensors under the names and in the layouts of PyTorch's model
    preprocessor_config.json    size, geometry, filter and statistics
    text_cleaning.json          cleaning of texts, if the tokenizer does not imply it
    tokenizer.json, ...         the tokenizer, if one is given

`bliss_jax.load_model` and transformers' `AutoModel.from_pretrained` read the directory.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bliss_jax.models.checkpoint import RESAMPLE
from bliss_jax.models.clip import CLIPConfig, FirstEosTextConfig
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.layout import CONFIG, SAFETENSORS
from bliss_jax.models.naflex import NaflexConfig, NaflexPreprocessing
from bliss_jax.models.preprocessing import Preprocessing
from bliss_jax.models.tensors import flatten
from bliss_jax.models.tokenize import TEXT_CLEANING, Tokenizer, cleaning_name
from bliss_jax.models.weights import Params
from bliss_jax.storage import replacing

_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
_WORDS = ("vocab_size", "max_position_embeddings")


def save_checkpoint(
    directory: Path,
    config: ModelConfig,
    params: Params,
    preprocessing: Preprocessing,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes the files listed above. The directory must exist.

    Args:
        directory: Directory in which files of the same names are replaced.
        config: Configuration of the model.
        params: Its parameters, a tree as `config.module().init` returns it.
        preprocessing: Its preprocessing.
        tokenizer: Its tokenizer (`Model.tokenizer`). Without it the directory needs the tokenizer's files
            before `load_model` can read it.
        dtype: Dtype of the tensors in the file.

    Raises:
        ValueError: A parameter is not finite in `dtype`.
    """
    from safetensors.numpy import save

    tensors = {}
    for name, tensor in torch_tensors(params).items():
        with np.errstate(over="ignore"):  # the error below names the tensor
            tensors[name] = tensor.astype(dtype).copy(order="C")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is not finite in {dtype}")
    files = {
        CONFIG: _as_json(config_fields(config)),
        "preprocessor_config.json": _as_json(processor_fields(preprocessing)),
        # transformers requires this metadata before it reads a file.
        SAFETENSORS: save(tensors, metadata={"format": "pt"}),
    }
    if tokenizer is not None:
        tokenizer.backend.save_pretrained(directory)
        files[TEXT_CLEANING] = _as_json({"clean": cleaning_name(tokenizer.clean)})
    for name, content in files.items():
        with replacing(directory / name) as file:
            file.write(content)


def torch_tensors(params: Params) -> dict[str, np.ndarray]:
    """Returns all parameters under their PyTorch names, with SigLIP's pooling attention stacked."""
    tensors = dict(to_torch(name, np.asarray(leaf)) for name, leaf in flatten(params).items())
    head = "vision_model.head.attention"
    if f"{head}.q_proj.weight" in tensors:
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{head}.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{head}.in_proj_{kind}"] = np.concatenate(parts)
    return tensors


def to_torch(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns one parameter under its PyTorch name and in its PyTorch layout; see `weights.to_flax`."""
    path, _, leaf = name.rpartition("/")
    torch_path = path.replace("/", ".")
    if leaf == "kernel":
        layout = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        return f"{torch_path}.weight", layout
    if leaf in ("scale", "embedding"):
        return f"{torch_path}.weight", tensor
    return f"{torch_path}.{leaf}" if path else leaf, tensor


def _fields(part: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in (*_TOWER, *names)}


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the content of `config.json`."""
    if isinstance(config, CLIPConfig):
        metaclip_2 = isinstance(config.text, FirstEosTextConfig)
        kind = "metaclip_2" if metaclip_2 else "clip"
        dim = {"projection_dim": config.projection_dim}
        special = {
            "bos_token_id": config.text.vocab_size - 2,
            "pad_token_id": config.text.eos_token_id,
        }
        if metaclip_2:
            special = {"bos_token_id": 0, "pad_token_id": 1}
        vision = _fields(config.vision, ("image_size", "patch_size")) | dim
        text = _fields(config.text, (*_WORDS, "eos_token_id")) | dim | special
        model = {"architectures": ["MetaClip2Model" if metaclip_2 else "CLIPModel"]} | dim
    else:
        naflex = isinstance(config, NaflexConfig)
        kind, sizes = ("siglip2", "num_patches") if naflex else ("siglip", "image_size")
        special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
        vision = _fields(config.vision, (sizes, "patch_size"))
        text = _fields(config.text, (*_WORDS, "projection_size")) | special
        model = {"architectures": ["Siglip2Model" if naflex else "SiglipModel"]}
    return model | {
        "model_type": kind,
        "vision_config": {"model_type": f"{kind}_vision_model"} | vision,
        "text_config": {"model_type": f"{kind}_text_model"} | text,
    }


def processor_fields(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns the content of `preprocessor_config.json`."""
    size = preprocessing.size
    square = {"height": size, "width": size}
    numbers = {name: number for number, name in RESAMPLE.items()}
    if isinstance(preprocessing, NaflexPreprocessing):
        own: dict[str, Any] = {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": preprocessing.patch_size,
            "max_num_patches": preprocessing.max_patches,
        }
    elif preprocessing.geometry == "crop":
        own = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": square,
        }
    else:
        own = {
            "image_processor_type": "SiglipImageProcessor",
            "size": square,
            "do_center_crop": False,
        }
    return own | {
        "do_resize": True,
        "resample": numbers[preprocessing.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _as_json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
