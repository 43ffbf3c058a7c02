"""Noun phrases of WordNet 3.0, read from its file `data.noun`.

A line of that file describes one synset, by its byte offset, two fields not used here, the number of
lemmas in hexadecimal, and then each lemma followed by a sense number:

    01440764 05 n 02 tench 0 Tinca_tinca 0 002 @ 01440160 n 0000 #m 01440467 n 0000 | gloss

The offset is also the synset's identity: ImageNet calls this one n01440764. Lemmas keep WordNet's
spelling and case; underscores become blanks. (WordNet's syntactic markers, such as "(p)", occur at
adjectives only.)

Source: Fellbaum (ed.), WordNet: an electronic lexical database, 1998; format: wndb(5WN).
"""

from collections.abc import Mapping, Sequence


def read_noun_synsets(data_noun: bytes) -> dict[int, tuple[str, ...]]:
    """The lemmas of every noun synset, by the synset's byte offset, in the order of the file.

    Args:
        data_noun: the content of WordNet's `data.noun`.

    Raises:
        ValueError: a line does not begin with its own byte offset, so the file is not intact.
    """
    synsets = {}
    offset = 0
    for number, line in enumerate(data_noun.split(b"\n"), start=1):
        if line and not line.startswith(b"  "):  # The licence is indented.
            fields = line.split(b" ")
            if fields[0] != b"%08d" % offset:
                raise ValueError(
                    f"data.noun, line {number}: expected the byte offset {offset:08d}, "
                    f"got {fields[0][:20]!r}"
                )
            lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            synsets[offset] = tuple(lemma.decode("ascii").replace("_", " ") for lemma in lemmas)
        offset += len(line) + 1
    return synsets


def read_licence(data_noun: bytes) -> str:
    """WordNet's licence, which opens `data.noun` as indented and numbered lines."""
    licence = [line[4:].strip() for line in data_noun.split(b"\n") if line.startswith(b"  ")]
    return b"\n".join(licence).decode("ascii").strip() + "\n"


def phrases_of_wnids(
    synsets: Mapping[int, tuple[str, ...]], wnids: Sequence[str]
) -> tuple[str, ...]:
    """All lemmas of the synsets named by `wnids` ("n01440764"), in order, repeats kept.

    Raises:
        ValueError: a wnid is no noun synset of this WordNet.
    """
    phrases: list[str] = []
    for wnid in wnids:
        if wnid[:1] != "n" or not wnid[1:].isdecimal() or int(wnid[1:]) not in synsets:
            raise ValueError(f"{wnid!r} is no noun synset of this WordNet")
        phrases += synsets[int(wnid[1:])]
    return tuple(phrases)


def noun_phrases(synsets: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Every noun lemma once, in the order of first occurrence; spellings in other case stay."""
    return tuple(dict.fromkeys(lemma for lemmas in synsets.values() for lemma in lemmas))
