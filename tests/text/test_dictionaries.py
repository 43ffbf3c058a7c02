"""The packaged dictionaries equal the reference's, and text files are read as documented."""

import csv
import os
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_jax.text import (
    dictionary_hash,
    dictionary_names,
    exclude_labels,
    find_overlap,
    load_dictionary,
)
from bliss_jax.text.wordnet import (
    distinct_lemmas,
    phrases_of_wnids,
    read_adjective_synsets,
    read_licence,
    read_noun_synsets,
)

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
    orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
    rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905

DATA_NOUN = Path(os.environ.get("BLISS_JAX_WORDNET", "/usr/share/wordnet")) / "data.noun"


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "words.txt"
        path.write_bytes(content)
        return path

    return write


# --- Packaged dictionaries --------------------------------------------------------------------------


def test_imagenet1k_has_the_size_and_the_phrases_of_the_reference():
    phrases = load_dictionary("imagenet1k")
    assert (len(phrases), len(set(phrases))) == (1860, 1842)
    assert phrases[:5] == (
        "tench",
        "Tinca tinca",
        "goldfish",
        "Carassius auratus",
        "great white shark",
    )
    assert phrases[-3:] == ("toilet tissue", "toilet paper", "bathroom tissue")
    repeated = [phrase for phrase, count in Counter(phrases).items() if count > 1]
    assert len(repeated) == 18
    # "crane" is a bird and a machine; "maillot" names two kinds of swimsuit.
    assert {"crane", "maillot"} <= set(repeated)


def test_wordnet_nouns_holds_each_noun_lemma_once():
    phrases = load_dictionary("wordnet-nouns")
    assert len(phrases) == len(set(phrases)) == 119_034
    assert phrases[:4] == ("entity", "physical entity", "abstraction", "abstract entity")
    assert set(load_dictionary("imagenet1k")) <= set(phrases)
    assert {"China", "china", "ice cream"} <= set(phrases)
    # WordNet's own index of nouns, which is in lower case, has this many entries.
    assert len({phrase.lower() for phrase in phrases}) == 117_798


def test_wordnet_adjectives_holds_each_adjective_lemma_once_without_markers():
    phrases = load_dictionary("wordnet-adjectives")
    assert len(phrases) == len(set(phrases)) == 21_538
    assert phrases[:4] == ("able", "unable", "abaxial", "dorsal")
    assert not any(phrase.endswith(("(a)", "(p)", "(ip)")) for phrase in phrases)
    # WordNet's own index of adjectives, which is in lower case, has this many entries.
    assert len({phrase.lower() for phrase in phrases}) == 21_479


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("imagenet1k", "474b99ecbec44052079105dc67e3fc2ca34968656c3f4ea3a6ddbbfac683eea2"),
        ("wordnet-nouns", "00161156172848ee856cb9a256980802d04d90087fe9fc4f4dc0a6a97959bb60"),
    ],
)
def test_packaged_dictionaries_have_the_recorded_hash(name, sha256):
    assert dictionary_hash(load_dictionary(name)) == sha256


@pytest.mark.parametrize("name", dictionary_names())
def test_packaged_phrases_are_printable_ascii_without_underscores(name):
    for phrase in load_dictionary(name):
        assert phrase.isascii() and phrase.isprintable() and phrase == phrase.strip() != ""
        assert "_" not in phrase


def test_the_package_contains_the_licence_of_wordnet():
    licence = (files("bliss_jax.text") / "data" / "WORDNET_LICENSE.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "this software and database is provided" in licence.lower()


@pytest.mark.skipif(
    not DATA_NOUN.is_file(), reason=f"no {DATA_NOUN} (set BLISS_JAX_WORDNET to its folder)"
)
def test_wordnet_yields_the_packaged_dictionaries_and_licence():
    content = DATA_NOUN.read_bytes()
    synsets = read_noun_synsets(content)
    labels = files("tensorflow_datasets") / "datasets" / "imagenet2012" / "labels.txt"
    wnids = labels.read_text().split()
    assert len(wnids) == 1000
    assert phrases_of_wnids(synsets, wnids) == load_dictionary("imagenet1k")
    assert distinct_lemmas(synsets) == load_dictionary("wordnet-nouns")
    adjectives = read_adjective_synsets((DATA_NOUN.parent / "data.adj").read_bytes())
    assert distinct_lemmas(adjectives) == load_dictionary("wordnet-adjectives")
    licence = (files("bliss_jax.text") / "data" / "WORDNET_LICENSE.txt").read_text()
    assert read_licence(content) == licence


# --- WordNet's file format ----------------------------------------------------------------------------

LICENCE_LINE = b"  1 Copyright  \n"
SYNSETS = (
    LICENCE_LINE
    + b"00000016 03 n 02 ice_cream 0 China 1 001 @ 00000000 n 0000 | sweet; not \xe9t\xe9  \n"
    + b"00000094 03 n 0b a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 ice_cream 1 000 | eleven  \n"
)


def test_synsets_and_phrases_are_read_from_data_noun():
    synsets = read_noun_synsets(SYNSETS)
    assert synsets == {16: ("ice cream", "China"), 94: (*"abcdefghij", "ice cream")}
    assert distinct_lemmas(synsets) == ("ice cream", "China", *"abcdefghij")
    assert phrases_of_wnids(synsets, ["n00000094", "n00000016"]) == (
        *"abcdefghij",
        "ice cream",
        "ice cream",
        "China",
    )
    assert read_licence(SYNSETS) == "Copyright\n"


def test_syntactic_markers_of_adjectives_are_removed():
    line = b"00000016 00 a 03 galore(ip) 0 big(a) 0 well(p) 0 000 | gloss (p)  \n"
    assert read_adjective_synsets(LICENCE_LINE + line) == {16: ("galore", "big", "well")}


def test_a_line_that_does_not_begin_with_its_offset_is_refused():
    with pytest.raises(ValueError, match="line 2: expected the byte offset 00000017"):
        read_noun_synsets(b" " + SYNSETS)


@pytest.mark.parametrize("wnid", ["n00000017", "v00000016", "00000016", "n", "nxyz"])
def test_unknown_wnids_are_refused(wnid):
    with pytest.raises(ValueError, match=f"'{wnid}' is not a noun synset"):
        phrases_of_wnids(read_noun_synsets(SYNSETS), [wnid])


# --- Overlap with labels -------------------------------------------------------------------------


def test_imagenet1k_contains_no_cifar10_label_and_25_cifar100_labels():
    dictionary = load_dictionary("imagenet1k")
    assert len(CIFAR10) == 10 and len(CIFAR100) == 100
    assert find_overlap(dictionary, CIFAR10) == {}
    overlap = find_overlap(dictionary, CIFAR100)
    assert len(overlap) == 25
    assert overlap["lawn_mower"] == ("lawn mower",)


@pytest.mark.shared_data
def test_imagenet1k_contains_all_tiny_imagenet_labels_but_one(shared):
    with (shared / "data" / "tinyimagenet_classes.csv").open() as table:
        labels = [row["label"] for row in csv.DictReader(table)]
    overlap = find_overlap(load_dictionary("imagenet1k"), labels)
    assert (len(labels), len(overlap)) == (200, 199)
    assert set(labels) - set(overlap) == {"dumbbel"}  # the spelling of the reference


def test_overlap_ignores_case_and_underscores_and_lists_every_equal_phrase():
    dictionary = ("Ice Cream", "crane", "ice_cream", "crane", "cream")
    assert find_overlap(dictionary, ["CRANE", "dog", "ice cream"]) == {
        "CRANE": ("crane", "crane"),
        "ice cream": ("Ice Cream", "ice_cream"),
    }


def test_exclude_labels_removes_exactly_the_overlap():
    dictionary = load_dictionary("imagenet1k")
    rest = exclude_labels(dictionary, CIFAR100)
    removed = [
        phrase for phrases in find_overlap(dictionary, CIFAR100).values() for phrase in phrases
    ]
    assert Counter(dictionary) - Counter(rest) == Counter(removed)
    assert find_overlap(rest, CIFAR100) == {}
    assert exclude_labels(dictionary, CIFAR10) == dictionary


def test_exclude_labels_refuses_to_remove_every_phrase():
    with pytest.raises(ValueError, match="excluding 2 labels removes all 3 phrases"):
        exclude_labels(("cat", "Cat", "dog"), ["cat", "dog"])


# --- Hash ----------------------------------------------------------------------------------------


@given(st.lists(st.text()), st.lists(st.text()))
def test_hashes_are_equal_if_and_only_if_the_sequences_are(first, second):
    assert (dictionary_hash(first) == dictionary_hash(second)) == (first == second)


def test_hash_depends_on_the_order_and_on_phrase_boundaries():
    hashes = {
        dictionary_hash(p) for p in (("a", "b"), ("b", "a"), ("ab",), ("a\nb",), ("a", "b", ""))
    }
    assert len(hashes) == 5


def test_hash_is_the_sha256_of_the_json_array():
    # printf '["cat","\\u00e9t\\u00e9"]' | sha256sum
    expected = "a4635242ef98cf09"
    assert dictionary_hash(("cat", "été"))[:16] == expected


# --- Text files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\r\n\r\ndog\r\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\n", ("cat",)),
        (b"\n  \n cat \t\n\n\tice cream\n", ("cat", "ice cream")),
        (b"cat\ncat\nCat\n", ("cat", "cat", "Cat")),
        ("été\n猫\n🐈\n".encode(), ("été", "猫", "🐈")),
    ],
)
def test_a_text_file_has_one_phrase_per_line(write, content, phrases):
    path = write(content)
    assert load_dictionary(path) == load_dictionary(str(path)) == phrases


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file contains no phrase"),
        (b"\xef\xbb\xbf\r\n \n", "the file contains no phrase"),
        (b"cat\n\xff\n", r"words\.txt, line 2: not valid UTF-8 \(invalid start byte\)"),
        ("cat\nété\n".encode("latin-1"), r"words\.txt, line 2: not valid UTF-8"),
        ("cat\n".encode("utf-16"), r"words\.txt, line 1: not valid UTF-8"),
        (b"cat\nd\0g\n", r"words\.txt, line 2: .*control character '\\x00'"),
        (b"1\tcat\n", r"words\.txt, line 1: .*control character '\\t'"),
        (b"cat\rdog\n", r"words\.txt, line 1: .*control character '\\r'"),
        (b"cat\n\x0c\n", r"words\.txt, line 2: .*control character '\\x0c'"),
    ],
)
def test_an_invalid_text_file_is_refused_with_its_name_and_line(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_dictionary(write(content))


printable = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)
phrase_lists = st.lists(
    printable.map(str.strip).filter(lambda text: text and text[0] != "\ufeff"), min_size=1
)


@given(phrase_lists, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_phrases_written_to_a_file_are_read_back(tmp_path_factory, phrases, newline, mark):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_bytes(newline.join(phrases).encode("utf-8-sig" if mark else "utf-8"))
    assert load_dictionary(path) == tuple(phrases)


@settings(max_examples=300)
@given(st.binary())
def test_any_bytes_give_clean_phrases_or_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_bytes(content)
    try:
        phrases = load_dictionary(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert phrases and all(phrase and phrase == phrase.strip() for phrase in phrases)


def test_an_unknown_name_is_refused_with_similar_names(tmp_path):
    with pytest.raises(ValueError, match=r"'imagenet-1k'.*did you mean 'imagenet1k'\?"):
        load_dictionary("imagenet-1k")
    with pytest.raises(
        ValueError, match=r"\['imagenet1k', 'wordnet-nouns', 'wordnet-adjectives', "
    ):
        load_dictionary("unlike any name")
    with pytest.raises(ValueError, match="there is no dictionary and no file"):
        load_dictionary(tmp_path)


def test_a_dictionary_name_takes_precedence_over_a_file_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "imagenet1k").write_text("cat\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_dictionary("imagenet1k")) == 1860
    assert load_dictionary("./imagenet1k") == ("cat",)
