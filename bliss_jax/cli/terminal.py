"""What a person sees: results on standard output, progress and notes on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bliss_jax.storage import replacing


class _Console(Console):
    """Prints names and paths as they are; without colours where it is no terminal, or NO_COLOR is set."""

    def __init__(self, **options: Any):
        # Brackets and colons in a name are no markup and no emoji.
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Leaves a closed pipe to `exits`, where rich would end with code 1."""
        raise BrokenPipeError


notes = _Console(stderr=True, soft_wrap=True)
"""Standard error."""


def tables() -> Console:
    """Standard output; a file or a pipe has no width: tables are not folded to that of a terminal."""
    return _Console(width=None if sys.stdout.isatty() else 250)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with count, rate and remaining time; one line at the end where there is no terminal."""
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
        notes.print(f"{what}: {done} in {seconds:.1f} s, {done / seconds:.0f}/s with compilation")


@contextmanager
def no_progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Nothing, for --quiet."""
    yield lambda count: None


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def printable(text: str) -> str:
    """Without characters that move a terminal's cursor, or that no encoding has."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
