"""Which files a checkpoint consists of, and what its configuration files say.

transformers and huggingface_hub do the finding, fetching and reading of defaults; code that a
repository may carry is never run (`trust_remote_code=False`).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.layers import Dtype
from bliss_jax.models.preprocessing import STATS, Preprocessing, Resample
from bliss_jax.models.siglip import SiglipConfig
from bliss_jax.models.weights import (
    FLAX_MSGPACK,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    has_weights,
    pickle_refused,
)

# Everything but weights: small files, fetched together.
DESCRIPTIONS = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
]
# Pillow's numbers for its filters.
RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}


def fetch(repository: str, revision: str | None) -> Path:
    """Downloads a checkpoint from the Hugging Face Hub, or finds it in the local cache.

    Args:
        repository: Its name there, "owner/name".
        revision: A commit, tag or branch; None is the repository's main branch.

    Returns:
        The snapshot's directory, whose name is the commit.

    Raises:
        ValueError: The repository or revision does not exist, is not accessible, or is not in the
            cache while offline; or it holds no weights but a pickle.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        directory = Path(hf_hub_download(repository, "config.json", revision=revision)).parent
        commit = directory.name
        if not has_weights(directory):
            weights = weight_patterns(
                repository, HfApi().list_repo_files(repository, revision=commit)
            )
            # Weights last: where they are in the cache, everything is.
            for patterns in (DESCRIPTIONS, weights):
                snapshot_download(repository, revision=commit, allow_patterns=patterns)
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        raise ValueError(f"cannot get {repository!r} at revision {revision!r}: {error}") from error
    return directory


def weight_patterns(repository: str, names: Iterable[str]) -> list[str]:
    """Which of a repository's files are its weights, in the order of preference of `weights`."""
    names = set(names)
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SAFETENSORS_INDEX in names:
        return [SAFETENSORS_INDEX, "model-*.safetensors"]
    if FLAX_MSGPACK in names:
        return [FLAX_MSGPACK]
    if any(name.startswith("pytorch_model") for name in names):
        raise ValueError(pickle_refused(repository))
    raise ValueError(
        f"no weights in {repository}: expected {SAFETENSORS}, {SAFETENSORS_INDEX} or {FLAX_MSGPACK}"
    )


def read_config(directory: Path, dtype: Dtype) -> CLIPConfig | SiglipConfig:
    """The configuration in `config.json`, with transformers' defaults for what it leaves out."""
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise ValueError(f"no config.json in {directory}: not a checkpoint of transformers")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    # transformers 5 checks fields with errors of its own, which are no more than Exceptions.
    except Exception as error:
        raise ValueError(f"{directory / 'config.json'} is not valid: {error}") from error
    if config.model_type == "clip":
        return CLIPConfig.from_transformers(config, dtype)
    if config.model_type == "siglip":
        return SiglipConfig.from_transformers(config, dtype)
    raise ValueError(
        f"model type {config.model_type!r} in {directory / 'config.json'}; expected 'clip' or "
        f"'siglip' (which includes SigLIP 2 at fixed resolution)"
    )


def read_preprocessing(directory: Path, config: CLIPConfig | SiglipConfig) -> Preprocessing:
    """The preprocessing that a checkpoint asks for in `preprocessor_config.json`.

    Fields left out have the defaults of transformers' image processor of the family.

    Raises:
        ValueError: There is no such file, or it asks for something that
            `bliss_jax.models.preprocessing` does not do; the message names the fields.
    """
    file, given = processor_fields(directory)
    size, is_clip = config.vision.image_size, isinstance(config, CLIPConfig)
    square = {"height": size, "width": size}
    mean, std = STATS["clip" if is_clip else "siglip"]
    fields = {
        "do_resize": True,
        "do_center_crop": is_clip,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": size,
        "crop_size": size,
        "image_mean": mean,
        "image_std": std,
    } | {name: value for name, value in given.items() if value is not None}

    crops = fields["do_center_crop"]
    # A bare number is the short side to CLIP's processor, both sides to SigLIP's.
    number = [size] if crops == is_clip else []
    supported = {
        "do_resize": [True],
        "do_rescale": [True],
        "do_normalize": [True],
        "rescale_factor": [1 / 255],
        "resample": list(RESAMPLE),
        "size": [*number, {"shortest_edge": size} if crops else square],
        "crop_size": [size, square] if crops else [fields["crop_size"]],
    }
    wrong = [f"{name} {fields[name]!r}" for name, ok in supported.items() if fields[name] not in ok]
    if wrong:
        raise ValueError(
            f"{file} asks for what is not supported with a tower for {size} x {size} pixels: "
            f"{', '.join(wrong)}"
        )
    return Preprocessing(
        size=size,
        geometry="crop" if crops else "squash",
        resample=RESAMPLE[fields["resample"]],
        mean=tuple(fields["image_mean"]),
        std=tuple(fields["image_std"]),
    )


def processor_fields(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """The image processor's fields, and the file they stand in.

    That is `preprocessor_config.json`, or the part "image_processor" of `processor_config.json`,
    which is where transformers 5 saves them.
    """
    file = directory / "preprocessor_config.json"
    newer = directory / "processor_config.json"
    try:
        if file.is_file():
            return file, dict(json.loads(file.read_text()))
        if newer.is_file():
            return newer, dict(json.loads(newer.read_text())["image_processor"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no image processor can be read from {directory}: {error!r}") from error
    raise ValueError(
        f"no preprocessor_config.json in {directory}: the images' size, crop and statistics are "
        f"unknown"
    )
