"""Dictionaries: lists of phrases that stand for "any text", with provenance.

    imagenet1k      the lemmas of the 1,000 ImageNet-1k synsets in WordNet 3.0, in synset order:
                    1,860 phrases, 1,842 distinct, nothing removed; the dictionary of BLISS
    wordnet-nouns   all 119,034 noun lemmas of WordNet 3.0, in the order in which `data.noun` first
                    names them; "China" and "china" are two of them
    unicode-names   the names of the 5,575 characters of DejaVu Sans that leave a mark by themselves, in
                    lower case, in the order of their codes; the dictionary of the data set `glyphs`
    a text file     one phrase per line

The packaged lists are made by `experiments/dictionaries/make_dictionaries.py`; WordNet's licence lies beside
them. Phrases may repeat: a repeated phrase counts as often as it occurs, as in the reference.

Sources: WordNet 3.0, Princeton University 2006; Goodge et al., "When Text and Images Don't Mix", BMVC
2024, whose dictionary is `imagenet1k`.
"""

import difflib
import gzip
import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

_DESCRIPTIONS = {
    "imagenet1k": "lemmas of the 1,000 ImageNet-1k synsets in WordNet 3.0; the dictionary of BLISS",
    "wordnet-nouns": "all noun lemmas of WordNet 3.0",
    "unicode-names": "names of the characters of DejaVu Sans; the dictionary of glyphs",
}
_PACKAGED = tuple(_DESCRIPTIONS)


def dictionary_names() -> tuple[str, ...]:
    """The names that `load_dictionary` knows."""
    return _PACKAGED


def describe_dictionary(name: str) -> str:
    """One line on a dictionary of `dictionary_names()`."""
    return _DESCRIPTIONS[name]


def load_dictionary(name_or_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The phrases of a packaged dictionary, or of a text file.

    A string that is one of `dictionary_names()` means that dictionary; write "./imagenet1k" for a
    file of the same name.

    A text file is UTF-8, with or without a byte order mark, and holds one phrase per line. Blanks
    around a phrase are removed and blank lines are skipped. Order is kept, and so are duplicates.

    Args:
        name_or_path: a name, or the path of a text file.

    Returns:
        The phrases, in order.

    Raises:
        ValueError: neither a known name nor a file (near misses are listed); or the file is not
            UTF-8, holds control characters (file and line are named), or has no phrase at all.
    """
    if name_or_path in _PACKAGED:
        packed = files("bliss_jax.text").joinpath("data", f"{name_or_path}.txt.gz").read_bytes()
        return tuple(gzip.decompress(packed).decode("utf-8").splitlines())
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), _PACKAGED)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"no dictionary and no file {str(name_or_path)!r}, expected one of {list(_PACKAGED)} "
            f"or the path of a text file{hint}"
        )
    return _read_phrases(path)


def dictionary_hash(phrases: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of the phrases in order, written as a JSON array without blanks.

    The same in every process and on every machine, and different for any other sequence of strings.
    """
    return hashlib.sha256(json.dumps(list(phrases), separators=(",", ":")).encode()).hexdigest()


def find_overlap(dictionary: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The labels that the dictionary holds too, each with the phrases that equal it.

    A label and a phrase are equal if they are once underscores are blanks and case is folded:
    "African_elephant" equals "African elephant". Of `imagenet1k` this finds no label of CIFAR-10, 25
    of CIFAR-100 and 199 of TinyImageNet.

    Args:
        dictionary: phrases.
        labels: class names.

    Returns:
        For each overlapping label, in the order of `labels`, its phrases in the dictionary's order.
    """
    phrases_by_key: dict[str, list[str]] = {}
    for phrase in dictionary:
        phrases_by_key.setdefault(_comparison_key(phrase), []).append(phrase)
    return {
        label: tuple(phrases_by_key[_comparison_key(label)])
        for label in labels
        if _comparison_key(label) in phrases_by_key
    }


def exclude_labels(dictionary: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The dictionary without the phrases that equal a label (see `find_overlap`), in order.

    Raises:
        ValueError: nothing is left.
    """
    excluded = {_comparison_key(label) for label in labels}
    rest = tuple(phrase for phrase in dictionary if _comparison_key(phrase) not in excluded)
    if not rest:
        raise ValueError(
            f"excluding {len(labels)} labels leaves none of the {len(dictionary)} phrases"
        )
    return rest


def _comparison_key(text: str) -> str:
    return text.replace("_", " ").casefold()


def _read_phrases(path: Path) -> tuple[str, ...]:
    phrases = []
    content = path.read_bytes().removeprefix("\N{BYTE ORDER MARK}".encode())
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip(" \t\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error.reason})") from None
        control = next((char for char in text if unicodedata.category(char) == "Cc"), None)
        if control is not None:
            raise ValueError(f"{path}, line {number}: control character {control!r} in a phrase")
        phrase = text.strip()
        if phrase:
            phrases.append(phrase)
    if not phrases:
        raise ValueError(f"{path}: no phrase in the file")
    return tuple(phrases)
