"""Data sets from folders with one subfolder per class.

    folder/class_name/*.jpg                        one split, named "train"
    folder/{train,test,val}/class_name/*.jpg       several splits; val may be called valid or validation

The class names are the sorted names of the subfolders. With several splits they are the union of all, so a
label has the same meaning in each split, and a class may occur in only one of them. Images are sorted by
class and file name, independently of the order in the file system. An image is decoded when it is accessed
(`decode.py` has the rules).

The layout of MVTec AD is recognised: `ground_truth` beside train and test holds masks and is ignored, and if
`good` is the only class in train, it is named like the folder, e.g. "bottle".

Nothing is skipped silently. Hidden and system files are ignored and counted, and so are files whose
extension is not that of an image (`image_files.py`). Every other entry that is not an image in a class folder
is a problem and is listed with its reason: nested folders, images beside the class folders, empty class
folders, links that point outside the folder, sockets and so on.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from bliss_jax.datasets.decode import Decoding
from bliss_jax.datasets.image_dataset import ImageDataset, LazyImages
from bliss_jax.datasets.image_files import FileReader, is_system_name

SPLITS = ("train", "test", "val")
_SPLIT_OF = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
_MASKS, _GOOD = "ground_truth", "good"
_LISTED = 10
_HASHED_AT_ONCE = 64


class FileImages(LazyImages):
    """Images in files below a folder."""

    def __init__(self, root: Path, names: Sequence[str], reader: FileReader | None = None):
        self._root = root
        self._names = names
        self.reader = reader or FileReader()
        """How the files are read, and what was noticed."""

    def __len__(self) -> int:
        return len(self._names)

    @property
    def decoding(self) -> Decoding:
        """Background and bit depth."""
        return self.reader.decoding

    @property
    def names(self) -> Sequence[str]:
        """Path of each image below the folder."""
        return self._names

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes the file; errors give its path relative to the folder."""
        name = self._names[position]
        return self.reader.read(self._root / name, name, f"{self._root}/{name}")

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the decoding, and each file's name and the SHA-256 of its content.

        The content is hashed, because size and modification time may stay the same when it changes
        (`cp -p`), and may change when it stays the same (a copy on another machine).
        """
        yield repr(self.decoding.describe()).encode()
        with ThreadPoolExecutor(min(16, 4 + (os.cpu_count() or 1))) as pool:
            for start in range(0, len(self), _HASHED_AT_ONCE):
                names = self._names[start : start + _HASHED_AT_ONCE]
                for name, digest in zip(names, pool.map(self._digest, names), strict=True):
                    yield repr((name, digest)).encode()

    def _digest(self, name: str) -> str | None:
        """Returns the SHA-256 of a file, or None if it cannot be read."""
        path = self._root / name
        try:
            if not path.is_file():  # opening a pipe would block
                return None
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None


def load_folder(
    folder: Path, split: str, reader: FileReader | None = None, *, strict: bool = True
) -> ImageDataset:
    """Lists the images of a folder with one subfolder per class.

    Args:
        folder: A folder in one of the layouts in the module's docstring.
        split: `"train"`, `"test"` or `"val"`. A folder without split subfolders has only `"train"`. If there
            is no test folder, `"test"` is the val folder.
        reader: How files are found and read.
        strict: Whether problems are an error. If not, they are in the data set's `problems`.

    Returns:
        A data set with the folder's name.

    Raises:
        ValueError: The folder has neither layout, or `strict` is true and there are problems, which the
            message lists.
    """
    return _Listing(folder.resolve(), reader or FileReader()).dataset(split, strict)


def find_images(folder: Path, labels: tuple[str, ...], reader: FileReader) -> ImageDataset:
    """Returns the image files below a folder as a data set, all with the first label.

    Args:
        folder: Folder, searched recursively.
        labels: Class names.
        reader: How files are found and read.

    Raises:
        ValueError: The folder has no image files, or labels are empty or repeated.
    """
    root = folder.resolve()
    found = list(reader.find([root]))
    problems = [
        f"{os.path.relpath(file.path, root)!r}: {file.problem}" for file in found if file.problem
    ]
    names = [str(Path(file.path).relative_to(root)) for file in found if not file.problem]
    if not names:
        facts = "; ".join([*problems[:10], *reader.lines(command_line=True)])
        raise ValueError(f"{folder}: expected image files, found none" + (facts and f" ({facts})"))
    return ImageDataset(
        root.name,
        FileImages(root, names, reader),
        np.zeros(len(names), np.int32),
        labels,
        f"folder ({len(names)} files)",
        tuple(problems),
    )


UNNAMED_CLASS = "object"
"""Class of the images of a folder without subfolders, if it has no other name."""


def is_flat_folder(folder: Path) -> bool:
    """Returns whether a folder contains files and no subfolders. Hidden entries do not count.

    Raises:
        ValueError: The folder cannot be listed.
    """
    entries = _visible(folder)
    return bool(entries) and not any(_is_folder(entry) for entry in entries)


class _Listing:
    """The class folders of a folder."""

    def __init__(self, root: Path, reader: FileReader):
        self.root, self.reader = root, reader
        self.problems: list[str] = []

    def dataset(self, split: str, strict: bool) -> ImageDataset:
        name = self.root.name
        splits = self._split_folders()
        if splits and split == "test" and "test" not in splits and "val" in splits:
            split = "val"
        if splits and split not in splits:
            raise ValueError(
                f"folder {name!r} has no subfolder {split!r} for the split, only {', '.join(splits)}"
            )
        if not splits and split != SPLITS[0]:
            raise ValueError(
                f"split is {split!r}, but folder {name!r} has no subfolders train and test: all of its "
                "images belong to the split 'train'"
            )
        if splits:
            self._note_problems_of_splits(splits)
        files = {
            key: self._classes(self.root / splits[key] if splits else self.root)
            for key in splits or SPLITS[:1]
        }
        if self.problems and strict:
            self._fail()
        class_names = sorted(set().union(*files.values()))
        names = [file for c in class_names for file in files[split].get(c, [])]
        if not names:
            if self.problems:
                self._fail()
            others = f"; {'; '.join(self.reader.lines())}" if self.reader.other else ""
            raise ValueError(
                f"folder {name!r} has no class folders with images for split {split!r}: expected "
                f"{name}/CLASS/*.jpg or {name}/{split}/CLASS/*.jpg{others}"
            )
        counts = [len(files[split].get(c, [])) for c in class_names]
        dataset = ImageDataset(
            name=name,
            images=FileImages(self.root, names, self.reader),
            labels=np.repeat(np.arange(len(class_names), dtype=np.int32), counts),
            class_names=tuple(class_names),
            source=f"folder ({len(names)} files{f', split {split}' if splits else ''})",
            problems=tuple(self.problems),
        )
        is_mvtec = splits and set(files.get("train", ())) == {_GOOD} and name not in class_names
        return self._named_like_folder(dataset) if is_mvtec else dataset

    def _named_like_folder(self, dataset: ImageDataset) -> ImageDataset:
        """Names the class "good", which says nothing about the images, like the folder."""
        name = self.root.name
        self.reader.remarks.append(f"the class {_GOOD!r} is named like its folder, {name!r}")
        named = tuple(name if c == _GOOD else c for c in dataset.class_names)
        return replace(
            dataset, class_names=named, source=f"{dataset.source[:-1]}, {_GOOD!r} as {name!r})"
        )

    def _fail(self) -> None:
        listed = [f"  {problem}" for problem in self.problems[:_LISTED]]
        more = len(self.problems) - _LISTED
        raise ValueError(
            f"folder {self.root.name!r} contains entries that are not images in class folders:\n"
            + "\n".join(listed)
            + (f"\n  ... and {more} more" if more > 0 else "")
        )

    def _split_folders(self) -> dict[str, str]:
        """Returns the subfolder of each split; empty if the folder itself contains the class folders.

        A class may be named "train". Folders with names of splits are splits if one of them contains
        folders. If there are other folders beside them, train and another split must exist, and all splits
        must contain folders and no images.
        """
        inner = [entry.name for entry in _visible(self.root) if _is_folder(entry)]
        splits = {_SPLIT_OF[name]: name for name in inner if name in _SPLIT_OF}
        holds_folders, holds_images = [], []
        for name in splits.values():
            entries = _visible(self.root / name)
            holds_folders.append(any(_is_folder(entry) for entry in entries))
            holds_images.append(
                any(not _is_folder(e) and self.reader.matches(self._relative(e)) for e in entries)
            )
        if not any(holds_folders):
            return {}
        plain = "train" in splits and len(splits) > 1 and all(holds_folders)
        if len(inner) > len(splits) and (not plain or any(holds_images)):
            return {}
        return {key: splits[key] for key in SPLITS if key in splits}

    def _note_problems_of_splits(self, splits: dict[str, str]) -> None:
        for entry in self._entries(self.root):
            problem = self._problem_of_link(entry)
            if problem is None and entry.name not in splits.values():
                if entry.name == _MASKS and _is_folder(entry):
                    self.reader.ignore(entry.path, f"{_MASKS} (masks)")
                    continue
                if _is_file(entry) and not self._is_chosen(entry):
                    continue
                problem = f"not inside the folder {' or '.join(splits.values())}"
            if problem is not None:
                self.problems.append(f"{entry.name!r}: {problem}")

    def _classes(self, folder: Path) -> dict[str, list[str]]:
        """Returns the files of each class folder, relative to the root, and notes problems."""
        classes = {}
        for entry in self._entries(folder):
            problem = self._problem_of_class_folder(entry)
            if problem is not None:
                if problem:
                    self.problems.append(f"{self._relative(entry)!r}: {problem}")
                continue
            before = len(self.problems)
            files = self._files(entry)
            if files:
                classes[entry.name] = files
            elif len(self.problems) == before:
                self.problems.append(f"{self._relative(entry)!r}: a class folder without images")
        return classes

    def _files(self, folder: os.DirEntry[str]) -> list[str]:
        files = []
        for entry in self._entries(folder):
            name = self._relative(entry)
            if not _is_folder(entry) and not self._is_chosen(entry):
                continue
            problem = self._problem_of_link(entry)
            if problem is None and _is_folder(entry):
                problem = "a folder within a class folder"
            elif problem is None and not _is_file(entry):
                problem = "not a regular file"
            if problem is not None:
                self.problems.append(f"{name!r}: {problem}")
            else:
                files.append(name)
        return files

    def _problem_of_class_folder(self, entry: os.DirEntry[str]) -> str | None:
        """Returns why an entry is not a class folder; empty if it is a file that is not an image."""
        if problem := self._problem_of_link(entry):
            return problem
        if not _is_folder(entry):
            is_other = _is_file(entry) and not self._is_chosen(entry)
            return "" if is_other else "not inside a class folder"
        if not entry.name.isprintable():
            return "a class name with unprintable characters or invalid UTF-8"
        return None

    def _problem_of_link(self, entry: os.DirEntry[str]) -> str | None:
        return self.reader.problem_of_link(entry.path, self.root) if entry.is_symlink() else None

    def _entries(self, folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
        try:
            return self.reader.entries(folder)
        except OSError as error:
            raise ValueError(f"cannot list folder {folder.name!r}: {error.strerror}") from error

    def _is_chosen(self, entry: os.DirEntry[str]) -> bool:
        return self.reader.is_chosen(entry.path, self._relative(entry))

    def _relative(self, entry: os.DirEntry[str]) -> str:
        return entry.path.removeprefix(os.fspath(self.root)).lstrip(os.sep)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path)  # noqa: PTH112 (`DirEntry.is_dir` raises an error for a loop of links)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path)  # noqa: PTH113


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder without ignored ones; empty if the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_system_name(entry.name)]
    except OSError:
        return []
