"""Class names identify a named data set, and its own splits are mapped to the order of the names."""

import numpy as np
import pytest

from bliss_jax.datasets import class_positions, load_protocol, recognise_dataset
from bliss_jax.datasets.class_names import class_names_of
from bliss_jax.datasets.digits import load_digits
from bliss_jax.text import find_overlap, load_dictionary

DATASETS = {
    "cifar10": 10,
    "cifar100": 100,
    "cifar10+cifar100": 110,
    "tiny-imagenet": 200,
    "glyphs": 259,
}
SPLITS = {"cifar10": "zoc-6", "cifar100": "zoc", "tiny-imagenet": "cac", "glyphs": "glyphs-third"}


def names_of(dataset: str) -> tuple[str, ...]:
    names = class_names_of(dataset)
    assert names is not None
    return names


def test_known_class_names_have_the_facts_of_the_protocol():
    """The overlaps with the dictionary and the class lost by the reference are stated in method.md."""
    dictionary = load_dictionary("imagenet1k")
    overlaps = {"cifar10": 0, "cifar100": 25, "tiny-imagenet": 199}
    for dataset, overlap in overlaps.items():
        assert len(find_overlap(dictionary, names_of(dataset))) == overlap
    assert {dataset: len(names_of(dataset)) for dataset in DATASETS} == DATASETS
    assert list(names_of("cifar100")) == sorted(names_of("cifar100"))
    assert names_of("tiny-imagenet")[57] == "African elephant"
    assert class_names_of("my-folder") is None


@pytest.mark.parametrize("dataset", DATASETS)
def test_class_names_are_recognised_in_any_order_and_spelling(dataset):
    names = names_of(dataset)
    assert recognise_dataset(names) == dataset
    order = np.random.default_rng(0).permutation(len(names))
    spelt = [names[i].upper().replace(" ", "_") for i in order]
    assert recognise_dataset(spelt) == dataset
    positions = class_positions(dataset, spelt)
    assert positions is not None
    assert [order[i] for i in positions] == list(range(len(names)))
    assert class_positions(dataset, names) == tuple(range(len(names)))


def test_other_class_names_are_not_recognised():
    names = names_of("cifar10")
    assert recognise_dataset(names[:9]) is None
    assert recognise_dataset((*names[:9], "lorry")) is None
    assert recognise_dataset((*names[:9], "Cat")) is None, "two spellings of one class"
    assert recognise_dataset((*names, "lorry")) is None
    assert recognise_dataset(()) is None
    digits = load_digits("test").class_names
    assert recognise_dataset(digits) is None, "digits have no splits of their own"


@pytest.mark.parametrize(("dataset", "name"), SPLITS.items())
def test_the_splits_of_a_data_set_are_mapped_to_permuted_class_names(dataset, name):
    names = names_of(dataset)
    options = {"dataset": dataset, "num_classes": len(names)}
    expected = load_protocol(name, **options)
    assert load_protocol(name, **options, class_names=names) == expected
    permuted = np.random.default_rng(1).permutation(np.array(names)).tolist()
    mapped = load_protocol(name, **options, class_names=permuted)
    assert (mapped.name, mapped.family, mapped.dataset) == (name, expected.family, dataset)
    for found, split in zip(mapped.splits, expected.splits, strict=True):
        assert [permuted[i] for i in found.normal] == [names[i] for i in split.normal]
        assert {permuted[i] for i in found.anomalous} == {names[i] for i in split.anomalous}


def test_names_that_contradict_the_order_of_the_data_set_are_rejected():
    """Otherwise the ids of the splits would silently select other classes."""
    stl = "airplane bird car cat deer dog horse monkey ship truck".split()  # noqa: SIM905
    options = {"dataset": "cifar10", "num_classes": 10, "class_names": stl}
    with pytest.raises(ValueError, match="'bird' is class 2 of cifar10 and class 1 here"):
        load_protocol("zoc-6", **options)
    assert len(load_protocol("one-class", **options).splits) == 10


def test_unknown_names_keep_the_ids_of_the_data_set():
    names = ["Flugzeug", "Auto", "bird", "Katze", "Hirsch", "dog", "Frosch", "Pferd", "ship", "LKW"]
    options = {"dataset": "cifar10", "num_classes": 10}
    expected = load_protocol("zoc-6", **options)
    assert load_protocol("zoc-6", **options, class_names=names) == expected
