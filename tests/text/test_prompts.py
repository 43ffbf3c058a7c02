"""Labels are inserted into prompts unchanged; invalid labels and templates are refused."""

import hashlib
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bliss_jax.text import (
    CLIP_AD_ANOMALY,
    MCM_PROMPT,
    PROMPT,
    as_prompt,
    describe_prompt,
    fill_prompt,
    prompt_as_json,
    prompt_templates,
)

labels = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True)


def test_the_prompts_are_those_of_bliss_mcm_and_clip_ad():
    assert fill_prompt(PROMPT, ["airplane", "aquarium_fish"]) == (
        "This is a photo of a airplane",
        "This is a photo of a aquarium_fish",
    )
    assert fill_prompt(MCM_PROMPT, ["cat"]) == ("a photo of a cat",)
    assert CLIP_AD_ANOMALY == "a photo of something"


@given(labels)
def test_any_label_is_inserted_literally(labels):
    assert fill_prompt("<{label}>", labels) == tuple("<" + label + ">" for label in labels)


def test_braces_and_format_fields_in_labels_have_no_effect():
    odd = ["{label}", "{0}", "{", "}}", "{label.__class__}", "%s", "\\1"]
    assert fill_prompt("a {label}.", odd) == tuple(f"a {label}." for label in odd)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "a photo",
        "{}",
        "{name}",
        "{label!r}",
        "{label} and {label}",
        "{{label}}",
        "{label} {",
        "}",
    ],
)
def test_a_template_must_contain_the_label_field_exactly_once(template):
    with pytest.raises(ValueError, match=r"must contain \{label\} exactly once and no other brace"):
        fill_prompt(template, ["cat"])


def test_repeated_labels_are_refused_and_listed():
    with pytest.raises(ValueError, match=r"these are repeated: \['crane', 'maillot'\]"):
        fill_prompt(PROMPT, ["crane", "maillot", "crane", "cat", "maillot", "crane"])


def test_repeated_phrases_are_accepted_if_allow_repeats_is_true():
    assert fill_prompt("{label}", ["crane", "crane"], allow_repeats=True) == ("crane", "crane")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one label, got none"),
        (["cat", ""], "label 1 must be a string that is not blank, got ''"),
        (["cat", " \t"], r"label 1 must be a string that is not blank, got ' \\t'"),
        (["cat", 3], "label 1 must be a string that is not blank, got 3"),
        ([None], "label 0 must be a string that is not blank, got None"),
    ],
)
def test_missing_blank_and_non_string_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fill_prompt(PROMPT, labels)


def test_a_single_string_is_refused_as_a_list_of_labels():
    with pytest.raises(ValueError, match="got the single string 'cat'"):
        fill_prompt(PROMPT, "cat")


def test_the_templates_of_clip_are_the_published_ones():
    templates = prompt_templates("clip-80")
    assert len(set(templates)) == 80
    assert templates[0] == "a bad photo of a {label}."
    assert templates[-1] == "a tattoo of the {label}."
    digest = hashlib.sha256("\n".join(templates).replace("{label}", "{}").encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"
    best = prompt_templates("clip-7")
    assert len(best) == 7
    assert set(best) < set(templates)


def test_the_package_contains_the_licence_of_the_templates():
    licence = (files("bliss_jax.text") / "data" / "CLIP_LICENSE.txt").read_text()
    assert "Copyright (c) 2021 OpenAI" in licence


def test_templates_and_names_of_sets_are_joined_in_order():
    own = "one {label}"
    assert prompt_templates(own) == prompt_templates([own]) == (own,)
    assert prompt_templates([own, "clip-7"]) == (own, *prompt_templates("clip-7"))
    assert as_prompt((own,)) == prompt_as_json([own]) == own
    assert as_prompt([own, PROMPT]) == (own, PROMPT)
    assert prompt_as_json((own, PROMPT)) == [own, PROMPT]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "prompt: expected at least one template, got none"),
        (("one {label}", "a photo"), r"must contain \{label\} exactly once .* got 'a photo'"),
        ("clip80", "did you mean the set of templates 'clip-80'"),
        (("one {label}", "one {label}"), r"these are repeated: \['one \{label\}'\]"),
        (("clip-80", "clip-7"), "expected different templates, but these are repeated"),
        (("one {label}", 3), "expected templates, which are strings, got 3"),
    ],
)
def test_invalid_prompts_of_several_templates_are_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        prompt_templates(prompt)


def test_a_prompt_is_described_in_one_line():
    assert describe_prompt(PROMPT) == PROMPT
    assert describe_prompt("clip-80") == "clip-80, the mean of 80 templates"
    letters = [f"{letter} {{label}}" for letter in "abcde"]
    assert describe_prompt(letters) == (
        "the mean of 5 templates: a {label}; b {label}; c {label}; and 2 more"
    )
