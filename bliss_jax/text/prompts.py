"""Prompt templates of the methods, and how a label is put into one.

A label is inserted as it is: no article is corrected ("a airplane"), no full stop is added and
underscores stay ("aquarium_fish"), as in the reference implementation of BLISS.
"""

from collections import Counter
from collections.abc import Sequence

PROMPT = "This is a photo of a {label}"
"""BLISS (Goodge et al. 2024), for labels and dictionary alike."""

MCM_PROMPT = "a photo of a {label}"
"""Maximum concept matching (Ming et al. 2022)."""

CLIP_AD_ANOMALY = "a photo of something"
"""The text that stands for "none of the labels" in CLIP-AD (Liznerski et al. 2022)."""

_FIELD = "{label}"


def fill_prompt(
    template: str, labels: Sequence[str], *, allow_repeats: bool = False
) -> tuple[str, ...]:
    """Puts each label in place of `{label}`.

    The template is filled literally: a label may hold braces, and nothing in it is formatted.

    Args:
        template: a text with `{label}` exactly once and no other brace.
        labels: labels or dictionary phrases, each a string that is not blank.
        allow_repeats: accept a label that occurs twice. Two classes of one name are a mistake, while
            a dictionary may repeat a phrase (ImageNet's does) and then counts it twice.

    Returns:
        One prompt per label, in order.

    Raises:
        ValueError: the template lacks the field or has others; no labels; a label that is blank or
            not a string; repeated labels, all named.
    """
    before, field, after = template.partition(_FIELD)
    if not field or any(brace in before + after for brace in "{}"):
        raise ValueError(
            f"a prompt template must hold {_FIELD} exactly once and no other brace, got {template!r}"
        )
    if isinstance(labels, str):
        raise ValueError(f"labels must be a sequence of strings, got the single string {labels!r}")
    if not labels:
        raise ValueError("labels must hold at least one label, got none")
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"label {index} must be a string that is not blank, got {label!r}")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated and not allow_repeats:
        raise ValueError(f"labels must differ from each other, repeated: {repeated}")
    return tuple(before + label + after for label in labels)
