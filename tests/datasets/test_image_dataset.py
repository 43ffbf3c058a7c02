"""The interface to labelled images: validation of the fields, subsets and lazy images."""

import numpy as np
import pytest

from bliss_jax.datasets import ImageDataset, UnreadableImageError
from bliss_jax.datasets.image_dataset import ChainedImages, LazyImages, SelectedImages


def pixels(n: int = 6, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def make(**changes) -> ImageDataset:
    fields = {
        "name": "toy",
        "images": pixels(),
        "labels": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "class_names": ("a", "b", "c"),
        "source": "array",
    }
    return ImageDataset(**fields | changes)


class Squares(LazyImages):
    """Lazy images: image i has side length i + 1 and value i; image 3 cannot be read."""

    def __len__(self):
        return 6

    def read(self, position):
        if position == 3:
            raise UnreadableImageError("3", "for the test")
        return np.full((position + 1, position + 1, 3), position, np.uint8)


def test_images_may_be_an_array_or_a_list():
    assert len(make()) == 6
    ragged = [np.zeros((i + 1, 2, 3), np.uint8) for i in range(6)]
    assert make(images=ragged).images[5].shape == (6, 2, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16])
def test_labels_are_copied_to_a_read_only_int32_array(dtype):
    labels = np.array([0, 1, 2, 0, 1, 2], dtype)
    dataset = make(labels=labels)
    assert dataset.labels.dtype == np.int32
    assert dataset.labels.tolist() == labels.tolist()
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 2
    labels[0] = 2
    assert dataset.labels[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name is ' '"),
        ({"labels": np.zeros(5, np.int32)}, "5 labels for 6 images"),
        ({"labels": np.zeros((6, 1), np.int32)}, r"labels are int32 \[6, 1\]"),
        ({"labels": np.zeros(6)}, r"labels are float64 \[6\]"),
        ({"labels": np.zeros(6, bool)}, r"labels are bool \[6\]"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, r"from 0 to 3, expected .* 3 class names"),
        ({"labels": np.array([0, 1, -1, 2, 0, 0])}, "from -1 to 2"),
        ({"images": pixels().astype(np.float32)}, r"images are float32 \[6, 4, 4, 3\]"),
        ({"images": pixels()[..., :1]}, r"images are uint8 \[6, 4, 4, 1\]"),
        ({"images": list(pixels()[..., 0])}, r"image 0 is uint8 \[4, 4\]"),
        ({"images": [*pixels(5), "cat.jpg"]}, "image 5 is str"),
        ({"images": pixels(0), "labels": np.zeros(0, np.int32)}, "toy has no images"),
        ({"class_names": ()}, r"class_names is \(\)"),
        ({"class_names": "abc"}, "class_names is 'abc'"),
        ({"class_names": ("a", "b", "a")}, "repeated: 'a'"),
        ({"class_names": ("a", "", "c")}, "a class name is ''"),
    ],
)
def test_invalid_fields_are_refused(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_subset_has_the_images_and_labels_at_the_indices_in_order():
    dataset = make()
    for indices in ([4, 0, 4], np.array([4, 0, 4]), (i for i in (4, 0, 4)), range(4, -1, -4)):
        subset = dataset.subset(indices)
        chosen = [4, 0, 4][: len(subset)]
        np.testing.assert_array_equal(subset.images, dataset.images[chosen])
        assert subset.labels.tolist() == dataset.labels[chosen].tolist()
        assert (subset.name, subset.class_names) == (dataset.name, dataset.class_names)


def test_a_subset_of_lazy_images_reads_an_image_only_when_it_is_accessed():
    subset = make(images=Squares()).subset([3, 5]).subset([1, 0, 1])
    assert len(subset.images) == 3
    assert subset.images[0].shape == (6, 6, 3)
    with pytest.raises(UnreadableImageError, match="for the test"):
        subset.images[1]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one index"),
        ([0, 6], "from 0 to 6, expected positions in the 6 images"),
        ([-1], "from -1 to -1"),
        (np.array([0.0]), "indices are float64"),
        (np.zeros(6, bool), "flatnonzero"),
        (np.zeros((2, 2), int), r"shape \[2, 2\]"),
    ],
)
def test_invalid_indices_of_a_subset_are_refused(unchecked, indices, message):
    with pytest.raises(ValueError, match=message):
        make().subset(indices)


def test_lazy_images_support_negative_indices_and_raise_index_errors():
    images = Squares()
    assert images[-1].shape == images[np.int64(5)].shape == (6, 6, 3)
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            images[beyond]


def test_lazy_images_refuse_slices(unchecked):
    with pytest.raises(TypeError, match="integer"):
        Squares()[1:2]


def test_chained_images_are_the_concatenation_of_both_sources():
    chained = ChainedImages(SelectedImages(pixels(), np.array([5, 1])), Squares())
    assert len(chained) == 8
    np.testing.assert_array_equal(chained[0], pixels()[5])
    np.testing.assert_array_equal(chained[1], pixels()[1])
    assert [chained[i].shape[0] for i in (2, 4, 7, -1)] == [1, 3, 6, 6]
