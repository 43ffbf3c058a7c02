"""From texts to token ids, int32 [n, context], with the tokenizer that a checkpoint brings.

The tokenizing is transformers' (the fast tokenizer wherever the family has one). Added here are
the cleaning that the models were trained with where transformers leaves it out, padding on the
right to the context, and a refusal of texts that do not fit.

- CLIP: HTML entities are resolved twice, blanks of any kind collapsed, letters lower-cased, then
  byte-level BPE between a start and an end token. These are the ids of OpenAI's `simple_tokenizer`
  with one exception: OpenAI's first step, `ftfy.fix_text`, repairs damaged Unicode. Of it, only
  the composition of accents (NFC) happens here. Texts that ftfy would change have other ids: curly
  quotation marks, ligatures, full-width letters, control characters, wrongly decoded UTF-8.
- SigLIP: lower-cased, ASCII punctuation removed, sentencepiece, an end token.
- SigLIP 2: lower-cased, Gemma's BPE, an end token. transformers lower-cases for the variable-
  resolution model only; training did so for all.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.siglip import SiglipConfig

# What a tokenizer can be made of: any one of these groups of files.
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


def clean_clip(text: str) -> str:
    """OpenAI's cleaning after `ftfy`: entities resolved twice, blanks collapsed, lower case."""
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def lower_case(text: str) -> str:
    """Lower case, letter by letter: unlike `str.lower` blind to a sigma's place in its word.

    That is how the normaliser of transformers' `Siglip2Tokenizer` does it.
    """
    return "".join(letter.lower() for letter in text)


def unchanged(text: str) -> str:
    """The text itself: for tokenizers that clean by themselves."""
    return text


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of transformers, bound to one model's context and vocabulary.

    Attributes:
        backend: The tokenizer of transformers; it adds start and end tokens.
        context_length: Tokens per text, with start, end and padding.
        vocab_size: Rows of the model's embedding table.
        clean: What is done to a text first.
    """

    backend: Any
    context_length: int
    vocab_size: int
    clean: Callable[[str], str] = unchanged

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Token ids of each text, padded on the right to the context.

        Args:
            texts: Any number of texts. The empty text is start and end alone.
            truncate: Cut texts that are too long (the end token stays) instead of refusing them.

        Raises:
            ValueError: `texts` is one string; a text is too long; an id is outside the vocabulary.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a sequence of strings, got the one string {texts!r}")
        rows = self._encode([self.clean(text) for text in texts], truncate)
        tokens = np.full((len(rows), self.context_length), self.backend.pad_token_id, np.int32)
        for text, row, ids in zip(texts, tokens, rows, strict=True):
            if len(ids) > self.context_length:
                raise ValueError(
                    f"the text {_shortened(text)} has {len(ids)} tokens, more than the context of "
                    f"{self.context_length}; shorten it or pass truncate=True"
                )
            if max(ids, default=0) >= self.vocab_size:
                raise ValueError(
                    f"the text {_shortened(text)} has the token id {max(ids)}, but the model's "
                    f"vocabulary ends at {self.vocab_size - 1}: tokenizer and weights do not match"
                )
            row[: len(ids)] = ids
        return tokens

    def _encode(self, texts: list[str], truncate: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.backend(
            texts,
            truncation=truncate,
            max_length=self.context_length if truncate else None,
            verbose=False,
        )
        return encoded["input_ids"]


def _shortened(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[:length] + "…")


def load_tokenizer(directory: Path, config: CLIPConfig | SiglipConfig) -> Tokenizer:
    """The tokenizer in a checkpoint's directory.

    Raises:
        ValueError: The directory holds no tokenizer, or it cannot be read.
    """
    from transformers import AutoTokenizer

    # transformers 5 makes up a tokenizer of three tokens where it finds none of these.
    if not any(all((directory / file).is_file() for file in files) for files in TOKENIZER_FILES):
        raise ValueError(
            f"no tokenizer in {directory}: expected {' or '.join(map(' and '.join, TOKENIZER_FILES))}"
        )
    try:
        backend = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        # Its readers raise whatever their parsers raise, bare Exception included.
        raise ValueError(f"no tokenizer can be read from {directory}: {error}") from error
    if isinstance(config, CLIPConfig):
        clean = clean_clip
    elif type(backend).__name__ == "SiglipTokenizer":
        clean = unchanged
    else:
        clean = lower_case
    return Tokenizer(
        backend=backend,
        context_length=config.text.max_position_embeddings,
        vocab_size=config.text.vocab_size,
        clean=clean,
    )
