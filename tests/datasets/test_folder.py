"""Folders with one subfolder per class: layouts, order of the images, and errors for other entries."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bliss_jax.datasets import ImageDataset, UnreadableImageError, load_dataset


def write(file: Path, value: int) -> None:
    """Writes an image in which every pixel has the given value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4, 3), value, np.uint8)).save(file)


@pytest.fixture
def pets(tmp_path) -> Path:
    root = tmp_path / "pets"
    for value, name in enumerate(
        ["dog/b.png", "cat/10.png", "dog/a.PNG", "cat/2.png", "cat/a b.png"]
    ):
        write(root / name, value)
    return root


def values(dataset: ImageDataset) -> list[int]:
    return [int(dataset.images[i][0, 0, 0]) for i in range(len(dataset))]


def test_classes_and_files_are_sorted_by_name(pets):
    dataset = load_dataset(pets)
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(dataset) == [1, 3, 4, 2, 0]
    assert dataset.images[0].shape == (3, 4, 3)
    assert dataset.source == "folder (5 files)"


def test_the_order_does_not_depend_on_the_file_system(pets, monkeypatch):
    expected = values(load_dataset(pets))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            self._entries = list(scandir(path))[::-1]

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert values(load_dataset(pets)) == expected


def test_a_folder_may_be_a_string_a_relative_path_or_a_link(pets, monkeypatch):
    expected = values(load_dataset(pets))
    monkeypatch.chdir(pets.parent)
    (pets.parent / "link").symlink_to(pets)
    for folder in ("pets", "./pets", str(pets), Path("pets"), "link", "pets/"):
        dataset = load_dataset(folder)
        assert values(dataset) == expected
        assert dataset.name == "pets"
    dataset = load_dataset("pets")
    monkeypatch.chdir("/")
    assert values(dataset) == expected


def test_both_splits_have_the_union_of_their_classes(tmp_path):
    for value, name in enumerate(
        ["train/dog/a.png", "train/cat/a.png", "test/dog/a.png", "test/emu/a.png"]
    ):
        write(tmp_path / name, value)
    train, test = load_dataset(tmp_path, "train"), load_dataset(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog", "emu")
    assert (train.labels.tolist(), values(train)) == ([0, 1], [1, 0])
    assert (test.labels.tolist(), values(test)) == ([1, 2], [2, 3])
    assert test.source == "folder (2 files, split test)"


def test_invalid_entries_beside_and_inside_the_split_folders_are_listed(tmp_path):
    write(tmp_path / "elsewhere" / "cat" / "a.png", 9)
    root = tmp_path / "pets"
    write(root / "train" / "cat" / "a.png", 0)
    write(root / "loose.png", 9)
    (root / "test").symlink_to(tmp_path / "elsewhere")
    write(root / "train" / "b.png", 9)
    with pytest.raises(ValueError, match="'pets' contains entries that are not") as caught:
        load_dataset(root)
    assert str(caught.value).splitlines()[1:] == [
        "  'loose.png': not inside the folder train or test",
        "  'test': a link that leads out of the folder",
        "  'train/b.png': not inside a class folder",
    ]


def test_a_class_may_be_named_train(tmp_path):
    for value, name in enumerate(["bus/a.png", "train/a.png"]):
        write(tmp_path / "both" / name, value)
    write(tmp_path / "alone" / "train" / "a.png", 7)
    assert load_dataset(tmp_path / "both").class_names == ("bus", "train")
    assert load_dataset(tmp_path / "alone").class_names == ("train",)


def test_a_missing_split_is_refused(pets, tmp_path):
    with pytest.raises(ValueError, match="'pets' has no subfolders train and test"):
        load_dataset(pets, "test")
    write(tmp_path / "half" / "train" / "cat" / "a.png", 0)
    with pytest.raises(ValueError, match="'half' has no subfolder 'test'"):
        load_dataset(tmp_path / "half", "test")


def test_files_that_file_browsers_create_are_ignored(pets):
    expected = values(load_dataset(pets))
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", ".git/config"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_bytes(b"x")
    assert values(load_dataset(pets)) == expected


def test_invalid_entries_are_listed_with_a_reason(pets, tmp_path):
    write(tmp_path / "elsewhere" / "x.png", 9)
    (pets / "labels.csv").write_text("")
    write(pets / "loose.png", 9)
    (pets / "cat" / "notes.txt").write_text("")
    write(pets / "cat" / "more" / "x.png", 9)
    (pets / "dog" / "out.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (pets / "dog" / "broken.png").symlink_to("gone.png")
    os.mkfifo(pets / "dog" / "pipe.png")
    (pets / "emu").mkdir()
    (pets / "fox").symlink_to(tmp_path / "elsewhere")
    (pets / "gnu\n").mkdir()
    with pytest.raises(
        ValueError, match="'pets' contains entries that are not images in class folders"
    ) as caught:
        load_dataset(pets)
    assert str(caught.value).splitlines()[1:] == [
        "  'cat/more': a folder within a class folder",
        "  'dog/broken.png': a broken link",
        "  'dog/out.png': a link that leads out of the folder",
        "  'dog/pipe.png': not a regular file",
        "  'emu': a class folder without images",
        "  'fox': a link that leads out of the folder",
        "  'gnu\\n': a class name with unprintable characters or invalid UTF-8",
        "  'loose.png': not inside a class folder",
    ]


def test_the_first_ten_invalid_entries_are_listed_and_the_others_counted(pets):
    for i in range(25):
        (pets / "cat" / f"{i:02d}").mkdir()
    with pytest.raises(ValueError, match=r"'cat/09'.*\n  \.\.\. and 15 more$"):
        load_dataset(pets)


def test_links_inside_the_folder_are_followed(pets):
    (pets / "cat" / "z.png").symlink_to("../dog/b.png")
    (pets / "puppy").symlink_to("dog")
    dataset = load_dataset(pets)
    assert dataset.class_names == ("cat", "dog", "puppy")
    assert values(dataset) == [1, 3, 4, 0, 2, 0, 2, 0]


def test_a_chain_of_links_out_of_the_folder_and_a_loop_are_refused(pets, tmp_path):
    (tmp_path / "pets_not").mkdir()
    write(tmp_path / "pets_not" / "x.png", 9)
    (pets / "cat" / "y.png").symlink_to("z.png")
    (pets / "cat" / "z.png").symlink_to(tmp_path / "pets_not" / "x.png")
    with pytest.raises(
        ValueError, match=r"y\.png': a link that leads out[\s\S]*z\.png': a link that leads"
    ):
        load_dataset(pets)
    (pets / "cat" / "y.png").unlink()
    (pets / "cat" / "z.png").unlink()
    (pets / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match=r"'cat/loop\.png': a broken link"):
        load_dataset(pets)


def test_unusual_file_names_are_read_and_are_escaped_in_errors(tmp_path):
    names = [b"-rf.png", b"new\nline.png", b"not utf8 \xff.png", "näme.png".encode(), b"$(x).png"]
    for value, name in enumerate(sorted(names)):
        write(tmp_path / "cat" / os.fsdecode(name), value)
    dataset = load_dataset(tmp_path)
    assert sorted(values(dataset)) == list(range(5))
    for name in names:
        (tmp_path / "cat" / os.fsdecode(name)).write_bytes(b"")
    for i in range(5):
        with pytest.raises(UnreadableImageError) as caught:
            dataset.images[i]
        assert str(caught.value).isascii() or "näme" in str(caught.value)


def test_reading_a_damaged_or_deleted_image_names_it_and_leaves_the_others_readable(pets):
    (pets / "dog" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (pets / "cat" / "10.png").unlink()
    (pets / "cat" / "10.png").symlink_to("2.png")
    dataset = load_dataset(pets)
    (pets / "cat" / "a b.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"cannot read image 'dog/b\.png'"):
        dataset.images[4]
    with pytest.raises(UnreadableImageError, match=r"'cat/a b\.png': No such file"):
        dataset.images[2]
    assert [int(dataset.images[i][0, 0, 0]) for i in (0, 1, 3)] == [3, 3, 2]


def test_the_content_of_a_file_determines_its_format(tmp_path):
    write(tmp_path / "cat" / "real.png", 5)
    (tmp_path / "cat" / "real.png").rename(tmp_path / "cat" / "called.jpg")
    assert values(load_dataset(tmp_path)) == [5]


def test_several_threads_read_the_same_images_as_one(tmp_path):
    for value in range(200):
        write(tmp_path / "cat" / f"{value:03d}.png", value)
    dataset = load_dataset(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: int(dataset.images[i][0, 0, 0]), range(200)))
    assert read == list(range(200))


def test_folders_without_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no class folders"):
        load_dataset(tmp_path)
    write(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match=r"'a\.png': not inside a class folder"):
        load_dataset(tmp_path)
    with pytest.raises(
        ValueError, match=r"neither a folder, nor tfds:NAME, nor one of the data sets"
    ):
        load_dataset(tmp_path / "a.png")


def test_options_for_named_data_sets_are_refused_for_folders(pets):
    with pytest.raises(ValueError, match="data_dir and manual_dir are only for named data sets"):
        load_dataset(pets, data_dir=pets)


@pytest.mark.shared_data
def test_real_jpegs_equal_those_that_pillow_decodes(shared, tmp_path):
    import tarfile

    with tarfile.open(shared / "data" / "cifar10_test_jpeg.tar.gz") as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith("0.jpg")][:200]
        tar.extractall(tmp_path, members, filter="data")
    dataset = load_dataset(tmp_path, "test")
    assert len(dataset) == len(members)
    for i in range(len(dataset)):
        file = tmp_path / sorted(member.name for member in members)[i]
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(file)))
