"""Folders in the wild: system files, sidecars, links, layouts, patterns, and the identity of their
content."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bliss_jax.datasets import FileReader, content_sha256, find_images, image_names, load_dataset
from bliss_jax.datasets.image_files import is_system_name

SYSTEM = [
    "@eaDir", "#recycle", "@Recycle", "@tmp", "#snapshot", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", ".thumbnails", "__MACOSX", ".git", "Network Trash Folder",
]  # fmt: skip
SYSTEM_FILES = [
    "ehthumbs.db",
    "Thumbs.db",
    "desktop.ini",
    "Icon\r",
    ".DS_Store",
    "._a.png",
    "THUMBS.DB",
]


def write(file: Path, value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4, 3), value, np.uint8)).save(file, "PNG")
    return file


def found(reader: FileReader, *paths: Path) -> list[str]:
    return [file.path for file in reader.find(paths)]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of two photographs, thumbnails of network storage everywhere, and sidecars."""
    root = tmp_path / "photos"
    for number, name in enumerate(["cat/1.jpg", "cat/2.JPG", "dog/1.png", "dog/2.png"]):
        photo = write(root / name, number)
        for folder in SYSTEM:
            write(root / folder / name, 200)
            write(photo.parent / folder / photo.name / "SYNOPHOTO_THUMB_M.jpg", 201)
    for folder in (root, root / "cat"):
        for name in SYSTEM_FILES:
            (folder / name).write_bytes(b"system")
    for name in ("cat/1.MOV", "cat/1.AAE", "dog/1.json", "dog/2.xmp", "notes.txt"):
        (root / name).write_text("{}")
    return root


@pytest.mark.parametrize("name", [*SYSTEM, *SYSTEM_FILES])
def test_names_of_systems_are_recognised(name):
    assert is_system_name(name)


@pytest.mark.parametrize(
    "name", ["photo.jpg", "icon.png", "Icon", "found", "a@b.png", "recycle", "desktop"]
)
def test_names_of_users_are_not_taken_for_those_of_systems(name):
    assert not is_system_name(name)


def test_all_ways_to_list_a_folder_find_the_same_images(photos):
    expected = ["cat/1.jpg", "cat/2.JPG", "dog/1.png", "dog/2.png"]
    readers = [FileReader() for _ in range(3)]
    dataset = load_dataset(photos, reader=readers[0])
    assert image_names(dataset.images) == expected
    assert [int(dataset.images[i][0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    flat = find_images(photos, ("pet",), readers[1])
    assert image_names(flat.images) == expected
    assert [os.path.relpath(path, photos) for path in found(readers[2], photos)] == expected
    for reader in readers:
        assert reader.other == {".mov": 1, ".aae": 1, ".json": 1, ".xmp": 1, ".txt": 1}
        assert reader.ignored["@eaDir"] == 3
        assert sum(reader.ignored.values()) == 3 * len(SYSTEM) + 2 * len(SYSTEM_FILES)
        ignored, skipped = reader.lines()
        assert ignored.startswith("ignored 3 x #recycle, 3 x #snapshot, 3 x $RECYCLE.BIN, ")
        assert skipped == (
            "skipped 5 files with no image extension: 1 x .aae, 1 x .json, 1 x .mov, 1 x .txt, 1 x .xmp"
        )


def test_a_pattern_chooses_files_by_name_or_path(photos):
    (photos / "cat" / "raw").write_bytes((photos / "cat" / "1.jpg").read_bytes())
    for globs, expected in [
        (["*.JPG"], ["cat/1.jpg", "cat/2.JPG"]),
        (["dog/*.png"], ["dog/1.png", "dog/2.png"]),
        (
            ["1.*", "raw"],
            ["cat/1.AAE", "cat/1.MOV", "cat/1.jpg", "cat/raw", "dog/1.json", "dog/1.png"],
        ),
    ]:
        reader = FileReader(globs=globs)
        assert sorted(os.path.relpath(path, photos) for path in found(reader, photos)) == sorted(
            expected
        )
    reader = FileReader(globs=["*.jpg"])
    dataset = load_dataset(photos, reader=reader, strict=False)
    assert image_names(dataset.images) == ["cat/1.jpg", "cat/2.JPG"]
    assert dataset.class_names == ("cat",)
    assert dataset.problems == ("'dog': a class folder without images",)
    assert "with no match of the pattern" in reader.lines()[-1]


def test_problems_are_listed_without_strict_and_an_error_with_it(photos, tmp_path):
    write(tmp_path / "outside.png")
    (photos / "cat" / "out.png").symlink_to(tmp_path / "outside.png")
    (photos / "empty").mkdir()
    write(photos / "loose.png")
    dataset = load_dataset(photos, strict=False)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.problems == (
        "'cat/out.png': a link that leads out of the folder",
        "'empty': a class folder without images",
        "'loose.png': not inside a class folder",
    )
    with pytest.raises(ValueError, match="contains entries that are not images in class folders"):
        load_dataset(photos)


def test_links_out_of_a_folder_are_followed_on_request(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write(root / "cat" / "a.png")
    write(elsewhere / "b.png", 7)
    (root / "cat" / "out.png").symlink_to(elsewhere / "b.png")
    (root / "dog").symlink_to(elsewhere)
    refusing, following = FileReader(), FileReader(follow_links=True)
    problems = {Path(f.path).name: f.problem for f in refusing.find([root]) if f.problem}
    assert problems == dict.fromkeys(("out.png", "dog"), "a link that leads out of the folder")
    assert refusing.lines(command_line=True) == [
        "2 links were not followed; --follow-links follows links out of the folder"
    ]
    assert "follow_links=True" in refusing.lines()[0]
    names = [os.path.relpath(f.path, root) for f in following.find([root]) if not f.problem]
    assert names == ["cat/a.png", "cat/out.png", "dog/b.png"]
    dataset = load_dataset(root, reader=following)
    assert image_names(dataset.images) == names
    assert int(dataset.images[2][0, 0, 0]) == 7


def test_links_to_a_folder_above_do_not_loop(tmp_path):
    write(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    reader = FileReader(follow_links=True)
    rows = [(os.path.relpath(f.path, tmp_path), f.problem) for f in reader.find([tmp_path])]
    loop = "a link to a folder that contains it"
    assert rows == [("a/up", loop), ("a/x.png", None), ("b/up", loop), ("b/x.png", None)]


def test_more_than_a_thousand_nested_folders_are_searched(tmp_path):
    here, depth = os.getcwd(), 1200  # noqa: PTH109
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
        Image.new("RGB", (2, 2)).save("deep.png")
        files = list(FileReader().find([tmp_path]))
        assert [Path(file.path).name for file in files] == ["deep.png"]
        assert len(Path(files[0].path).parts) > depth
    finally:  # pytest could not remove so many folders
        Path("deep.png").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")  # noqa: PTH106
        os.chdir(here)


def mvtec(root: Path) -> Path:
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/crack/000"):
        write(root / f"{name}.png")
    write(root / "ground_truth" / "crack" / "000_mask.png")
    (root / "license.txt").write_text("")
    return root


def test_the_layout_of_mvtec_is_read_with_the_folders_name_for_good(tmp_path):
    root = mvtec(tmp_path / "bottle")
    reader = FileReader()
    train, test = (load_dataset(root, split, reader=reader) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("crack", "bottle")
    assert train.labels.tolist() == [1, 1]
    assert test.labels.tolist() == [0, 1]
    assert "'good' as 'bottle'" in train.source
    assert any("'good' is named like its folder, 'bottle'" in line for line in reader.lines())
    assert reader.ignored["ground_truth (masks)"] == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_val_folder_is_a_split_and_replaces_a_missing_test_folder(tmp_path, val):
    for name in ("train/cat/a", f"{val}/cat/b", f"{val}/dog/c"):
        write(tmp_path / "own" / f"{name}.png")
    for split in ("val", "test"):
        dataset = load_dataset(tmp_path / "own", split)
        assert image_names(dataset.images) == [f"{val}/cat/b.png", f"{val}/dog/c.png"]
    write(tmp_path / "own" / "test" / "emu" / "d.png")
    assert load_dataset(tmp_path / "own", "train").class_names == ("cat", "dog", "emu")
    assert image_names(load_dataset(tmp_path / "own", "test").images) == ["test/emu/d.png"]


def test_the_folder_that_is_in_the_way_of_a_layout_is_named(tmp_path):
    root = mvtec(tmp_path / "bottle")
    write(root / "masks" / "a" / "1.png")
    with pytest.raises(ValueError, match="'masks': not inside the folder train or test"):
        load_dataset(root)
    assert load_dataset(root, strict=False).problems == (
        "'masks': not inside the folder train or test",
    )
    with pytest.raises(ValueError, match="has no subfolder 'val' for the split, only train, test"):
        load_dataset(root, "val", strict=False)


def test_the_identity_of_a_folder_is_that_of_its_content(tmp_path):
    file, other = tmp_path / "a" / "x.bmp", tmp_path / "new.bmp"
    file.parent.mkdir()
    for path, value in ((file, 1), (other, 2)):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    facts = file.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert other.stat().st_size == facts.st_size
    identities = {content_sha256(load_dataset(tmp_path, strict=False).images)}
    shutil.copy2(other, file)  # like cp -p: the same size and time of modification
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    dataset = load_dataset(tmp_path, strict=False)
    identities.add(content_sha256(dataset.images))
    os.utime(file)
    identities.add(content_sha256(load_dataset(tmp_path, strict=False).images))
    assert len(identities) == 2, "the time of modification does not matter"
    black = load_dataset(tmp_path, strict=False, reader=FileReader(background="black"))
    identities.add(content_sha256(black.images))
    assert len(identities) == 3, "the background does"
    file.unlink()
    identities.add(content_sha256(dataset.images))
    assert len(identities) == 4
