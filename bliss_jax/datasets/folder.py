"""Data sets from folders with one subfolder per class.

    folder/class_name/*.jpg                    one split, named "train"
    folder/{train,test}/class_name/*.jpg       two splits

The class names are the sorted names of the subfolders. With two splits they are the union of both, so a
label has the same meaning in each split, and a class may occur in only one of them. Images are sorted by
class and file name, independently of the order in the file system. An image is decoded when it is
accessed (`decode.py` has the rules).

Nothing is skipped silently. Every entry that is not a class folder with image files is listed in an error:
other files, nested folders, empty class folders, links that point outside the folder, sockets and so on.
The only exceptions are names that begin with a dot and `IGNORED_NAMES`, which file browsers create.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from bliss_jax.datasets.decode import decode_image
from bliss_jax.datasets.image_dataset import ImageDataset, LazyImages

# fmt: off
SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
])
# fmt: on
IGNORED_NAMES = frozenset(["Thumbs.db", "desktop.ini", "__MACOSX"])
SPLITS = ("train", "test")
_LISTED = 10


class FileImages(LazyImages):
    """Images in files below a folder."""

    def __init__(self, root: Path, names: list[str]):
        self._root = root
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes the file; errors give its path relative to the folder."""
        name = self._names[position]
        return decode_image(self._root / name, name)

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields each file's name, size and modification time, or only the name if the file is missing."""
        for name in self._names:
            file = self._root / name
            facts = (f.st_size, f.st_mtime_ns) if (f := _stat(file)) else ()
            yield repr((name, *facts)).encode()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def load_folder(folder: Path, split: str) -> ImageDataset:
    """Lists the images of a folder with one subfolder per class.

    Args:
        folder: A folder in one of the two layouts in the module's docstring.
        split: `"train"` or `"test"`; a folder without these two subfolders has only `"train"`.

    Returns:
        A data set with the folder's name.

    Raises:
        ValueError: The folder has neither layout; the message lists the entries that do not fit.
    """
    root = folder.resolve()
    splits = _split_folders(root)
    if splits and split not in splits:
        raise ValueError(f"folder {root.name!r} has no subfolder {split!r} for the split")
    if not splits and split != SPLITS[0]:
        raise ValueError(
            f"split is {split!r}, but folder {root.name!r} has no subfolders train and test: all of its "
            "images belong to the split 'train'"
        )
    problems = _problems_of_splits(root) if splits else []
    files = {
        name: _files_of_classes(root / name if splits else root, root, problems)
        for name in splits or SPLITS[:1]
    }
    if problems:
        more = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(
            f"folder {root.name!r} contains entries that are not images in class folders:\n"
            + "\n".join(problems[:_LISTED])
            + more
        )
    class_names = sorted(set().union(*files.values()))
    names = [file for name in class_names for file in files[split].get(name, [])]
    if not names:
        raise ValueError(f"folder {root.name!r} has no class folders for split {split!r}")
    counts = [len(files[split].get(name, [])) for name in class_names]
    return ImageDataset(
        name=root.name,
        images=FileImages(root, names),
        labels=np.repeat(np.arange(len(class_names), dtype=np.int32), counts),
        class_names=tuple(class_names),
        source=f"folder ({len(names)} files{f', split {split}' if splits else ''})",
    )


def _split_folders(root: Path) -> tuple[str, ...]:
    """Returns the names of the split subfolders, or () if `root` itself contains the class folders.

    A class may be named "train", so a subfolder is a split only if all subfolders have names of splits and
    one of them contains a folder.
    """
    inner = {entry.name: entry for entry in _entries(root) if Path(entry.path).is_dir()}
    if not inner or not inner.keys() <= set(SPLITS):
        return ()
    if not any(Path(entry.path).is_dir() for sub in inner.values() for entry in _entries(sub)):
        return ()
    return tuple(name for name in SPLITS if name in inner)


def _problems_of_splits(root: Path) -> list[str]:
    """Lists the entries beside the split subfolders, and split subfolders that are invalid links."""
    return [
        f"  {entry.name!r}: {problem or 'not inside the folder train or test'}"
        for entry in _entries(root)
        if (problem := _problem_of_link(entry, root)) or entry.name not in SPLITS
    ]


def _files_of_classes(folder: Path, root: Path, problems: list[str]) -> dict[str, list[str]]:
    """Returns the files of each class folder, relative to `root`, and appends faults to `problems`."""
    classes = {}
    for entry in _entries(folder):
        if problem := _problem_of_class_folder(entry, root):
            problems.append(f"  {_relative(entry, root)!r}: {problem}")
            continue
        files = _entries(entry)
        if not files:
            problems.append(f"  {_relative(entry, root)!r}: a class folder without images")
        problems += [
            f"  {_relative(file, root)!r}: {problem}"
            for file in files
            if (problem := _problem_of_file(file, root))
        ]
        classes[entry.name] = [_relative(file, root) for file in files]
    return classes


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name, without hidden files and `IGNORED_NAMES`."""
    try:
        with os.scandir(folder) as entries:
            kept = [
                e for e in entries if not e.name.startswith(".") and e.name not in IGNORED_NAMES
            ]
    except OSError as error:
        raise ValueError(f"cannot list folder {folder.name!r}: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def _relative(entry: os.DirEntry[str], root: Path) -> str:
    return entry.path.removeprefix(os.fspath(root)).lstrip(os.sep)


def _problem_of_class_folder(entry: os.DirEntry[str], root: Path) -> str | None:
    if problem := _problem_of_link(entry, root):
        return problem
    if not entry.is_dir():
        return "not inside a class folder"
    if not entry.name.isprintable():
        return "a class name with unprintable characters or invalid UTF-8"
    return None


def _problem_of_file(entry: os.DirEntry[str], root: Path) -> str | None:
    if problem := _problem_of_link(entry, root):
        return problem
    if entry.is_dir():
        return "a folder within a class folder"
    if not entry.is_file():
        return "not a regular file"
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return "not the name of an image file"
    return None


def _problem_of_link(entry: os.DirEntry[str], root: Path) -> str | None:
    if not entry.is_symlink():
        return None
    try:
        target = Path(entry.path).resolve(strict=True)
    except (OSError, RuntimeError):  # a loop raises either, depending on the version of Python
        return "a broken link"
    return None if target.is_relative_to(root) else "a link that leads out of the folder"
