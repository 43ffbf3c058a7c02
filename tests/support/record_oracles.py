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
    naflex_config,
    published_clip_config,
    published_siglip_config,
    random_inputs,
    random_tokens,
    save_random_checkpoint,
    siglip_config,
    torch_embeddings,
    torch_model,
)
from random_open_clip import (
    TINY_TIMM,
    open_clip_config,
    open_clip_siglip_config,
    save_open_clip_checkpoint,
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
    "metaclip2": clip_config(model_type="metaclip_2", text={"eos_token_id": 2}),
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
    if name == "metaclip2":
        tokens[:, 4] = tokens[:, 9] = 2
    return pixels, tokens


NAFLEX = naflex_config()
INTERPOLATED = {
    name: clip_config() if name == "clip" else siglip_config() for name in ("clip", "siglip")
}
"""Checkpoints for 32 pixels whose position tables are interpolated."""
IMAGE_SIZES = (48, 24)


def naflex_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns patches, grids and tokens for the tiny NaFlex model."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((3, 20, 192), np.float32)
    grid = np.array([[4, 5], [2, 3], [7, 1]], np.int32)
    values[np.arange(20)[None] >= grid.prod(1)[:, None]] = 0
    return values, grid, random_tokens(64, 16, 3, rng)


def naflex_images() -> list[np.ndarray]:
    """Returns images of several aspect ratios."""
    rng = np.random.default_rng(4)
    shapes = [(40, 40), (30, 90), (17, 8), (48, 60)]
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


def record_naflex() -> dict[str, np.ndarray]:
    """Computes embeddings of the tiny NaFlex model, and the patches of its image processor."""
    import torch

    values, grid, tokens = naflex_inputs()
    mask = (np.arange(20)[None] < grid.prod(1)[:, None]).astype(np.int32)
    with tempfile.TemporaryDirectory() as directory:
        save_random_checkpoint(Path(directory), NAFLEX)
        model = torch_model(Path(directory))
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(tokens).long(),
                pixel_values=torch.tensor(values),
                pixel_attention_mask=torch.tensor(mask),
                spatial_shapes=torch.tensor(grid).long(),
            )
    arrays = {
        "naflex/image": out.image_embeds.numpy(),
        "naflex/text": out.text_embeds.numpy(),
    }
    processor = naflex_processor()
    for index, image in enumerate(naflex_images()):
        made = processor([image], return_tensors="np")
        shape = np.asarray(made["spatial_shapes"][0])
        pixels = np.asarray(made["pixel_values"][0])[: int(shape.prod())]
        arrays[f"naflex/grid{index}"] = shape.astype(np.int32)
        # Whole numbers from 0 to 255 before normalisation.
        arrays[f"naflex/patches{index}"] = np.rint((pixels + 1) * 127.5).astype(np.uint8)
    return arrays


def naflex_processor():
    """Returns transformers' image processor of NaFlex that resizes with Pillow, for 8-pixel patches."""
    try:
        from transformers.models.siglip2.image_processing_pil_siglip2 import (
            Siglip2ImageProcessorPil as Processor,
        )
    except ImportError:
        from transformers import Siglip2ImageProcessor as Processor
    return Processor(patch_size=8, max_num_patches=20)


def record_interpolated() -> dict[str, np.ndarray]:
    """Computes image embeddings at other sizes with transformers' `interpolate_pos_encoding`."""
    import torch

    arrays = {}
    for name, config in INTERPOLATED.items():
        with tempfile.TemporaryDirectory() as directory:
            save_random_checkpoint(Path(directory), config)
            model = torch_model(Path(directory))
        for size in IMAGE_SIZES:
            pixels = torch.tensor(interpolated_pixels(size)).permute(0, 3, 1, 2)
            with torch.no_grad():
                out = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
                out = model.visual_projection(out) if name == "clip" else out
            arrays[f"interpolated/{name}/{size}"] = (out / out.norm(dim=-1, keepdim=True)).numpy()
    return arrays


def interpolated_pixels(size: int) -> np.ndarray:
    """Returns pixels [2, size, size, 3]."""
    return np.random.default_rng(size).standard_normal((2, size, size, 3), np.float32)


OPEN_CLIP: dict[str, Config] = {
    "vit": open_clip_config(),
    "vit-quickgelu": open_clip_config(quick_gelu=True),
    "vit-worldwide": open_clip_config(text={"pool_type": "eos", "eos_id": 2}),
    "siglip": open_clip_siglip_config(tanh=False),
    "siglip2": open_clip_siglip_config(tanh=True),
}
"""Checkpoints in OpenCLIP's layout that the group `open_clip` records."""


def open_clip_inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels and tokens for a checkpoint in OpenCLIP's layout."""
    rng = np.random.default_rng(5)
    text = OPEN_CLIP[name]["model_cfg"]["text_cfg"]
    tokens = random_tokens(text["vocab_size"], text["context_length"], 3, rng)
    if name == "vit-worldwide":
        tokens[:, 4] = tokens[:, 9] = 2
    size = OPEN_CLIP[name]["model_cfg"]["vision_cfg"]["image_size"]
    return rng.standard_normal((3, size, size, 3), np.float32), tokens


def record_open_clip() -> dict[str, np.ndarray]:
    """Computes the outputs of OpenCLIP, whose timm towers are made tiny."""
    import timm
    import torch
    from open_clip.factory import create_model
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
    from safetensors.torch import load_file

    create = timm.create_model

    def create_tiny(name, **options):
        return create(name, **TINY_TIMM, **options)

    arrays = {}
    for name, config in OPEN_CLIP.items():
        with tempfile.TemporaryDirectory() as directory:
            save_open_clip_checkpoint(Path(directory), config)
            timm.create_model = create_tiny
            try:
                model = create_model(f"local-dir:{directory}", load_weights=False)
            finally:
                timm.create_model = create
            model.load_state_dict(load_file(Path(directory) / "open_clip_model.safetensors"))
        pixels, tokens = open_clip_inputs(name)
        with torch.no_grad():
            image = model.eval().encode_image(
                torch.tensor(pixels).permute(0, 3, 1, 2), normalize=True
            )
            text = model.encode_text(torch.tensor(tokens).long(), normalize=True)
        arrays |= {f"{name}/image": image.numpy(), f"{name}/text": text.numpy()}
    tokenizer = SimpleTokenizer()
    ids = [tokenizer.encode(tokenizer.clean_fn(text)) for text in TEXTS]
    arrays["tokens"] = np.array([json.dumps(row) for row in ids])
    for kind in ("whitespace", "lower", "canonicalize"):
        arrays[f"clean/{kind}"] = np.array([get_clean_fn(kind)(text) for text in TEXTS])
    return arrays


TEXTS = (
    "a photo of a cat",
    "",
    "  Two   blanks,\tA TAB and\nlines  ",
    "It's we'll they're I'VE; 2024-01-02 snake_case!",
    "&lt;b&gt; &amp;eacute; Déjà vu, CAFÉ",
    "日本語 テキスト 한국어 العربية",
    "!!!???...;;; #@$%^&*()_+",
)
"""Texts whose Unicode `ftfy` does not change."""


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
    return arrays | record_tiny_model() | record_naflex() | record_interpolated()


GROUPS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "transformers": record_transformers,
    "open_clip": record_open_clip,
}


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
