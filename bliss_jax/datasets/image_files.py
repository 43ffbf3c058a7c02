"""Finds and reads image files: the rules that all functions and commands share.

A folder is searched in the order of file names. Four kinds of entries are not images of the user:

    ignored     hidden files, and files and folders of file browsers, of network storage and of operating
                systems (`is_system_name`); counted
    other       files whose extension is not that of an image, e.g. .MOV, .AAE, .json, .txt; counted. A
                pattern (`globs`) replaces this rule: files that match it are read, all others are "other".
    problems    links that lead out of the folder, broken links, irregular files; each is reported with a
                reason
    unreadable  images that cannot be decoded; each is reported with a reason when it is read
"""

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from bliss_jax.datasets.decode import AUTO, Decoding, decode_image
from bliss_jax.datasets.image_formats import has_image_suffix
from bliss_jax.datasets.image_notes import ImageNotes

LEAVING_LINK = "a link that leads out of the folder"

_SYSTEM_NAMES = frozenset([
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
    "__macosx", "$recycle.bin", "system volume information", "lost+found", "network trash folder",
    "temporary items", "picasa.ini",
])  # fmt: skip
"""Names in lower case that Windows, macOS, Linux and file browsers create."""

_SYSTEM_PREFIXES = (".", "@", "#recycle", "#snapshot")
"""Hidden names, and the folders of network storage: @eaDir, @Recycle, @tmp, #recycle, #snapshot."""


class Found(NamedTuple):
    """An image file, or a path with the reason why it cannot be read."""

    path: str
    problem: str | None = None


class FileReader:
    """Options for finding and reading image files, and the facts that were noticed on the way.

    May be used from several threads.

    Args:
        background: Colour behind transparent pixels; see `read_image`.
        bit_depth: Significant bits of 16-bit samples; see `read_image`.
        follow_links: Whether to follow links that lead out of the folder, and links to folders.
        globs: Patterns of the files to read, e.g. "*.png" or "camera1/*", compared with the path below the
            folder (without "/" in the pattern: with the name), without regard to case. Empty for all files
            with the extension of an image.

    Raises:
        ValueError: The background is not a colour, or `bit_depth` is not in 8 to 16.
    """

    def __init__(
        self,
        *,
        background: str = AUTO,
        bit_depth: int | None = None,
        follow_links: bool = False,
        globs: Sequence[str] = (),
    ):
        self.decoding = Decoding(background, bit_depth)
        self.follow_links = follow_links
        self.globs = tuple(globs)
        self.notes = ImageNotes()
        """Notes on images that were read."""
        self._ignored: dict[str, str] = {}
        self._other: dict[str, str] = {}
        self._refused_links: set[str] = set()
        self.remarks: list[str] = []
        """Sentences about how a folder was understood."""

    def read(
        self, path: Path, name: str, image: int | str | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes an image file.

        Args:
            path: The file.
            name: Name of the image in messages.
            image: Identifies the image among the notes; by default its name.

        Raises:
            UnreadableImageError: The image cannot be read.
        """
        note = self.notes.about(name if image is None else image, name)
        return decode_image(path, name, self.decoding, note)

    def entries(self, folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
        """Returns the entries of a folder, sorted by name, without ignored ones, which are counted.

        Raises:
            OSError: The folder cannot be listed.
        """
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if is_system_name(entry.name):
                self.ignore(entry.path, entry.name)
        kept = [entry for entry in found if not is_system_name(entry.name)]
        return sorted(kept, key=lambda entry: entry.name)

    def ignore(self, path: str, kind: str) -> None:
        """Counts an ignored entry; the same path counts once."""
        self._ignored[path] = kind

    @property
    def ignored(self) -> Counter[str]:
        """Number of ignored entries by name."""
        return Counter(self._ignored.values())

    @property
    def other(self) -> Counter[str]:
        """Number of other files by extension."""
        return Counter(self._other.values())

    def is_chosen(self, path: str, below: str) -> bool:
        """Returns whether a file is read, by its path below the folder; counts it if not."""
        if not (chosen := self.matches(below)):
            extension = os.path.splitext(path)[1].lower()  # noqa: PTH122
            self._other[path] = extension or "without extension"
        return chosen

    def matches(self, below: str) -> bool:
        """Returns whether the name of a file is that of an image, or matches one of `globs`."""
        if not self.globs:
            return has_image_suffix(below)
        lower, name = below.replace(os.sep, "/").lower(), os.path.basename(below).lower()  # noqa: PTH119
        return any(
            fnmatch.fnmatchcase(lower if "/" in glob else name, glob.lower()) for glob in self.globs
        )

    def problem_of_link(self, path: str, root: Path) -> str | None:
        """Returns why a link cannot be followed, or None if it can."""
        try:
            target = Path(path).resolve(strict=True)
        except (OSError, RuntimeError):  # Python versions differ in the error for a loop
            return "a broken link"
        if self.follow_links or target.is_relative_to(root):
            return None
        self._refused_links.add(path)
        return LEAVING_LINK

    def find(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Found]:
        """Yields every given file and every image file below a given folder, in order."""
        for given in paths:
            path = os.fspath(given)
            if os.path.isdir(path):  # noqa: PTH112
                yield from self._below(path)
            else:
                yield Found(path)

    def _below(self, folder: str) -> Iterator[Found]:
        root = Path(folder).resolve()
        # A stack instead of recursion: folders may be nested more deeply than Python's stack.
        above: list[tuple[int, int]] = []
        stack = [self._listing(folder, above)]
        while stack:
            for found in stack[-1]:
                if isinstance(found, Found):
                    yield found
                    continue
                path = found.path
                is_folder = os.path.isdir(path)  # noqa: PTH112
                if not is_folder and not self.is_chosen(path, os.path.relpath(path, folder)):
                    continue
                if found.is_symlink() and (problem := self.problem_of_link(path, root)):
                    yield Found(path, problem)
                elif is_folder and found.is_symlink() and not self.follow_links:
                    self._refused_links.add(path)
                    yield Found(path, "a link to a folder, which is not followed")
                elif is_folder:
                    stack.append(self._listing(path, above))
                    break
                elif not os.path.isfile(path):  # noqa: PTH113
                    yield Found(path, "not a regular file")
                else:
                    yield Found(path)
            else:
                stack.pop()

    def _listing(
        self, folder: str, above: list[tuple[int, int]]
    ) -> "Iterator[os.DirEntry[str] | Found]":
        """Yields the entries of a folder; `above` identifies the folders that are being listed."""
        try:
            facts = os.stat(folder)  # noqa: PTH116
            own = (facts.st_dev, facts.st_ino)
            if own in above:  # only a followed link leads to a folder above it
                yield Found(folder, "a link to a folder that contains it")
                return
            entries = self.entries(folder)
        except OSError as error:
            yield Found(folder, f"cannot list the folder: {error.strerror}")
            return
        above.append(own)
        yield from entries
        above.pop()

    def lines(self, *, command_line: bool = False) -> list[str]:
        """Returns the noticed facts, one sentence per kind."""
        option = "--follow-links" if command_line else "follow_links=True"
        lines = list(self.remarks)
        if self.ignored:
            lines.append(f"ignored {_counted(self.ignored)} (hidden or created by the system)")
        if self._other:
            why = "no match of the pattern" if self.globs else "no image extension"
            files = "1 file" if len(self._other) == 1 else f"{len(self._other)} files"
            lines.append(f"skipped {files} with {why}: {_counted(self.other)}")
        if number := len(self._refused_links):
            links = "1 link was" if number == 1 else f"{number} links were"
            lines.append(f"{links} not followed; {option} follows links out of the folder")
        return lines + self.notes.lines(command_line=command_line, background=self.background)

    @property
    def background(self) -> str:
        """The background in words."""
        background = self.decoding.background
        return "white (black if blank on white)" if background == AUTO else background


def is_system_name(name: str) -> bool:
    """Returns whether a file or folder is hidden or was created by a system or a file browser."""
    lower = name.lower()
    return lower.startswith(_SYSTEM_PREFIXES) or lower in _SYSTEM_NAMES


def _counted(names: Counter[str], most: int = 8) -> str:
    """Returns counts as text, e.g. "12 x .json, 3 x .txt"."""
    shown = [f"{count} x {name!r}" if not name.isprintable() else f"{count} x {name}"
             for name, count in sorted(names.items(), key=lambda item: (-item[1], item[0]))]  # fmt: skip
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more kinds" if more > 0 else "")
