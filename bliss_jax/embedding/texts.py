"""Embeds texts and prompts in blocks, which are cached like shards of images."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bliss_jax.embedding.encoder import AnyEncoder, encode_texts, encoder_key
from bliss_jax.embedding.gather import gather_shards
from bliss_jax.embedding.progress import Progress
from bliss_jax.embedding.shards import Shard, Span, spans
from bliss_jax.text import Prompt, fill_prompt, prompt_templates

_TEXTS_AT_ONCE = 4096
_LEAST_NORM = 1e-6
"""Norm of a mean of unit-norm embeddings below which it has no direction but that of rounding errors."""


def embed_texts(
    model: AnyEncoder,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "texts dim"]:
    """Embeds texts, e.g. filled prompts; see `Model.encode_texts`.

    Under `jax.distributed` every process must call this with the same arguments. Blocks of 4,096 texts are
    divided among the processes like shards of images: one process embeds a dictionary of a few thousand
    phrases, and all processes embed one of 80,000.

    Args:
        model: A `Model` or another `Encoder`.
        texts: At least one text.
        truncate: Whether to truncate texts that are longer than the tokenizer context.
        cache: Folder of the cache, as for `embed_images`; a block is a shard.
        progress: Called after each block with its number of texts.

    Raises:
        ValueError: There are no texts, or a text is longer than the context and `truncate` is False.
        OSError: A shard cannot be written; shards that were written before are kept.
    """
    if not texts:
        raise ValueError("texts: expected at least one text, got none")

    def encode(some: Sequence[str]) -> np.ndarray:
        return encode_texts(model, some, truncate=truncate)

    key = {"what": "texts", "model": encoder_key(model), "truncate": truncate}
    return _in_blocks(model, texts, _TEXTS_AT_ONCE, key, encode, cache, progress)


def embed_prompts(
    model: AnyEncoder,
    prompt: Prompt,
    labels: Sequence[str],
    *,
    allow_repeats: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "labels dim"]:
    """Embeds labels or phrases in a prompt of one or several templates.

        embedding(label) = u / |u|,   u = mean over templates of e(template with label)

    e is the encoder's unit-norm embedding. Averaging the 80 templates "clip-80" is the prompt ensemble of
    CLIP (Radford et al. 2021, section 3.1.4). With one template the result is that of `embed_texts`.

    The texts of all templates are encoded together, about 4,096 at a time, and only their means are kept:
    memory grows with the number of labels, not with the number of texts.

    Args:
        model: A `Model` or another `Encoder`.
        prompt: A template, the name of a set of templates, or several of them; see `prompt_templates`.
        labels: Labels or dictionary phrases.
        allow_repeats: Whether a label may occur more than once, as in `fill_prompt`.
        cache: Folder of the cache, as for `embed_texts`.
        progress: Called after each block with its number of labels.

    Raises:
        ValueError: The prompt or the labels are invalid (see `prompt_templates` and `fill_prompt`), a text is
            longer than the context, or the embeddings of the templates of a label cancel out.
        OSError: A shard cannot be written; shards that were written before are kept.
    """
    templates = prompt_templates(prompt)
    filled = fill_prompt(templates[0], labels, allow_repeats=allow_repeats)
    if len(templates) == 1:
        return embed_texts(model, filled, cache=cache, progress=progress)

    def mean(some: Sequence[str]) -> np.ndarray:
        texts = [text for t in templates for text in fill_prompt(t, some, allow_repeats=True)]
        embedded = encode_texts(model, texts).reshape(len(templates), len(some), -1)
        # Float64 sums hardly depend on the order of the templates.
        means = embedded.mean(axis=0, dtype=np.float64)
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        if norms.min() < _LEAST_NORM:
            label = some[int(norms.argmin())]
            raise ValueError(
                f"{model.name}: the embeddings of the templates of {label!r} have the mean 0, so the prompt "
                "has no direction; use other templates"
            )
        return (means / norms).astype(np.float32)

    key = {"what": "prompts", "model": encoder_key(model), "templates": list(templates)}
    at_once = max(1, _TEXTS_AT_ONCE // len(templates))
    return _in_blocks(model, labels, at_once, key, mean, cache, progress)


def _in_blocks(
    model: AnyEncoder,
    texts: Sequence[str],
    at_once: int,
    key: Mapping[str, Any],
    encode: Callable[[Sequence[str]], np.ndarray],
    cache: Path | None,
    progress: Progress | None,
) -> Float[np.ndarray, "texts dim"]:
    """Embeds blocks of texts, divided among the processes, and gathers them."""

    def content() -> str:
        return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()

    def embed(todo: Sequence[Span], report: Progress) -> Iterator[tuple[Span, Shard]]:
        for span in todo:
            some = list(texts[slice(*span)])
            embedded = encode(some)
            report(len(some))
            yield span, Shard(embedded, np.arange(*span, dtype=np.int32))

    blocks = tuple(spans(len(texts), at_once))
    return gather_shards(
        blocks, f"texts-{model.name}", key, content, cache, embed, progress
    ).embeddings
