"""Notes on class names that make poor prompts or are easily confused."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

_WORDNET_ID = re.compile(r"n\d{8}")


def odd_class_names(names: Sequence[str]) -> list[str]:
    """Returns one note for each kind of odd class names.

    The kinds are names that are ids, whose prompts say nothing about the images, and names that are equal up
    to case or Unicode normalisation.
    """
    notes = []
    ids = [name for name in names if name.isdecimal() or _WORDNET_ID.fullmatch(name)]
    if ids:
        notes.append(
            f"class names {_listed(ids)} look like ids: prompts such as 'This is a photo of a {ids[0]}' say "
            "nothing about the images; rename the folders to what they show"
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    notes += [
        f"class names {_listed(same)} are equal up to case or Unicode normalisation, but different classes; "
        "merge the folders if they show the same"
        for same in alike.values()
        if len(same) > 1
    ]
    return notes


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
