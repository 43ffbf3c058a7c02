"""Exit codes, and the errors that lead to them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click

EXIT_CODES = """\
Exit codes:
  0    success
  1    the work failed; the message says what was expected and what was found
  2    the command line is invalid
  3    success, but some images could not be read; each is listed
  130  interrupted
  141  the reader of the output closed the pipe
"""
"""The exit codes as `--help` prints them."""

UNREADABLE = 3
# The codes that shells report for programs ended by SIGINT and SIGPIPE.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class Group(click.Group):
    """A command group that turns the library's errors into a one-line message and exit code 1.

    Interrupts and closed pipes end a command without a message.
    """

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parses the group's options; click also prints its help here."""
        with _ending_quietly():
            return super().make_context(*args, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command by name and suggests similar names (not all releases of click do so)."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, self.commands)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; ValueError and OSError become a message and exit code 1."""
        with _ending_quietly():
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (ValueError, OSError, ModuleNotFoundError) as error:
                raise click.ClickException(str(error)) from error


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """Ends the process without a message on a closed pipe or an interrupt."""
    try:
        yield
    except BrokenPipeError:
        # Redirects buffered output to the null device; Python would report an error for it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
