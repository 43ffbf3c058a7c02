"""Output for people: tables on standard output, progress and notes on standard error."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bliss_jax.storage import replacing


class _Console(Console):
    """A console that prints text literally, and without colours on files, on pipes and with NO_COLOR."""

    def __init__(self, **options: Any):
        # Brackets and colons in file and class names are neither markup nor emoji.
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which `exits` handles; rich would exit with code 1."""
        raise BrokenPipeError


LISTED = 1000
"""Largest number of skipped files that are printed."""

notes = _Console(stderr=True, soft_wrap=True)
"""Console on standard error."""


def tables() -> Console:
    """Returns a console on standard output. In files and pipes, tables are neither wrapped nor padded."""
    if sys.stdout.isatty():
        return _Console()
    return _Console(file=_WithoutPadding(sys.stdout), width=250)


class _WithoutPadding:
    """A text stream that removes blanks at the ends of lines."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text; rich writes whole lines at once."""
        return self._stream.write(re.sub(r"[ \t]+(?=\n)", "", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def safe_streams() -> None:
    """Makes the standard streams print escapes for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        if reconfigure is not None and encoding != "utf8":
            reconfigure(errors="backslashreplace")


def listed(problems: Sequence[str], most: int = LISTED) -> None:
    """Prints files that were skipped, with their reasons."""
    for problem in problems[:most]:
        notes.print(f"skipped: {printable(problem)}")
    if len(problems) > most:
        notes.print(f"... and {len(problems) - most} more, listed in the provenance")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal, and otherwise prints one line at the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    start = time.perf_counter()
    rate = TextColumn("{task.fields[rate]:.0f}/s")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        rate,
        Remaining(),
    )
    done = 0
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate=0.0)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, advance=count, rate=done / (time.perf_counter() - start))

        yield advance
    seconds = time.perf_counter() - start
    if not notes.is_terminal:
        notes.print(
            f"{what}: {done} in {seconds:.1f} s, {done / seconds:.0f}/s including compilation"
        )


@contextmanager
def no_progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Replaces `progress` with --quiet."""
    yield lambda count: None


def write(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def printable(text: str) -> str:
    """Returns text with escapes in place of control characters and of characters that no encoding has."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
