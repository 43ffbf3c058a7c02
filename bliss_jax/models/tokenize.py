"""Conversion of texts to token ids, int32 [n, context], with a checkpoint's tokenizer.

transformers tokenizes, with the fast tokenizer if the family has one. This module adds the text cleaning
of the models' training if transformers omits it, padding on the right to the context, and an error for
texts that are too long.

- CLIP: HTML entities are resolved twice, whitespace is collapsed, and letters are lower-cased. Byte-level
  BPE between a start and an end token follows. The ids are those of OpenAI's `simple_tokenizer` with one
  exception. OpenAI's first step, `ftfy.fix_text`, repairs damaged Unicode; of its repairs, only the
  composition of accents (NFC) is applied here. The ids differ for other texts that ftfy changes: curly
  quotation marks, ligatures, full-width letters, control characters and wrongly decoded UTF-8.
- SigLIP: letters are lower-cased and ASCII punctuation is removed. sentencepiece and an end token follow.
- SigLIP 2: letters are lower-cased. Gemma's BPE and an end token follow. transformers lower-cases only for
  the variable-resolution model, but all models were trained on lower-cased text.
- MetaCLIP 2: texts are not cleaned. XLM-V's sentencepiece between a start and an end token follows.
- Checkpoints of OpenCLIP with `hf_tokenizer_name`: texts are cleaned as their configuration says.
"""

import html
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from bliss_jax.models import open_clip
from bliss_jax.models.checkpoint import uses_open_clip
from bliss_jax.models.clip import CLIPConfig, FirstEosTextConfig
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.hub import TOKENIZER_FILES, fetch_tokenizer, has_tokenizer
from bliss_jax.models.layout import config_fields
from bliss_jax.models.quiet import import_transformers


def clean_clip(text: str) -> str:
    """Applies OpenAI's text cleaning after `ftfy`.

    It resolves HTML entities twice, collapses whitespace and converts to lower case.
    """
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def lower_case(text: str) -> str:
    """Converts a text to lower case, each letter by itself.

    Unlike `str.lower` it does not treat a sigma at the end of a word in another way. The normaliser of
    transformers' `Siglip2Tokenizer` does the same.
    """
    return "".join(letter.lower() for letter in text)


def collapse_whitespace(text: str) -> str:
    """Applies OpenCLIP's cleaning "whitespace" after `ftfy`: resolves entities, collapses whitespace."""
    return " ".join(html.unescape(html.unescape(text)).split())


def canonicalize(text: str) -> str:
    """Applies OpenCLIP's cleaning "canonicalize" after `ftfy`.

    It resolves entities, turns underscores into blanks, removes ASCII punctuation, converts to lower case and
    collapses whitespace.
    """
    text = html.unescape(html.unescape(text)).strip().replace("_", " ")
    text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


def unchanged(text: str) -> str:
    """Returns the text itself. It is used for tokenizers that clean texts themselves."""
    return text


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of transformers with the context and the vocabulary of one model.

    Attributes:
        backend: The tokenizer of transformers. It adds start and end tokens.
        context_length: Number of tokens per text, including start, end and padding.
        vocab_size: Number of rows of the model's embedding table.
        clean: Function that is applied to each text before it is tokenized.
    """

    backend: Any
    context_length: int
    vocab_size: int
    clean: Callable[[str], str] = unchanged

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Returns the token ids of each text, padded on the right to the context.

        Args:
            texts: Any number of texts. An empty text gives the start and end tokens only.
            truncate: Whether to truncate texts that are too long (the end token is kept) instead of
                raising an error.

        Raises:
            ValueError: `texts` is a single string, a text is too long, or an id is outside the vocabulary.
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


TEXT_CLEANING = "text_cleaning.json"
"""File with the name of the text cleaning, which `save_checkpoint` writes."""

CLEANINGS = {
    "whitespace": collapse_whitespace,
    "lower": clean_clip,
    "canonicalize": canonicalize,
    "letters": lower_case,
    "none": unchanged,
}
"""Text cleanings by name. The first three are those of OpenCLIP's `tokenizer_kwargs`."""


def cleaning_name(clean: Callable[[str], str]) -> str:
    """Returns the name of a text cleaning in `CLEANINGS`.

    Raises:
        ValueError: The function is not one of them.
    """
    for name, function in CLEANINGS.items():
        if function is clean:
            return name
    raise ValueError(
        f"the text cleaning {clean!r} is not one of {list(CLEANINGS)} and cannot be saved"
    )


def load_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """Loads the tokenizer in a checkpoint's directory.

    A checkpoint of OpenCLIP may name a repository instead, whose tokenizer is downloaded.

    Raises:
        ValueError: There is no tokenizer, or the tokenizer cannot be read.
    """
    cleaning = config_fields(directory / TEXT_CLEANING).get("clean")
    if uses_open_clip(directory):
        name, cleaning = open_clip.tokenizer_options(directory)
        if not has_tokenizer(directory):
            directory = fetch_tokenizer(name)
    if cleaning is not None and cleaning not in CLEANINGS:
        raise ValueError(
            f"{directory}: unknown text cleaning {cleaning!r}, expected one of {list(CLEANINGS)}"
        )
    # Without these files transformers 5 would return a tokenizer of three tokens.
    if not has_tokenizer(directory):
        raise ValueError(
            f"no tokenizer in {directory}: expected {' or '.join(map(' and '.join, TOKENIZER_FILES))}"
        )
    # A detector that scores images needs no tokenizer, and importing transformers takes a second.
    clip = isinstance(config, CLIPConfig)
    backend = DeferredBackend(directory) if clip else _read_backend(directory)
    return Tokenizer(
        backend=backend,
        context_length=config.text.max_position_embeddings,
        vocab_size=config.text.vocab_size,
        clean=CLEANINGS[cleaning] if cleaning else _cleaning(config, backend),
    )


def _read_backend(directory: Path) -> Any:
    """Reads the tokenizer of transformers in a directory.

    Raises:
        ValueError: The tokenizer cannot be read.
    """
    auto = import_transformers().AutoTokenizer
    try:
        return auto.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        # transformers' readers pass on every error of their parsers, including a bare Exception.
        raise ValueError(f"no tokenizer can be read from {directory}: {error}") from error


class DeferredBackend:
    """The tokenizer of transformers in a directory, which is read when it is first used.

    Its first use raises ValueError if the tokenizer cannot be read.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    @cached_property
    def _backend(self) -> Any:
        return _read_backend(self._directory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickle and copy look up methods that this class does not have
            raise AttributeError(name)
        return getattr(self._backend, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """Tokenizes texts."""
        return self._backend(*texts, **options)


def _cleaning(config: ModelConfig, backend: Any) -> Callable[[str], str]:
    """Returns the text cleaning of a model in transformers' layout."""
    if isinstance(config, CLIPConfig):
        return unchanged if isinstance(config.text, FirstEosTextConfig) else clean_clip
    return unchanged if type(backend).__name__ == "SiglipTokenizer" else lower_case
