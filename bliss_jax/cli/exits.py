"""Exit codes, and what leads to which.

0    done
1    the work could not be done; the message says what was expected
2    the command line is wrong
3    done, but some images could not be read; each is listed
130  interrupted
141  whoever read the output went away before its end
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click

UNREADABLE = 3
# What a shell says of a program that SIGINT or SIGPIPE has ended.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class Group(click.Group):
    """Turns the library's errors into one line and exit code 1; interrupts and closed pipes end quietly."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Reads the group's own options; its help is printed here."""
        with _ending_quietly():
            return super().make_context(*args, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command by its name; click suggests near misses itself, but not in all releases."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, self.commands)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        with _ending_quietly():
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                raise click.ClickException(str(error)) from error


@contextmanager
def _ending_quietly() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # What is buffered has nowhere to go, and Python would say so when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
