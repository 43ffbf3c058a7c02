"""Nouns and adjectives of WordNet 3.0, read from its files `data.noun` and `data.adj`.

Each line of the file describes one synset (a set of synonyms). The fields are its byte offset, two fields
that are not used here, the number of lemmas in hexadecimal, and each lemma followed by a sense number:

    01440764 05 n 02 tench 0 Tinca_tinca 0 002 @ 01440160 n 0000 #m 01440467 n 0000 | gloss

The byte offset also identifies the synset: ImageNet's identifier (wnid) of this one is n01440764. Lemmas
keep WordNet's spelling and case; underscores are replaced by spaces. Adjectives may end with a syntactic
marker, (a), (p) or (ip), which is removed.

Source: Fellbaum (ed.), WordNet: an electronic lexical database, 1998; format: wndb(5WN).
"""

import re
from collections.abc import Mapping, Sequence

_MARKER = re.compile(r"\((a|p|ip)\)$")
"""Syntactic marker of an adjective: attributive, predicative, or immediately after the noun."""


def read_noun_synsets(data_noun: bytes) -> dict[int, tuple[str, ...]]:
    """Reads the lemmas of every noun synset.

    Args:
        data_noun: Content of WordNet's `data.noun`.

    Returns:
        A mapping from each synset's byte offset to its lemmas, in the order of the file.

    Raises:
        ValueError: A line does not begin with its own byte offset, so the file is damaged.
    """
    return _read_synsets(data_noun, "data.noun")


def read_adjective_synsets(data_adj: bytes) -> dict[int, tuple[str, ...]]:
    """Reads the lemmas of every adjective synset, without their syntactic markers.

    Args:
        data_adj: Content of WordNet's `data.adj`.

    Returns:
        A mapping from each synset's byte offset to its lemmas, in the order of the file.

    Raises:
        ValueError: A line does not begin with its own byte offset, so the file is damaged.
    """
    synsets = _read_synsets(data_adj, "data.adj")
    return {
        offset: tuple(_MARKER.sub("", lemma) for lemma in lemmas)
        for offset, lemmas in synsets.items()
    }


def _read_synsets(content: bytes, file: str) -> dict[int, tuple[str, ...]]:
    synsets = {}
    offset = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line and not line.startswith(b"  "):  # The lines of the licence are indented.
            fields = line.split(b" ")
            if fields[0] != b"%08d" % offset:
                raise ValueError(
                    f"{file}, line {number}: expected the byte offset {offset:08d}, "
                    f"got {fields[0][:20]!r}"
                )
            lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            synsets[offset] = tuple(lemma.decode("ascii").replace("_", " ") for lemma in lemmas)
        offset += len(line) + 1
    return synsets


def read_licence(data_noun: bytes) -> str:
    """Returns WordNet's licence, the indented and numbered lines at the start of `data.noun`."""
    licence = [line[4:].strip() for line in data_noun.split(b"\n") if line.startswith(b"  ")]
    return b"\n".join(licence).decode("ascii").strip() + "\n"


def phrases_of_wnids(
    synsets: Mapping[int, tuple[str, ...]], wnids: Sequence[str]
) -> tuple[str, ...]:
    """Returns all lemmas of the given synsets, in order; repeated lemmas are kept.

    Args:
        synsets: Lemmas by byte offset, as `read_noun_synsets` returns them.
        wnids: Identifiers of synsets, e.g. "n01440764".

    Raises:
        ValueError: A wnid is not a noun synset of this WordNet.
    """
    phrases: list[str] = []
    for wnid in wnids:
        if wnid[:1] != "n" or not wnid[1:].isdecimal() or int(wnid[1:]) not in synsets:
            raise ValueError(f"{wnid!r} is not a noun synset of this WordNet")
        phrases += synsets[int(wnid[1:])]
    return tuple(phrases)


def distinct_lemmas(synsets: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns each distinct lemma once, in the order of first occurrence; case is significant."""
    return tuple(dict.fromkeys(lemma for lemmas in synsets.values() for lemma in lemmas))
