"""Randomly initialised checkpoints of real layer shapes, made by transformers' PyTorch models.

Every parameter is drawn so that it matters: layer norms are not 1, biases are not 0, and weights
are large enough for the layers to dominate the residual stream.
"""

from pathlib import Path

import numpy as np

# Widths, heads and patches of the published models; the depth is the test's choice.
VISION = {
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
TEXT = {
    "B/32": {"hidden_size": 512, "num_attention_heads": 8},
    "B/16": {"hidden_size": 512, "num_attention_heads": 8},
    "L/14": {"hidden_size": 768, "num_attention_heads": 12},
    "L/14-336": {"hidden_size": 768, "num_attention_heads": 12},
    "H/14": {"hidden_size": 1024, "num_attention_heads": 16},
}
PROJECTION = {"B/32": 512, "B/16": 512, "L/14": 768, "L/14-336": 768, "H/14": 1024}


def clip_model(
    size: str = "B/32", *, layers: int = 2, text=None, vision=None, seed: int = 0, **top
):
    """A random `CLIPModel` of one of the published widths."""
    from transformers import CLIPConfig, CLIPModel

    def tower(sizes, extra):
        hidden = sizes["hidden_size"]
        return {"num_hidden_layers": layers, "intermediate_size": 4 * hidden, **sizes, **extra}

    config = CLIPConfig(
        text_config=tower(TEXT[size], {"vocab_size": 1000, "eos_token_id": 999, **(text or {})}),
        vision_config=tower(VISION[size], vision or {}),
        **{"projection_dim": PROJECTION[size], **top},
    )
    return randomised(CLIPModel(config), seed)


def tiny_clip_model(seed: int = 0, *, text=None, vision=None, **top):
    """A random `CLIPModel` small enough for tests that are not about numbers."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return clip_model(
        text={**small, "vocab_size": 64, "eos_token_id": 63, **(text or {})},
        vision={**small, "image_size": 32, "patch_size": 8, **(vision or {})},
        **{"projection_dim": 24, **top},
        seed=seed,
    )


def siglip_model(*, layers: int = 2, text=None, vision=None, seed: int = 0):
    """A random `SiglipModel` with the widths of SigLIP base (those of SigLIP 2 base as well)."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        text_config={"num_hidden_layers": layers, "vocab_size": 1000, **(text or {})},
        vision_config={"num_hidden_layers": layers, **(vision or {})},
    )
    return randomised(SiglipModel(config), seed)


def tiny_siglip_model(seed: int = 0, *, text=None, vision=None):
    """A random `SiglipModel` small enough for tests that are not about numbers."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return siglip_model(
        text={**small, "vocab_size": 64, "max_position_embeddings": 16, **(text or {})},
        vision={**small, "image_size": 32, "patch_size": 8, **(vision or {})},
        seed=seed,
    )


def randomised(model, seed: int):
    """The model with every parameter drawn anew, in evaluation mode, with plain attention."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(center + 0.2 * noise)
            elif "embedding" in name and parameter.ndim == 2:
                parameter.copy_(0.7 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
    model.set_attn_implementation("eager")
    return model.eval()


def random_inputs(model, n: int = 3, seed: int = 1):
    """Pixels [n, size, size, 3] and tokens [n, context], each row with its own end of text."""
    rng = np.random.default_rng(seed)
    vision, text = model.config.vision_config, model.config.text_config
    pixels = rng.normal(size=(n, vision.image_size, vision.image_size, 3)).astype(np.float32)
    length = text.max_position_embeddings
    tokens = rng.integers(3, text.vocab_size - 1, (n, length)).astype(np.int32)
    for row, end in enumerate(np.linspace(5, length - 1, n).astype(int)):
        # The largest id, which is the end of text in both of CLIP's conventions.
        tokens[row, end:] = text.vocab_size - 1
    return pixels, tokens


def torch_embeddings(model, pixels, tokens):
    """What transformers' PyTorch model computes: unit-norm image and text embeddings."""
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2),
        )
    return out.image_embeds.numpy(), out.text_embeds.numpy()


def save_clip_tokenizer(directory: Path, words: str = "abcdefghijklmnopqrstuvwxyz") -> None:
    """A CLIP tokenizer over single letters, with the end of text as the last of its ids."""
    import json

    letters = [*words, *(letter + "</w>" for letter in words)]
    vocabulary = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')


def save_preprocessor(directory: Path, size: int, **fields) -> None:
    """A preprocessor_config.json as OpenAI's checkpoints have it."""
    import json

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


def save_tiny_clip(directory: Path, seed: int = 0, **kwargs):
    """A complete tiny CLIP checkpoint: weights, configuration, tokenizer, preprocessing."""
    text = {"vocab_size": 54, "eos_token_id": 53, "max_position_embeddings": 16}
    model = tiny_clip_model(seed, text=text, **kwargs)
    model.save_pretrained(directory)
    save_clip_tokenizer(directory)
    save_preprocessor(directory, model.config.vision_config.image_size)
    return model
