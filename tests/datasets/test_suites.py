"""Image lists of OpenOOD and named suites, read from small stand-ins in the official layouts."""

import re

import numpy as np
import pytest
from PIL import Image
from suite_folders import CIFAR10, write_mcm_imagenet, write_openood_cifar10

from bliss_jax.datasets import OOD_CLASS, SUITES, load_imglist, load_suite


@pytest.fixture(scope="module")
def openood(tmp_path_factory):
    return write_openood_cifar10(tmp_path_factory.mktemp("openood"))


def test_openood_cifar10_is_read_from_its_lists(openood):
    found = load_suite("openood-cifar10", openood)
    assert found.train.class_names == found.test.class_names == CIFAR10
    assert (len(found.train), len(found.test)) == (20, 10)
    assert found.test.labels.tolist() == list(range(10))
    assert [(part.name, part.group) for part, _ in found.ood] == [
        ("cifar100", "near"), ("tin", "near"), ("mnist", "far"), ("svhn", "far"), ("texture", "far"),
        ("places365", "far"),
    ]  # fmt: skip
    for _, dataset in found.ood:
        assert dataset.class_names == (OOD_CLASS,)
        assert len(dataset) == 3
        assert dataset.images[0].shape == (16, 16, 3)


def test_mcm_imagenet_is_read_from_its_folders(tmp_path, monkeypatch):
    names = ("tench", "goldfish")
    write_mcm_imagenet(tmp_path, ("n01440764", "n01443537"))
    with pytest.raises(
        ValueError, match=r"expected the 1000 class names of mcm-imagenet in the order of"
    ):
        load_suite("mcm-imagenet", tmp_path)
    with pytest.raises(ValueError, match="expected 1000 names for mcm-imagenet, got 2"):
        load_suite("mcm-imagenet", tmp_path, class_names=names)
    many = tuple(f"class {i}" for i in range(1000))
    with pytest.raises(
        ValueError, match=r"expected 1000 class folders in .*ImageNet, found 2\nIts files"
    ):
        load_suite("mcm-imagenet", tmp_path, class_names=many)
    small = {**SUITES, "mcm-imagenet": SUITES["mcm-imagenet"].__class__(
        **{**vars(SUITES["mcm-imagenet"]), "classes": 2})}  # fmt: skip
    monkeypatch.setattr("bliss_jax.datasets.suites.SUITES", small)
    found = load_suite("mcm-imagenet", tmp_path, class_names=names)
    assert found.train.class_names == names
    assert (len(found.train), len(found.test)) == (4, 2)
    assert {part.name: len(d) for part, d in found.ood} == {
        "iNaturalist": 3, "SUN": 3, "Places": 3, "Textures": 3,
    }  # fmt: skip


def test_suites_have_the_sets_of_their_publications():
    assert {*SUITES} == {
        "openood-cifar10", "openood-cifar100", "openood-imagenet200", "openood-imagenet", "mcm-imagenet",
    }  # fmt: skip
    for name in ("openood-imagenet200", "openood-imagenet"):
        groups = {part.name: part.group for part in SUITES[name].ood}
        assert groups == {
            "ssb_hard": "near", "ninco": "near", "inaturalist": "far", "textures": "far", "openimage_o": "far",
        }  # fmt: skip
    assert all(suite.source for suite in SUITES.values())


def test_what_is_missing_is_named_with_the_source_of_the_files(openood, tmp_path):
    with pytest.raises(
        ValueError, match=r"(?s)no file .*train_cifar10.txt\nIts files come from OpenOOD v1.5"
    ):
        load_suite("openood-cifar10", tmp_path)
    with pytest.raises(ValueError, match=r"got 'openood-cifar' \(did you mean openood-cifar10"):
        load_suite("openood-cifar", openood)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png", "line 1: expected PATH LABEL with an integer label, got 'a.png'"),
        (
            "a.png 0\nb c.png 7",
            "expected labels from 0 to 1, because there are 2 class names, got 7 for 'b c.png'",
        ),
        ("a.png 0\nb c.png 1\nd.png 1", r"1 of 3 files are not in .*: d.png"),
        ("\n", "expected lines of PATH LABEL, found none"),
    ],
)
def test_a_list_with_mistakes_is_refused_with_its_line(tmp_path, lines, message):
    for name in ("a.png", "b c.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(ValueError, match=message) as error:
        load_imglist(tmp_path / "list.txt", tmp_path, class_names=("x", "y"))
    assert re.search("list.txt", str(error.value))


def test_labels_of_an_out_of_distribution_list_are_ignored(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a b.png")
    (tmp_path / "list.txt").write_text("a b.png -1\na b.png 3\n")
    dataset = load_imglist(tmp_path / "list.txt", tmp_path)
    assert dataset.labels.tolist() == [0, 0]
    assert dataset.class_names == (OOD_CLASS,)
