"""Records small outputs of other implementations, to which the quick tests hold this library.

    python tests/support/record_oracles.py [GROUP ...]        writes tests/data/oracles/GROUP.npz

The quick tests run without PyTorch. They write a random checkpoint with NumPy, which is the same in every
environment (see `random_checkpoints`), and compare the towers with the outputs recorded here. A test marked
`torch` records the outputs again and compares them with the files.

The group `transformers` needs PyTorch. The group `open_clip` also needs `pip install open_clip_torch`.
Each file holds arrays only, no pickled objects. Its entry `versions` is a JSON string with the versions of
the packages that computed it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from random_checkpoints import (
    Config,
    clip_config,
    published_clip_config,
    published_siglip_config,
    random_inputs,
    save_random_checkpoint,
    siglip_config,
    torch_embeddings,
    torch_model,
)

ORACLES = Path(__file__).parents[1] / "data" / "oracles"
PACKAGES = ("torch", "transformers", "tokenizers", "Pillow", "numpy", "open_clip_torch", "timm")
GELU = {"hidden_act": "gelu", "layer_norm_eps": 0.1}
WIDE = {"hidden_size": 48, "projection_size": 32}

TOWERS: dict[str, Config] = {
    "clip-quick_gelu": clip_config(),
    # An image of 37 pixels has a border that is narrower than a patch.
    "clip-gelu": clip_config(text=GELU, vision=GELU | {"image_size": 37}, projection_dim=40),
    "clip-eos-2": clip_config(text={"eos_token_id": 2}),
    "clip-eos-7": clip_config(text={"eos_token_id": 7}),
    "clip-b32-thin": published_clip_config("B/32", layers=1, vision={"image_size": 64}),
    "siglip": siglip_config(),
    "siglip-text-width": siglip_config(text=WIDE),
    "siglip-base-thin": published_siglip_config(layers=1, vision={"image_size": 64}),
}
"""Checkpoints of fixed resolution that the group `transformers` records."""


def tower_inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels and tokens for which the outputs of a tower are recorded."""
    pixels, tokens = random_inputs(TOWERS[name], n=3)
    if name.startswith("clip-eos"):
        # Id 7 occurs twice: convention 2 pools at the largest id, convention 7 at the first 7.
        tokens[:, 3] = tokens[:, 9] = 7
    return pixels, tokens


def tiny_model_inputs() -> tuple[np.ndarray, list[str]]:
    """Returns images and texts for the model that ships with the library."""
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), np.uint8)
    return images, ["This is a photo of a black chess king", "", "two gemini, in a field of noise"]


def record_tiny_model() -> dict[str, np.ndarray]:
    """Computes pixels, token ids and embeddings of the shipped model with transformers alone."""
    from importlib.resources import files

    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPTokenizer

    directory = Path(str(files("bliss_jax.models") / "tiny"))
    images, texts = tiny_model_inputs()
    processor = CLIPImageProcessor.from_pretrained(directory)
    pixels = processor([Image.fromarray(x) for x in images], return_tensors="np")["pixel_values"]
    tokenizer = CLIPTokenizer.from_pretrained(directory)
    tokens = np.asarray(
        tokenizer(texts, padding="max_length", max_length=77)["input_ids"], np.int32
    )
    pixels = np.asarray(pixels).transpose(0, 2, 3, 1)
    image, text = torch_embeddings(torch_model(directory), pixels, tokens)
    return {"tiny/image": image, "tiny/text": text, "tiny/tokens": tokens}


def record_transformers() -> dict[str, np.ndarray]:
    """Computes the outputs of transformers' PyTorch models."""
    arrays = {}
    for name, config in TOWERS.items():
        with tempfile.TemporaryDirectory() as directory:
            save_random_checkpoint(Path(directory), config)
            image, text = torch_embeddings(torch_model(Path(directory)), *tower_inputs(name))
        arrays |= {f"{name}/image": image, f"{name}/text": text}
    return arrays | record_tiny_model()


GROUPS: dict[str, Callable[[], dict[str, np.ndarray]]] = {"transformers": record_transformers}


@cache
def recorded(group: str) -> dict[str, np.ndarray]:
    """Returns the recorded arrays of a group."""
    with np.load(ORACLES / f"{group}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def versions() -> str:
    """Returns the versions of the packages that compute the outputs, as JSON."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return json.dumps(found)


def main(groups: list[str]) -> None:
    """Records the given groups, or all groups."""
    ORACLES.mkdir(parents=True, exist_ok=True)
    for group in groups or GROUPS:
        arrays = GROUPS[group]() | {"versions": np.array(versions())}
        np.savez_compressed(ORACLES / f"{group}.npz", **arrays)
        size = (ORACLES / f"{group}.npz").stat().st_size
        print(f"{group}: {len(arrays)} arrays, {size} bytes, {versions()}")


if __name__ == "__main__":
    main(sys.argv[1:])
