"""Notes on images that were read but may not look as expected, counted over a run."""

import threading
from collections.abc import Callable
from typing import NamedTuple

TRANSPARENT = "transparent"
LOW_SAMPLES = "low_samples"
IGNORED_METADATA = "ignored_metadata"


class Note(NamedTuple):
    """A fact about an image."""

    kind: str
    """TRANSPARENT, LOW_SAMPLES or IGNORED_METADATA."""
    detail: str = ""
    """Facts for the message, e.g. the range of the samples."""
    largest: int = 0
    """Largest sample, for LOW_SAMPLES."""


class ImageNotes:
    """Notes on the images of a run, by kind. May be used from several threads.

    An image counts once, even if it is read several times.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._images: dict[str, set[int | str]] = {}
        self._first: dict[str, tuple[str, Note]] = {}
        self._largest = 0

    def about(self, image: int | str, name: str) -> Callable[[Note], None]:
        """Returns a function that adds notes on one image.

        Args:
            image: Identifies the image, e.g. by its position in a data set.
            name: Name of the image in messages.
        """

        def add(note: Note) -> None:
            with self._lock:
                self._images.setdefault(note.kind, set()).add(image)
                self._first.setdefault(note.kind, (name, note))
                self._largest = max(self._largest, note.largest)

        return add

    def counts(self) -> dict[str, int]:
        """Returns the number of images by kind of note."""
        return {kind: len(images) for kind, images in sorted(self._images.items())}

    def lines(self, *, command_line: bool = False, background: str = "white") -> list[str]:
        """Returns one sentence per kind of note.

        Args:
            command_line: Whether options are named as on the command line, or as in Python.
            background: Colour behind transparent pixels.
        """
        option = (lambda name, value: f"--{name.replace('_', '-')} {value}") if command_line else (
            lambda name, value: f"{name}={value}"
        )  # fmt: skip
        found = []
        for kind, count in self.counts().items():
            name, note = self._first[kind]
            one = count == 1
            which = f"1 image ({name})" if one else f"{count} images (first: {name})"
            if kind == TRANSPARENT:
                colour = "COLOUR" if command_line else "'COLOUR'"
                found.append(
                    f"{which} {'has' if one else 'have'} transparent pixels, composited on {background}; "
                    f"{option('background', colour)} chooses another colour"
                )
            elif kind == LOW_SAMPLES:
                bits = max(8, self._largest.bit_length())
                found.append(
                    f"{which} {'has' if one else 'have'} 16-bit samples of 0 to {self._largest} only and "
                    f"may look nearly black; {option('bit_depth', bits)} scales samples of {bits} bits"
                )
            else:
                found.append(
                    f"{which} {'has' if one else 'have'} damaged metadata, which {'was' if one else 'were'} "
                    f"ignored: {note.detail}"
                )
        return found
