"""Data sets that tensorflow-datasets has prepared, in several layouts of features, are read without their builders."""

import io
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from bliss_jax.datasets import load_dataset, load_tfds

tfds = pytest.importorskip("tensorflow_datasets")
features = tfds.features


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    content.seek(0)
    return content


def flat(i, channels=3):
    shape = (8, 9, 3) if channels == 3 else (8, 9)
    return np.full(shape, 20 * i, np.uint8)


class _Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    FEATURES: ClassVar = {}
    SUPERVISED = None
    SPLITS: ClassVar = {"train": 6, "test": 4}

    def _info(self):
        names = features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=names, supervised_keys=self.SUPERVISED)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in self.SPLITS.items()}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, self.example(i)


class Photographs(_Small, skip_registration=True):
    """Colour images with names of classes and a text, as in `cats_vs_dogs` or `eurosat`."""

    FEATURES: ClassVar = {
        "image": features.Image(shape=(None, None, 3)),
        "file": features.Text(),
        "label": features.ClassLabel(names=["ant", "bee"]),
    }
    SUPERVISED = ("image", "label")

    def example(self, i):
        return {"image": png(flat(i)), "file": f"{i}.png", "label": i % 2}


class Digits(_Small, skip_registration=True):
    """Grey images, classes without names, own keys, a split `validation` and a configuration."""

    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in ("small", "large")]
    FEATURES: ClassVar = {
        "picture": features.Image(shape=(8, 9, 1)),
        "digit": features.ClassLabel(num_classes=3),
    }
    SPLITS: ClassVar = {"train": 3, "validation": 5}

    def example(self, i):
        return {"picture": png(flat(i, 1)), "digit": i % 3}


class TwoLabels(_Small, skip_registration=True):
    """Two labels, of which `supervised_keys` chooses one, and boxes, as in `cifar100` and `cars196`."""

    FEATURES: ClassVar = {
        "image": features.Image(shape=(None, None, 3)),
        "coarse": features.ClassLabel(names=["x", "y", "z"]),
        "fine": features.ClassLabel(names=["p", "q"]),
        "boxes": features.Sequence({"box": features.BBoxFeature()}),
    }
    SUPERVISED = ("image", "fine")

    def example(self, i):
        box = features.BBox(0.1, 0.2, 0.3, 0.4)
        return {"image": png(flat(i)), "coarse": 2, "fine": (i + 1) % 2, "boxes": [{"box": box}]}


class NoLabel(_Small, skip_registration=True):
    FEATURES: ClassVar = {"image": features.Image(shape=(None, None, 3))}
    SPLITS: ClassVar = {"test": 2}

    def example(self, i):
        return {"image": png(flat(i))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    builders = [(kind, {}) for kind in (Photographs, TwoLabels, NoLabel)]
    builders += [(Digits, {"config": "small"})]
    for kind, config in builders:
        builder = kind(data_dir=root, file_format="array_record", **config)
        builder.download_and_prepare(download_config=options, file_format="array_record")
    return root


@pytest.mark.parametrize(
    ("name", "names", "label_of"),
    [
        ("tfds:photographs", ("ant", "bee"), lambda i: i % 2),
        ("tfds:two_labels", ("p", "q"), lambda i: (i + 1) % 2),
    ],
)
def test_splits_labels_and_names_come_from_the_prepared_folder(prepared, name, names, label_of):
    for split, number in (("train", 6), ("test", 4)):
        dataset = load_dataset(name, split, data_dir=prepared)
        assert (dataset.name, dataset.class_names, len(dataset)) == (name, names, number)
        values = [int(dataset.images[i][0, 0, 0]) // 20 for i in range(number)]
        assert sorted(values) == list(range(number))
        assert dataset.labels.tolist() == [label_of(i) for i in values]
        assert dataset.images[0].shape == (8, 9, 3)
        assert "1.2.0" in dataset.source


def test_grey_images_unnamed_classes_and_the_split_validation_are_read(prepared):
    for name in ("tfds:digits", "tfds:digits/small"):
        dataset = load_dataset(name, "test", data_dir=prepared)
        assert dataset.class_names == ("0", "1", "2")
        assert dataset.images[0].shape == (8, 9, 3)
        assert len(dataset) == 5


def test_what_is_missing_is_named_with_the_command_that_prepares_it(prepared):
    with pytest.raises(
        ValueError,
        match=r"tfds:photographs has no split validation or val; its splits are train, test",
    ):
        load_dataset("tfds:photographs", "val", data_dir=prepared)
    with pytest.raises(
        ValueError, match="has no label: expected a feature of type ClassLabel, found image"
    ):
        load_dataset("tfds:no_label", "test", data_dir=prepared)
    with pytest.raises(ValueError, match=r"tfds:mnits is not prepared in .* \(did you mean mnist"):
        load_dataset("tfds:mnits", data_dir=prepared)
    with pytest.raises(
        ValueError,
        match=r"tfds.builder\('svhn_cropped', data_dir='prepared'\)\.download_and_prepare",
    ):
        load_dataset("tfds:svhn_cropped", data_dir=prepared)


def test_images_without_labels_are_one_class_if_no_labels_are_needed(prepared):
    dataset = load_tfds("no_label", "test", prepared, need_labels=False)
    assert (dataset.class_names, dataset.labels.tolist()) == (("image",), [0, 0])
    assert {int(dataset.images[i][0, 0, 0]) for i in range(2)} == {0, 20}


def test_several_prepared_configurations_must_be_named(prepared):
    builder = Digits(data_dir=prepared, file_format="array_record", config="large")
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=options, file_format="array_record")
    with pytest.raises(
        ValueError, match=r"has the configurations large, small: name one, e.g. tfds:digits/large"
    ):
        load_dataset("tfds:digits", "test", data_dir=prepared)
    assert len(load_dataset("tfds:digits/large", "test", data_dir=prepared)) == 5
