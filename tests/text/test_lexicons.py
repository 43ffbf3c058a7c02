"""Tests of the lexicons of NegLabel and of the conjugated semantic pool."""

from bliss_jax.text import conjugated_lexicon, load_dictionary, neglabel_lexicon
from bliss_jax.text.lexicons import SUPERCLASSES


def test_neglabels_lexicon_has_the_nouns_and_then_the_adjectives_in_their_prompts():
    prompts, parts = neglabel_lexicon()
    assert parts == (119_034, 21_538) and len(prompts) == sum(parts)
    assert prompts[0] == "The nice entity."
    assert prompts[parts[0]] == "This is a able photo"


def test_labels_are_left_out_of_the_nouns():
    prompts, parts = neglabel_lexicon(["cat", "pickup_truck"])
    assert parts == (119_031, 21_538)  # "cat", "CAT" and "pickup truck" are three nouns
    assert not {"The nice cat.", "The nice CAT.", "The nice pickup truck."} & set(prompts)


def test_the_conjugated_pool_modifies_one_superclass_by_each_adjective():
    prompts, (nouns, adjectives) = conjugated_lexicon(seed=1)
    words = load_dictionary("wordnet-adjectives")
    assert adjectives == len(words)
    drawn = [
        prompt.removeprefix(f"The nice {word} ").removesuffix(".")
        for prompt, word in zip(prompts[nouns:], words, strict=True)
    ]
    assert set(drawn) == set(SUPERCLASSES)


def test_equal_seeds_give_equal_pools_and_other_seeds_do_not():
    assert conjugated_lexicon(seed=1) == conjugated_lexicon(seed=1) != conjugated_lexicon(seed=2)
