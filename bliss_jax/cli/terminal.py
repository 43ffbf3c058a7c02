"""Output for people: tables on standard output, progress and notes on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
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


notes = _Console(stderr=True, soft_wrap=True)
"""Console on standard error."""


def tables() -> Console:
    """Returns a console on standard output. In files and pipes, tables are not wrapped."""
    return _Console(width=None if sys.stdout.isatty() else 250)


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
