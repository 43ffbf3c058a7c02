"""Prompt templates of the methods, and functions that insert labels into templates.

Labels are inserted unchanged, as in the reference implementation of BLISS: articles are not corrected
("a airplane"), no full stop is added and underscores are kept ("aquarium_fish").
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeAlias

from bliss_jax.text.prompt_sets import PROMPT_SETS

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

Prompt: TypeAlias = str | Sequence[str]
"""A template with `{label}`; the name of a set of templates, "clip-7" or "clip-80"; or several of these."""

_FIELD = "{label}"
_LISTED = 3
"""Number of templates that the description of an unnamed ensemble lists."""


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
    before, after = _around_label(template)
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


def prompt_templates(prompt: Prompt) -> tuple[str, ...]:
    """Returns the templates of a prompt.

    `embed_prompts` averages the embeddings of a label over them.

    Args:
        prompt: A template with `{label}`; the name of a set of templates, "clip-80" (the 80 templates that
            OpenAI published for ImageNet) or "clip-7" (the best 7 of them); or a sequence of templates and
            names.

    Raises:
        ValueError: There is no template; a template does not contain `{label}` exactly once, or contains
            another brace; the name of a set is unknown; or templates are repeated (the message lists them).
    """
    templates: list[str] = []
    for given in (prompt,) if isinstance(prompt, str) else prompt:
        if not isinstance(given, str):
            raise ValueError(f"prompt: expected templates, which are strings, got {given!r}")
        templates += PROMPT_SETS.get(given, (given,))
    if not templates:
        raise ValueError("prompt: expected at least one template, got none")
    for template in templates:
        try:
            _around_label(template)
        except ValueError as error:
            near = get_close_matches(template, PROMPT_SETS, n=1)
            hint = f"; did you mean the set of templates {near[0]!r}?" if near else ""
            raise ValueError(f"{error}{hint}") from error
    if repeated := [template for template, count in Counter(templates).items() if count > 1]:
        raise ValueError(
            f"prompt: expected different templates, but these are repeated: {repeated}"
        )
    return tuple(templates)


def as_prompt(prompt: Prompt) -> str | tuple[str, ...]:
    """Returns a single template as a string, and several templates as a tuple.

    Raises:
        ValueError: One of the reasons listed in `prompt_templates`.
    """
    templates = prompt_templates(prompt)
    return templates[0] if len(templates) == 1 else templates


def prompt_as_json(prompt: Prompt) -> str | list[str]:
    """Returns a single template as a string, and several templates as a list.

    Raises:
        ValueError: One of the reasons listed in `prompt_templates`.
    """
    templates = prompt_templates(prompt)
    return templates[0] if len(templates) == 1 else list(templates)


def describe_prompt(prompt: Prompt) -> str:
    """Returns a prompt in one line, e.g. "clip-7, the mean of 7 templates"."""
    templates = prompt_templates(prompt)
    if len(templates) == 1:
        return templates[0]
    mean = f"the mean of {len(templates)} templates"
    for name, of_set in PROMPT_SETS.items():
        if templates == of_set:
            return f"{name}, {mean}"
    more = len(templates) - _LISTED
    return f"{mean}: {'; '.join(templates[:_LISTED])}" + (f"; and {more} more" if more > 0 else "")


def _around_label(template: str) -> tuple[str, str]:
    """Returns the parts of a template before and after `{label}`.

    Raises:
        ValueError: The template does not contain `{label}` exactly once, or contains another brace.
    """
    before, field, after = template.partition(_FIELD)
    if not field or any(brace in before + after for brace in "{}"):
        raise ValueError(
            f"a prompt template must contain {_FIELD} exactly once and no other brace, got {template!r}"
        )
    return before, after
