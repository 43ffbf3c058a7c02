"""Published splits have the classes and sizes that method.md lists; protocol files are validated."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bliss_jax.datasets import Protocol, Split, dataset_names, load_protocol, protocol_names
from bliss_jax.datasets.protocol_file import read_protocol

CLASSES = {"cifar10": 10, "cifar100": 100, "cifar10+cifar100": 110, "tiny-imagenet": 200}
IMAGES_PER_TEST_CLASS = {"cifar10": 1000, "cifar100": 100, "tiny-imagenet": 50}


def load(name, dataset, **options) -> Protocol:
    return load_protocol(name, dataset=dataset, num_classes=CLASSES[dataset], **options)


# The rows are those of the benchmark table in method.md, section 2, and of the lists below it.
@pytest.mark.parametrize(
    ("name", "dataset", "normal", "splits", "test_normal", "test_anomalous"),
    [
        ("one-class", "cifar10", 1, 10, 1000, 9000),
        ("zoc-6", "cifar10", 6, 5, 6000, 4000),
        ("zoc", "cifar10", 6, 5, 6000, 4000),
        ("cac", "cifar10", 6, 5, 6000, 4000),
        ("leave-one-out", "cifar10", 9, 10, 9000, 1000),
        ("zoc", "cifar100", 20, 5, 2000, 8000),
        ("zoc", "tiny-imagenet", 20, 5, 1000, 9000),
        ("cac", "tiny-imagenet", 20, 5, 1000, 9000),
    ],
)
def test_benchmarks_have_the_published_number_of_splits_and_images(
    name, dataset, normal, splits, test_normal, test_anomalous
):
    protocol = load(name, dataset)
    assert len(protocol.splits) == splits
    for split in protocol.splits:
        assert len(split.normal) == normal
        assert len(split.normal) * IMAGES_PER_TEST_CLASS[dataset] == test_normal
        assert len(split.anomalous) * IMAGES_PER_TEST_CLASS[dataset] == test_anomalous
        assert sorted(split.normal + split.anomalous) == list(range(CLASSES[dataset]))


@pytest.mark.parametrize(
    ("name", "splits", "anomalous"),
    [("cifar+10-zoc", 5, 10), ("cifar+50-zoc", 1, 50), ("cifar+10-cac", 5, 10)],
)
def test_cifar_plus_has_four_normal_cifar10_classes_and_anomalous_cifar100_classes(
    name, splits, anomalous
):
    protocol = load(name, "cifar10+cifar100")
    assert len(protocol.splits) == splits
    for split in protocol.splits:
        assert split.normal == (0, 1, 8, 9)
        assert len(split.anomalous) == anomalous
        assert all(10 <= i < 110 for i in split.anomalous)


def bracketed(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, row.split(","))) for row in re.findall(r"\[([\d, ]+)\]", text)]


def passage(text: str, start: str, end: str) -> list[tuple[int, ...]]:
    return bracketed(text[text.index(start) : text.index(end, text.index(start))])


@pytest.mark.parity
@pytest.mark.shared_data
def test_every_table_equals_that_in_method_md(shared):
    text = (shared / "method.md").read_text("utf-8")
    zoc = text[text.index("Family `zoc`") : text.index("Family `cac`")]
    cac = text[text.index("Family `cac`") : text.index("Labels: CIFAR-100")]

    def normal(name, dataset):
        return [split.normal for split in load(name, dataset).splits]

    def plus(name):
        splits = load(name, "cifar10+cifar100").splits
        return [tuple(i - 10 for i in split.anomalous) for split in splits]

    assert normal("zoc", "cifar10") == passage(zoc, "- CIFAR-10 (0 airplane", "- CIFAR-100")
    assert normal("zoc", "tiny-imagenet") == passage(zoc, "- TinyImageNet", "- CIFAR+10")
    assert plus("cifar+50-zoc") == passage(zoc, "+50: [", "+10: [")
    assert plus("cifar+10-zoc") == bracketed(zoc[zoc.index("  +10: [") :])
    assert normal("cac", "cifar10") == passage(cac, "CIFAR-10 known", "; CIFAR+10")
    assert plus("cifar+10-cac") == passage(cac, "CIFAR+10 unknown", "; TinyImageNet")
    assert normal("cac", "tiny-imagenet") == normal("zoc", "tiny-imagenet")
    ranges = re.findall(
        r"(\d+)-(\d+)", zoc[zoc.index("- CIFAR-100 (") : zoc.index("- TinyImageNet")]
    )
    assert normal("zoc", "cifar100") == [tuple(range(int(a), int(b) + 1)) for a, b in ranges[-5:]]


def test_each_cifar100_class_is_normal_in_one_zoc_split():
    covered = [i for split in load("zoc", "cifar100").splits for i in split.normal]
    assert covered == list(range(100))


def test_anomalies_of_cifar_plus_10_are_among_those_of_cifar_plus_50_in_zoc():
    fifty = set(load("cifar+50-zoc", "cifar10+cifar100").splits[0].anomalous)
    for split in load("cifar+10-zoc", "cifar10+cifar100").splits:
        assert set(split.anomalous) <= fifty


def test_the_class_that_the_reference_loses_is_normal_in_no_split():
    assert all(57 not in split.normal for split in load("zoc", "tiny-imagenet").splits)


@pytest.mark.parametrize("num_classes", [2, 3, 37])
def test_one_class_and_leave_one_out_swap_normal_and_anomalous_classes(num_classes):
    one = load_protocol("one-class", dataset="mine", num_classes=num_classes)
    leave = load_protocol("leave-one-out", dataset="mine", num_classes=num_classes)
    assert [split.normal for split in one.splits] == [(i,) for i in range(num_classes)]
    assert [split.anomalous for split in leave.splits] == [(i,) for i in range(num_classes)]
    for a, b in zip(one.splits, leave.splits, strict=True):
        assert (a.normal, a.anomalous) == (b.anomalous, b.normal)


@pytest.mark.parametrize(
    ("name", "dataset", "family"),
    [
        ("zoc", "cifar10", "zoc"),
        ("zoc-6", "cifar10", "zoc"),
        ("cac", "cifar10", "cac"),
        ("cifar+10-zoc", "cifar10+cifar100", "zoc"),
        ("cifar+50-zoc", "cifar10+cifar100", "zoc"),
        ("cifar+10-cac", "cifar10+cifar100", "cac"),
        ("one-class", "cifar10", "one-class"),
        ("leave-one-out", "cifar10", "leave-one-out"),
    ],
)
def test_a_protocol_has_its_name_its_family_and_its_data_set(name, dataset, family):
    protocol = load(name, dataset)
    assert (protocol.name, protocol.family) == (name, family)
    assert protocol.dataset == (
        None if family == name and name != "zoc" and name != "cac" else dataset
    )


def test_every_data_set_of_the_paper_has_published_splits():
    assert set(dataset_names()) == {*CLASSES, "digits", "glyphs"}
    for dataset in CLASSES:
        loaded = 0
        for name in protocol_names():
            try:
                loaded += load(name, dataset).dataset is not None
            except ValueError as error:
                assert f"not for {dataset!r}" in str(error)
        assert loaded


@pytest.mark.parametrize(
    ("name", "dataset", "classes", "message"),
    [
        (
            "zoc-6",
            "cifar100",
            100,
            "'zoc-6' has splits for cifar10, but not for 'cifar100'; .* zoc",
        ),
        ("zoc", "pets", 3, "not for 'pets'; choose one of one-class, leave-one-out"),
        ("cifar+10-zoc", "cifar10", 10, r"for cifar10\+cifar100, but not for 'cifar10'"),
        (
            "zoc",
            "cifar10+cifar100",
            110,
            r"choose one of cifar\+10-zoc, cifar\+50-zoc, cifar\+10-cac",
        ),
        (
            "zoc6",
            "cifar10",
            10,
            "'zoc6' is neither a JSON file nor one of the protocols.*did you mean zoc-6",
        ),
        ("One-Class", "cifar10", 10, "did you mean one-class"),
        ("zoc-6", "cifar10", 9, "num_classes is 9, but cifar10 has 10 classes"),
        ("one-class", "pets", 1, "num_classes is 1, expected at least 2"),
    ],
)
def test_an_unknown_or_foreign_protocol_is_refused_with_the_available_ones(
    name, dataset, classes, message
):
    with pytest.raises(ValueError, match=message):
        load_protocol(name, dataset=dataset, num_classes=classes)


@pytest.mark.parametrize(
    ("normal", "anomalous", "message"),
    [
        ((), (1,), "no normal classes"),
        ((1,), (), "no anomalous classes"),
        ((1, 2, 1), (3,), "normal classes contain 1 more than once"),
        ((1,), (3, 3), "anomalous classes contain 3 more than once"),
        ((1, 2), (2, 3, 1), "classes 1, 2 are both"),
        ((-1,), (1,), "expected ids"),
        ((True,), (2,), "expected ids"),
        ((np.int64(1),), (2,), "expected ids"),
    ],
)
def test_a_split_needs_distinct_classes_on_both_sides(unchecked, normal, anomalous, message):
    with pytest.raises(ValueError, match=message):
        Split(normal, anomalous)


def test_a_protocol_without_splits_is_refused():
    with pytest.raises(ValueError, match="has no splits"):
        Protocol("mine", "custom", None, ())


# JSON files.


def write(tmp_path, content: str | bytes):
    file = tmp_path / "mine.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_a_file_lists_the_normal_classes_and_all_others_are_anomalous(tmp_path):
    file = write(tmp_path, '{"name": "vehicles", "splits": [[0, 1, 8, 9], [9]]}')
    for given_as in (file, str(file)):
        protocol = load(given_as, "cifar10")
        assert (protocol.name, protocol.family, protocol.dataset) == ("vehicles", "custom", None)
        assert protocol.splits[0] == Split((0, 1, 8, 9), (2, 3, 4, 5, 6, 7))
        assert protocol.splits[1] == Split((9,), tuple(range(9)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 200_000, "nested too deeply"),
        (b"\xff\xfe\x00", "codec can't decode|Expecting"),
        ("null", "contains null, expected an object"),
        ("[]", "contains an empty list, expected an object"),
        ('{"splits": [[0]]}', "has no field name"),
        ('{"name": "a"}', "has no field splits"),
        ('{"name": "a", "splits": [[0]], "family": "zoc"}', "unknown fields 'family'"),
        ('{"name": "a", "name": "b", "splits": [[0]]}', "same field twice"),
        ('{"name": 3, "splits": [[0]]}', "expected a name of printable text"),
        ('{"name": " ", "splits": [[0]]}', "expected a name of printable text"),
        ('{"name": "a\\nb", "splits": [[0]]}', "expected a name of printable text"),
        (json.dumps({"name": "a" * 101, "splits": [[0]]}), "101 characters, expected at most 100"),
        ('{"name": "zoc-6", "splits": [[0]]}', "'zoc-6' is the name of a published protocol"),
        ('{"name": "a", "splits": {}}', "splits is an object"),
        ('{"name": "a", "splits": []}', "splits is an empty list"),
        ('{"name": "a", "splits": [0]}', r"splits\[0\] is an integer"),
        ('{"name": "a", "splits": [[0], []]}', r"splits\[1\] is an empty list"),
        ('{"name": "a", "splits": [["0"]]}', r"splits\[0\] contains text"),
        ('{"name": "a", "splits": [[true]]}', r"splits\[0\] contains a boolean"),
        ('{"name": "a", "splits": [[1.0]]}', r"splits\[0\] contains a number with a fraction"),
        ('{"name": "a", "splits": [[NaN]]}', "NaN is not a JSON number"),
        ('{"name": "a", "splits": [[1e999]]}', "a number with a fraction"),
        ('{"name": "a", "splits": [[10]]}', r"splits\[0\] contains an id outside 0 to 9"),
        ('{"name": "a", "splits": [[-1]]}', "an id outside 0 to 9"),
        ('{"name": "a", "splits": [[' + "9" * 5000 + "]]}", "integer string conversion"),
        ('{"name": "a", "splits": [[1, 1]]}', r"splits\[0\] contains the same id twice"),
        (
            '{"name": "a", "splits": [[0,1,2,3,4,5,6,7,8,9]]}',
            "expected at least one anomalous class",
        ),
    ],
)
def test_an_invalid_file_is_refused_with_the_field_and_the_fault(tmp_path, content, message):
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load(file, "cifar10")
    assert str(caught.value).startswith("protocol file 'mine.json'")


def test_a_missing_file_a_folder_and_a_too_large_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'gone\.json' is not a file"):
        load("gone.json", "cifar10")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path, "cifar10")
    with pytest.raises(ValueError, match="10000001 bytes, expected at most 10000000"):
        load(write(tmp_path, b" " * 10_000_001), "cifar10")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


SPLITS = st.lists(st.lists(st.integers(-1, 6)))
FIELDS = st.fixed_dictionaries({"name": JSON | st.just("a"), "splits": JSON | SPLITS})


@pytest.mark.slow
@given(FIELDS | JSON)
def test_any_json_gives_a_valid_protocol_or_a_value_error(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(content), "utf-8")
    try:
        _, splits = read_protocol(file, num_classes=5, reserved=())
    except ValueError:
        return
    assert splits
    assert all(0 < len(set(ids)) == len(ids) < 5 and set(ids) <= set(range(5)) for ids in splits)


@given(st.binary(max_size=200))
def test_random_bytes_give_a_value_error(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="protocol file"):
        read_protocol(file, num_classes=5, reserved=())
