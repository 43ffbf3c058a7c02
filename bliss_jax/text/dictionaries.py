"""Dictionaries: lists of phrases that represent arbitrary text, with their provenance.

    imagenet1k      the lemmas of the 1,000 ImageNet-1k synsets in WordNet 3.0, in synset order:
                    1,860 phrases, 1,842 of them distinct, nothing removed; the dictionary of BLISS
    wordnet-nouns   all 119,034 noun lemmas of WordNet 3.0, in the order of their first occurrence in
                    `data.noun`; "China" and "china" are different lemmas
    wordnet-adjectives
                    all 21,538 adjective lemmas of WordNet 3.0, in the order of their first occurrence in
                    `data.adj`; NegLabel's lexicon has nouns and adjectives
    unicode-names   the names of the 5,575 characters of DejaVu Sans that are visible on their own, in
                    lower case, in the order of their code points; the dictionary of the data set `glyphs`
    a text file     one phrase per line

`experiments/dictionaries/make_dictionaries.py` creates the packaged lists. WordNet's licence is in the same
folder. A phrase may occur several times and then counts as often as it occurs, as in the reference.

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
    "wordnet-adjectives": "all adjective lemmas of WordNet 3.0",
    "unicode-names": "names of the characters of DejaVu Sans; the dictionary of glyphs",
}
_PACKAGED = tuple(_DESCRIPTIONS)


def dictionary_names() -> tuple[str, ...]:
    """Returns the names of the packaged dictionaries."""
    return _PACKAGED


def describe_dictionary(name: str) -> str:
    """Returns a one-line description of a packaged dictionary."""
    return _DESCRIPTIONS[name]


def load_dictionary(name_or_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Loads the phrases of a packaged dictionary or of a text file.

    A string that equals one of `dictionary_names()` selects that dictionary; write "./imagenet1k" for
    a file of the same name.

    A text file is encoded in UTF-8, with or without a byte order mark, and has one phrase per line.
    Whitespace around a phrase is removed and empty lines are skipped. Order and duplicates are kept.

    Args:
        name_or_path: A name from `dictionary_names()`, or the path of a text file.

    Returns:
        The phrases, in order.

    Raises:
        ValueError: The argument is neither a known name nor a file (the message suggests similar
            names); or the file is not UTF-8 or contains a control character (the message gives the
            file and the line), or contains no phrase.
    """
    if name_or_path in _PACKAGED:
        packed = files("bliss_jax.text").joinpath("data", f"{name_or_path}.txt.gz").read_bytes()
        return tuple(gzip.decompress(packed).decode("utf-8").splitlines())
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), _PACKAGED)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"there is no dictionary and no file {str(name_or_path)!r}; expected one of "
            f"{list(_PACKAGED)} or the path of a text file{hint}"
        )
    return _read_phrases(path)


def dictionary_hash(phrases: Sequence[str]) -> str:
    """Returns the SHA-256 (hexadecimal) of the phrases in order, written as a JSON array without spaces.

    The hash is the same in every process and on every machine. Any other sequence of strings has a
    different hash.
    """
    return hashlib.sha256(json.dumps(list(phrases), separators=(",", ":")).encode()).hexdigest()


def find_overlap(dictionary: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Finds the labels that also occur in the dictionary.

    The comparison treats underscores as spaces and ignores case: the label "African_elephant" equals the
    phrase "African elephant". `imagenet1k` contains no label of CIFAR-10, 25 of CIFAR-100 and 199 of
    TinyImageNet.

    Args:
        dictionary: Phrases.
        labels: Class names.

    Returns:
        A mapping from each label found to the phrases that equal it. Labels are in the order of `labels`
        and phrases in the order of the dictionary.
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
    """Removes the phrases that equal a label (see `find_overlap`) and keeps the order of the others.

    Raises:
        ValueError: No phrase remains.
    """
    excluded = {_comparison_key(label) for label in labels}
    rest = tuple(phrase for phrase in dictionary if _comparison_key(phrase) not in excluded)
    if not rest:
        raise ValueError(
            f"excluding {len(labels)} labels removes all {len(dictionary)} phrases of the dictionary"
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
            raise ValueError(
                f"{path}, line {number}: a phrase contains the control character {control!r}"
            )
        phrase = text.strip()
        if phrase:
            phrases.append(phrase)
    if not phrases:
        raise ValueError(f"{path}: the file contains no phrase, expected one per line")
    return tuple(phrases)
