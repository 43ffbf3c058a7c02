"""What a data set is evaluated with where nothing else is asked for."""

from typing import NamedTuple

MODEL = "bliss-jax/tiny"
DATASET = "glyphs"
"""The model and the data set that need no download."""


class Defaults(NamedTuple):
    """A dictionary, a protocol, and k, the number of dictionary texts per image."""

    dictionary: str = "imagenet1k"
    protocol: str = "one-class"
    k: int = 10


_OF_DATASET = {
    # Each symbol has one name in this dictionary, not the many synonyms of a lexicon of words, so the other
    # nearest texts are names of other things. Chosen on the validation renders, see experiments/README.md.
    "glyphs": Defaults("unicode-names", "glyphs-half-family", k=1),
}


def dataset_defaults(dataset: str) -> Defaults:
    """The defaults of a data set; the paper's where it has none of its own."""
    return _OF_DATASET.get(dataset, Defaults())
