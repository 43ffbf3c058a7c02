"""Prompt templates of the methods, and a function that inserts labels into a template.

Labels are inserted unchanged, as in the reference implementation of BLISS: articles are not corrected
("a airplane"), no full stop is added and underscores are kept ("aquarium_fish").
"""

from collections import Counter
from collections.abc import Sequence

PROMPT = "This is a photo of a {label}"
"""Prompt of BLISS (Goodge et al. 2024), used for labels and for dictionary phrases."""

MCM_PROMPT = "a photo of a {label}"
"""Prompt of maximum concept matching (MCM; Ming et al. 2022)."""

CLIP_AD_ANOMALY = "a photo of something"
"""Text that represents "none of the labels" in CLIP-AD (Liznerski et al. 2022)."""

NEGLABEL_PROMPT = "The nice {label}."
"""Prompt of NegLabel for labels and nouns (Jiang et al. 2024)."""

NEGLABEL_ADJECTIVE_PROMPT = "This is a {label} photo"
"""Prompt of NegLabel for adjectives."""

_FIELD = "{label}"


def fill_prompt(
    template: str, labels: Sequence[str], *, allow_repeats: bool = False
) -> tuple[str, ...]:
    """Replaces `{label}` in the template by each label.

    Labels are inserted literally: a label may contain braces, and format fields in it have no effect.

    Args:
        template: Text that contains `{label}` exactly once and no other brace.
        labels: Labels or dictionary phrases; strings that are not blank.
        allow_repeats: Whether a label may occur more than once. Two classes with the same name are an
            error, but a dictionary may repeat a phrase (`imagenet1k` does) and then counts it twice.

    Returns:
        One prompt per label, in order.

    Raises:
        ValueError: The template does not contain `{label}` exactly once, or contains another brace;
            there are no labels; a label is blank or not a string; or labels are repeated (the message
            lists all of them).
    """
    before, field, after = template.partition(_FIELD)
    if not field or any(brace in before + after for brace in "{}"):
        raise ValueError(
            f"a prompt template must contain {_FIELD} exactly once and no other brace, got {template!r}"
        )
    if isinstance(labels, str):
        raise ValueError(f"labels must be a sequence of strings, got the single string {labels!r}")
    if not labels:
        raise ValueError("expected at least one label, got none")
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"label {index} must be a string that is not blank, got {label!r}")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated and not allow_repeats:
        raise ValueError(f"labels must be distinct, but these are repeated: {repeated}")
    return tuple(before + label + after for label in labels)
