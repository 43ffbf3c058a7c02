"""Tokenizer of `bliss-jax/tiny`: a byte-level BPE as in CLIP, trained on captions.

As in OpenAI's tokenizer, text is converted to lower case and divided into words, digits and punctuation. A
word is a sequence of bytes, the last of which has the suffix `</w>`. The vocabulary consists of 256 bytes,
256 final bytes, the merges, a start token and an end token, so every text has token ids. The library
`tokenizers` computes the merges, and transformers reads the files in the same way as those of
`openai/clip-vit-base-patch16`.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

START, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: Iterable[str], merges: int, context_length: int) -> dict[str, str]:
    """Trains the tokenizer and returns the content of its files by name.

    Args:
        captions: Texts in which pairs are counted.
        merges: Maximum number of merges.
        context_length: Context length of the text tower, which transformers reads.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix=LAST))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        # The trainer also counts the final letters that it saw, so this is an upper bound.
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=LAST,
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    pairs = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(byte + LAST for byte in alphabet), *map("".join, pairs), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    description = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length}
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs),
        "tokenizer_config.json": json.dumps({**description, **special}, indent=2),
    }


def write_tokenizer(directory: Path, files: dict[str, str]) -> int:
    """Writes the files and returns the size of the vocabulary."""
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")
    return len(json.loads(files["vocab.json"]))
