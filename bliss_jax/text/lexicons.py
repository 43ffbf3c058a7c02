"""Lexicons from which negative labels are chosen: prompts of NegLabel and of the conjugated semantic pool.

    NegLabel    The nice NOUN.     This is a ADJECTIVE photo          all nouns and all adjectives of WordNet 3.0
    CSP         The nice NOUN.     The nice ADJECTIVE SUPERCLASS.     one superclass for each adjective, at random

A superclass is a word such as "item" or "scene" that fits any image. With an adjective it names a cluster of images of
many categories, whereas a noun names one category and an adjective alone names no object. Negatives are chosen among
the nouns and among the adjectives apart, so a lexicon states the sizes of its parts.

The authors of NegLabel leave out nouns of persons, groups and quantities and adjectives that are derived from nouns;
these lexicons leave out nothing. The superclasses are words of the kind that the paper of CSP describes.

Sources: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR 2024; Chen,
Gao, Xu, "Conjugated Semantic Pool Improves OOD Detection with Pre-trained Vision-Language Models", NeurIPS 2024.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from bliss_jax.text.dictionaries import exclude_labels, load_dictionary
from bliss_jax.text.prompts import NEGLABEL_ADJECTIVE_PROMPT, NEGLABEL_PROMPT, fill_prompt

SUPERCLASSES = (
    "area",
    "creature",
    "environment",
    "item",
    "landscape",
    "object",
    "pattern",
    "place",
    "scene",
    "space",
    "structure",
    "thing",
    "view",
    "vista",
)
"""Words that fit any image."""


class Lexicon(NamedTuple):
    """Prompts from which negative labels are chosen."""

    prompts: tuple[str, ...]
    """Prompts of the nouns, followed by those of the adjectives."""
    parts: tuple[int, int]
    """Number of nouns and number of adjectives, for the argument `parts` of `neglabel_score`."""


def neglabel_lexicon(labels: Sequence[str] = ()) -> Lexicon:
    """Returns NegLabel's lexicon: all nouns and adjectives of WordNet in the prompts of its authors.

    Args:
        labels: Normal labels, which are left out of the nouns.
    """
    return _lexicon(labels, load_dictionary("wordnet-adjectives"), NEGLABEL_ADJECTIVE_PROMPT)


def conjugated_lexicon(
    labels: Sequence[str] = (), *, superclasses: Sequence[str] = SUPERCLASSES, seed: int = 0
) -> Lexicon:
    """Returns the lexicon of the conjugated semantic pool: nouns, and superclasses modified by an adjective.

    Args:
        labels: Normal labels, which are left out of the nouns.
        superclasses: Words of which one is drawn for each adjective.
        seed: Seed of the draws.
    """
    draw = random.Random(seed)  # noqa: S311
    modified = [
        f"{adjective} {draw.choice(superclasses)}"
        for adjective in load_dictionary("wordnet-adjectives")
    ]
    return _lexicon(labels, modified, NEGLABEL_PROMPT)


def _lexicon(labels: Sequence[str], adjectives: Sequence[str], prompt: str) -> Lexicon:
    nouns = exclude_labels(load_dictionary("wordnet-nouns"), labels)
    prompts = fill_prompt(NEGLABEL_PROMPT, nouns) + fill_prompt(prompt, adjectives)
    return Lexicon(prompts, (len(nouns), len(adjectives)))
