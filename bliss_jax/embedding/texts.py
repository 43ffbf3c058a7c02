"""Embeds texts in blocks, which are cached like shards of images."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bliss_jax.embedding.encoder import AnyEncoder, encode_texts, encoder_key
from bliss_jax.embedding.gather import gather_shards
from bliss_jax.embedding.progress import Progress
from bliss_jax.embedding.shards import Shard, Span, spans

_TEXTS_AT_ONCE = 4096


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
    key = {"what": "texts", "model": encoder_key(model), "truncate": truncate}

    def content() -> str:
        return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()

    def embed(todo: Sequence[Span], report: Progress) -> Iterator[tuple[Span, Shard]]:
        for span in todo:
            some = list(texts[slice(*span)])
            embedded = encode_texts(model, some, truncate=truncate)
            report(len(some))
            yield span, Shard(embedded, np.arange(*span, dtype=np.int32))

    blocks = tuple(spans(len(texts), _TEXTS_AT_ONCE))
    return gather_shards(
        blocks, f"texts-{model.name}", key, content, cache, embed, progress
    ).embeddings
