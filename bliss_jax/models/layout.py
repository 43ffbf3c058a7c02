"""Layouts of checkpoints: the model families that are read, and the files that hold their weights.

A checkpoint has one of two layouts:

- transformers' layout: `config.json` with the model type, and weights in `model.safetensors` (or
  `pytorch_model.safetensors`), in shards listed by an index file, or in `flax_model.msgpack`;
- OpenCLIP's layout: `open_clip_config.json`, and weights in `open_clip_model.safetensors` (or
  `open_clip_pytorch_model.safetensors`).

A repository with both is read in transformers' layout if its `config.json` states a supported model type and
its weights exist in that layout. `pytorch_model.bin` is a pickle, which can run code when it is opened. It is
never read.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
FLAX_MSGPACK = "flax_model.msgpack"
PYTORCH_PICKLE = "pytorch_model.bin"
WEIGHTS = {
    "transformers": (
        SAFETENSORS,
        "pytorch_model.safetensors",
        SAFETENSORS_INDEX,
        "pytorch_model.safetensors.index.json",
        FLAX_MSGPACK,
    ),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
}
"""Weight files of each layout, in the order of preference."""

FAMILIES = {
    "clip": "CLIP",
    "metaclip_2": "MetaCLIP 2",
    "siglip": "SigLIP, and SigLIP 2 at fixed resolution",
    "siglip2": "SigLIP 2 NaFlex",
}
"""Model types of transformers that are read, with the names of their families."""

_OTHERS = {
    "align": "ALIGN",
    "altclip": "AltCLIP",
    "blip": "BLIP",
    "blip-2": "BLIP-2",
    "bridgetower": "BridgeTower",
    "chinese_clip": "Chinese-CLIP",
    "clap": "CLAP",
    "clip_text_model": "a text tower of CLIP without its vision tower",
    "clip_vision_model": "a vision tower of CLIP without its text tower",
    "clipseg": "CLIPSeg",
    "flava": "FLAVA",
    "groupvit": "GroupViT",
    "owlv2": "OWLv2",
    "owlvit": "OWL-ViT",
    "siglip_text_model": "a text tower of SigLIP without its vision tower",
    "siglip_vision_model": "a vision tower of SigLIP without its text tower",
    "vision-text-dual-encoder": "a VisionTextDualEncoder",
    "xclip": "X-CLIP",
}

MIRRORS = {
    "openai/clip-vit-large-patch14-336": "timm/vit_large_patch14_clip_336.openai",
    "facebook/metaclip-b32-400m": "timm/vit_base_patch32_clip_224.metaclip_400m",
    "facebook/metaclip-b16-400m": "timm/vit_base_patch16_clip_224.metaclip_400m",
    "facebook/metaclip-l14-400m": "timm/vit_large_patch14_clip_224.metaclip_400m",
    "facebook/metaclip-b32-fullcc2.5b": "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
    "facebook/metaclip-b16-fullcc2.5b": "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    "facebook/metaclip-l14-fullcc2.5b": "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
    "facebook/metaclip-h14-fullcc2.5b": "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
}
"""Repositories that hold the same model as safetensors, from `open_clip/pretrained.py` of OpenCLIP 3.3."""


class PickleOnlyError(ValueError):
    """The checkpoint holds its weights only as a pickle."""


class Layout(NamedTuple):
    """Layout of a checkpoint.

    Attributes:
        kind: "transformers" or "open_clip".
        weights: Name of the file with the weights, or of the index of their shards.
    """

    kind: Literal["transformers", "open_clip"]
    weights: str

    @property
    def is_index(self) -> bool:
        """Whether the weights are shards that `weights` lists."""
        return self.weights.endswith(".index.json")


def config_fields(file: Path) -> dict[str, Any]:
    """Returns the fields of a JSON configuration file, or no fields if the file does not exist.

    Raises:
        ValueError: The file does not hold a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} is not valid: expected a JSON object, got {fields!r:.60}")
    return fields


def check_architecture(directory: Path) -> None:
    """Refuses a checkpoint of an unsupported family by its configuration files alone.

    Raises:
        ValueError: There is no configuration file, or it describes another family. The message names that
            family and the supported ones.
    """
    if (directory / OPEN_CLIP_CONFIG).is_file():
        return
    if not (directory / CONFIG).is_file():
        raise ValueError(
            f"no {CONFIG} and no {OPEN_CLIP_CONFIG} in {directory}: not a checkpoint of transformers or "
            "OpenCLIP"
        )
    kind = config_fields(directory / CONFIG).get("model_type")
    if kind not in FAMILIES:
        name = f" ({_OTHERS[kind]})" if kind in _OTHERS else ""
        raise ValueError(
            f"{directory / CONFIG}: model type {kind!r}{name} is not supported; {supported_families()}"
        )


def supported_families() -> str:
    """Returns the supported families for an error message."""
    known = ", ".join(f"{kind!r} ({name})" for kind, name in FAMILIES.items())
    return f"expected one of {known}, or a checkpoint of OpenCLIP ({OPEN_CLIP_CONFIG})"


def find_layout(where: str, names: Iterable[str], model_type: object) -> Layout:
    """Returns the layout of a checkpoint.

    Args:
        where: Repository or directory, for messages.
        names: Names of its files.
        model_type: Model type in its config.json.

    Raises:
        PickleOnlyError: The weights exist only as a pickle.
        ValueError: There are no weights.
    """
    names = set(names)
    kinds: list[Literal["transformers", "open_clip"]] = []
    if model_type in FAMILIES or OPEN_CLIP_CONFIG not in names:
        kinds.append("transformers")
    if OPEN_CLIP_CONFIG in names:
        kinds.append("open_clip")
    for kind in kinds:
        for weights in WEIGHTS[kind]:
            if weights in names:
                return Layout(kind, weights)
    if any(name.endswith((".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")) for name in names):
        raise PickleOnlyError(pickle_refused(where, open_clip="open_clip" in kinds))
    expected = [name for kind in kinds for name in WEIGHTS[kind]]
    raise ValueError(f"no weights in {where}: expected one of {', '.join(expected)}")


def directory_layout(directory: Path) -> Layout:
    """Returns the layout of a directory; see `find_layout`."""
    names = [file.name for file in directory.iterdir() if file.is_file()]
    return find_layout(str(directory), names, config_fields(directory / CONFIG).get("model_type"))


def pickle_refused(where: str, *, open_clip: bool = False) -> str:
    """Returns the message that says why a pickle is not loaded and how to convert it."""
    mirror = MIRRORS.get(where)
    instead = f" {mirror} holds the same model as safetensors: load that name." if mirror else ""
    if open_clip:
        how = (
            "with OpenCLIP and PyTorch: `model = open_clip.create_model_from_pretrained("
            f"'hf-hub:{where}', return_transform=False)`, `safetensors.torch.save_file("
            "model.state_dict(), 'DIRECTORY/open_clip_model.safetensors')`, and copy the repository's "
            f"{OPEN_CLIP_CONFIG} and tokenizer files to DIRECTORY"
        )
    else:
        how = (
            f"with transformers and PyTorch: `AutoModel.from_pretrained({where!r}).save_pretrained("
            f"'DIRECTORY')` and `AutoProcessor.from_pretrained({where!r}).save_pretrained('DIRECTORY')`"
        )
    return (
        f"{where} holds its weights only as a pickle (e.g. {PYTORCH_PICKLE}), which can run code when it is "
        f"opened and is never loaded.{instead} To convert it once, if you trust it, run {how}. Then load "
        f"the model from DIRECTORY"
    )


def shard_names(index: Path) -> list[str]:
    """Returns the distinct file names in a safetensors index.

    Raises:
        ValueError: The index is not valid, or a name refers to a file outside its directory.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies outside the directory")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid safetensors index: {error}") from error
    return names


def weight_files(directory: Path) -> list[Path]:
    """Returns the weight files of a checkpoint: one file, or the shards of its index.

    Raises:
        ValueError: There are no weights, only a pickle, or a listed shard is absent.
    """
    layout = directory_layout(directory)
    file = directory / layout.weights
    if not layout.is_index:
        return [file]
    files = [directory / name for name in shard_names(file)]
    missing = [shard.name for shard in files if not shard.is_file()]
    if missing:
        raise ValueError(f"{file} lists files that are absent: {missing}")
    return files


def has_weights(directory: Path) -> bool:
    """Whether a directory holds complete weights in one of the formats that are read."""
    try:
        return bool(weight_files(directory))
    except ValueError:
        return False
