"""A tiny CLIP with random weights, with which every command runs without a download.

The model is untrained: its embeddings are a random function of the pixels and of the bytes of the text,
so results computed with it say nothing about the images. It serves demonstrations and tests.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.layers import Dtype, VisionConfig
from bliss_jax.models.quiet import import_transformers

SEED = 0
START, END = "<|startoftext|>", "<|endoftext|>"


def untrained_config(dtype: Dtype = "float32") -> CLIPConfig:
    """Returns the configuration of the untrained model.

    Images have 32 x 32 pixels in 8 x 8 patches, and texts have up to 128 tokens, one per byte. Both towers
    have width 64 and 2 layers. Embeddings have 64 dimensions.
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    return CLIPConfig(
        vision=VisionConfig(**sizes, image_size=32, patch_size=8),
        text=CLIPTextConfig(**sizes, vocab_size=258, max_position_embeddings=128, eos_token_id=257),
        projection_dim=64,
        dtype=dtype,
    )


def untrained_params(config: CLIPConfig) -> dict[str, Any]:
    """Returns random float32 parameters of any CLIP configuration, generated from a fixed seed."""
    size = config.vision.image_size
    pixels, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 1), jnp.int32)
    return _initialiser(config)(jax.random.key(SEED), pixels, tokens)["params"]


@cache
def _initialiser(config: CLIPConfig) -> Callable[..., dict[str, Any]]:
    """Returns the compiled initialisation of a configuration; jitting it anew would compile it again."""
    return jax.jit(config.module().init)


def byte_tokenizer() -> Any:
    """Returns a tokenizer with one token per UTF-8 byte (ids 0 to 255), a start (256) and an end (257)."""
    fast = import_transformers().PreTrainedTokenizerFast
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, START, END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, vocabulary[token]) for token in (START, END)],
    )
    return fast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END)
