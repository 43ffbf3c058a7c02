"""Labels are inserted into prompts unchanged; invalid labels and templates are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bliss_jax.text import CLIP_AD_ANOMALY, MCM_PROMPT, PROMPT, fill_prompt

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
