"""The configuration and the preprocessing that a checkpoint's files state.

transformers reads `config.json` and fills in its defaults, unless the file states all fields of a CLIP model. Code in
a repository is never run (`trust_remote_code=False`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bliss_jax.models import open_clip
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.layers import Dtype, VisionConfig
from bliss_jax.models.layout import (
    CONFIG,
    FAMILIES,
    OPEN_CLIP_CONFIG,
    check_architecture,
    config_fields,
    directory_layout,
)
from bliss_jax.models.naflex import NaflexConfig, naflex_preprocessing
from bliss_jax.models.preprocessing import STATS, Preprocessing, Resample
from bliss_jax.models.quiet import import_transformers
from bliss_jax.models.siglip import SiglipConfig

RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}
"""Supported filters by the numbers that Pillow gives them."""


def uses_open_clip(directory: Path) -> bool:
    """Whether a directory is read in OpenCLIP's layout; see `layout`."""
    if not (directory / OPEN_CLIP_CONFIG).is_file():
        return False
    if config_fields(directory / CONFIG).get("model_type") not in FAMILIES:
        return True
    try:
        return directory_layout(directory).kind == "open_clip"
    except ValueError:  # no weights yet
        return False


def read_config(directory: Path, dtype: Dtype) -> ModelConfig:
    """Reads the configuration in `config.json` or `open_clip_config.json`.

    Raises:
        ValueError: The file is absent, not valid, or describes a model of an unsupported family.
    """
    check_architecture(directory)
    if uses_open_clip(directory):
        return open_clip.read_config(directory, dtype)
    given = config_fields(directory / CONFIG)
    family = _CONFIGS[given["model_type"]]
    if (stated := _stated_config(given)) is not None:
        return family.from_transformers(stated, dtype)
    auto = import_transformers().AutoConfig
    try:
        config = auto.from_pretrained(directory, trust_remote_code=False)
    # transformers 5 checks fields with errors of its own, which are plain Exceptions.
    except Exception as error:
        raise ValueError(f"{directory / CONFIG} is not valid: {error}") from error
    return family.from_transformers(config, dtype)


_CONFIGS: dict[str, type[CLIPConfig] | type[SiglipConfig] | type[NaflexConfig]] = {
    "clip": CLIPConfig,
    "metaclip_2": CLIPConfig,
    "siglip": SiglipConfig,
    "siglip2": NaflexConfig,
}
"""The configuration of each model type, as FAMILIES lists them."""


def _stated_config(given: Mapping[str, Any]) -> SimpleNamespace | None:
    """Returns the fields of a CLIP model as `config.json` states them, or None if one is omitted or of a wrong type.

    transformers fills in omitted fields and explains wrong ones, but importing it takes a second.
    """
    if given["model_type"] != "clip" or type(given.get("projection_dim")) is not int:
        return None
    parts = {}
    for name, kind in (("vision", VisionConfig), ("text", CLIPTextConfig)):
        part = given.get(f"{name}_config")
        if not isinstance(part, dict) or given.get(f"{name}_config_dict") is not None:
            return None
        parts[f"{name}_config"] = SimpleNamespace(**part)
        expected = {field.name: field.type for field in dataclasses.fields(kind)}
        if any(type(part.get(field)) is not wanted for field, wanted in expected.items()):
            return None
    return SimpleNamespace(**{**given, **parts})


def read_preprocessing(directory: Path, config: ModelConfig) -> Preprocessing:
    """Reads the preprocessing in `preprocessor_config.json` or `open_clip_config.json`.

    Missing fields have the defaults of the family's image processor in transformers.

    Raises:
        ValueError: The file does not exist, or asks for a preprocessing that is not supported. The message
            names the fields.
    """
    if uses_open_clip(directory) and not isinstance(config, NaflexConfig):
        return open_clip.read_preprocessing(directory, config)
    file, given = processor_fields(directory)
    size, is_clip = config.vision.image_size, isinstance(config, CLIPConfig)
    mean, std = STATS["clip" if is_clip else "siglip"]
    fields = {
        "do_resize": True,
        "do_center_crop": is_clip,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 2 if isinstance(config, NaflexConfig) else 3,
        "size": size,
        "crop_size": size,
        "image_mean": mean,
        "image_std": std,
    } | {name: value for name, value in given.items() if value is not None}

    supported: dict[str, list[Any]] = {
        "do_resize": [True],
        "do_rescale": [True],
        "do_normalize": [True],
        "rescale_factor": [1 / 255],
        "resample": list(RESAMPLE),
    }
    crops = bool(fields["do_center_crop"])
    if not isinstance(config, NaflexConfig):
        supported |= _supported_sizes(fields, size, crops, is_clip)
    wrong = [f"{name} {fields[name]!r}" for name, ok in supported.items() if fields[name] not in ok]
    if wrong:
        raise ValueError(
            f"{file} asks for a preprocessing that is not supported with a tower for {size} x {size} "
            f"pixels: {', '.join(wrong)}"
        )
    preprocessing = Preprocessing(
        size=size,
        geometry="crop" if crops and not _squashes(fields, size) else "squash",
        resample=RESAMPLE[fields["resample"]],
        mean=tuple(fields["image_mean"]),
        std=tuple(fields["image_std"]),
    )
    if isinstance(config, NaflexConfig):
        patch = fields.get("patch_size", config.vision.patch_size)
        if patch != config.vision.patch_size:
            raise ValueError(
                f"{file} has patch_size {patch}, but {CONFIG} has {config.vision.patch_size}"
            )
        return naflex_preprocessing(preprocessing, patch, fields.get("max_num_patches", 256))
    return preprocessing


def _square(value: object) -> int | None:
    """Returns the side of a size {"height": n, "width": n}, or None for other values."""
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return value["height"] if value["height"] == value["width"] else None
    return None


def _squashes(fields: Mapping[str, Any], size: int) -> bool:
    """Whether both sides are scaled to the model's size, after which a centre crop has no effect."""
    return _square(fields["size"]) == size


def _supported_sizes(
    fields: Mapping[str, Any], size: int, crops: bool, is_clip: bool
) -> dict[str, list[Any]]:
    square = {"height": size, "width": size}
    # A bare number is the length of the short side to CLIP's processor, and of both sides to SigLIP's.
    number = [size] if crops == is_clip else []
    return {
        "size": [*number, square, *([{"shortest_edge": size}] if crops else [])],
        "crop_size": [size, square] if crops else [fields["crop_size"]],
    }


def processor_fields(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Returns the file with the image processor's fields, and these fields.

    The file is `preprocessor_config.json`, or `processor_config.json` with the section "image_processor",
    which transformers 5 writes.
    """
    file = directory / "preprocessor_config.json"
    newer = directory / "processor_config.json"
    if file.is_file():
        return file, _processor(config_fields, file)
    if newer.is_file():
        return newer, _processor(lambda path: dict(config_fields(path)["image_processor"]), newer)
    raise ValueError(
        f"no preprocessor_config.json in {directory}: the size, crop and statistics of images are unknown"
    )


def _processor(read: Any, file: Path) -> dict[str, Any]:
    try:
        return read(file)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no image processor can be read from {file.parent}: {error!r}") from error


def with_image_size(
    config: ModelConfig, preprocessing: Preprocessing, image_size: int
) -> tuple[ModelConfig, Preprocessing]:
    """Returns configuration and preprocessing for another image size.

    Raises:
        ValueError: The size is not a positive int or smaller than a patch, or the model takes images of
            variable size.
    """
    if isinstance(config, NaflexConfig):
        raise ValueError(
            "image_size: a NaFlex model takes images of any size and resizes its positions for each image; "
            "load it without image_size="
        )
    patch = config.vision.patch_size
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < patch:
        raise ValueError(
            f"image_size must be an int of at least one patch ({patch} pixels), got {image_size!r}"
        )
    vision = dataclasses.replace(config.vision, image_size=image_size)
    return (
        dataclasses.replace(config, vision=vision),
        dataclasses.replace(preprocessing, size=image_size),
    )
