"""Exit codes, and the errors and signals that lead to them."""

import os
import re
import signal
import sys
import threading
import warnings
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
  129  ended by SIGHUP, e.g. because the terminal was closed
  130  ended by SIGINT (Ctrl-C)
  141  the reader of the output closed the pipe
  143  ended by SIGTERM
"""
"""The exit codes as `--help` prints them."""

UNREADABLE = 3
# The codes that shells report for programs ended by signals.
_SIGNALLED = 128
_BROKEN_PIPE = 141


class Terminated(BaseException):
    """A signal that asks the process to end, such as SIGTERM."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Group(click.Group):
    """A command group that turns the library's errors into a message and exit code 1.

    Signals and closed pipes end a command without a traceback, after its files were cleaned up.
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
        from bliss_jax.cli.terminal import safe_streams

        safe_streams()
        with _ending_quietly(), _signals(), _warnings_as_notes():
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (ValueError, OSError, ModuleNotFoundError) as error:
                command = self.commands.get(ctx.invoked_subcommand or "")
                raise click.ClickException(_as_options(str(error), command)) from error


_IN_PYTHON = {"group_by": "groups", "map_file": "maps"}
"""Parameters of the commands that have another name in Python."""


def _as_options(message: str, command: click.Command | None) -> str:
    """Names the options in a message of the library as they are typed: `k=3` becomes `--k 3`."""
    advice = "shorten it or pass truncate=True"
    message = message.replace(advice, "use a shorter label or --prompt")
    for parameter in command.params if command is not None else ():
        option = max(parameter.opts, key=len)
        if not option.startswith("--") or parameter.name is None:
            continue
        own = {parameter.name, option.removeprefix("--").replace("-", "_")}
        for name in own | {_IN_PYTHON.get(parameter.name, parameter.name)}:
            message = re.sub(rf"\b{name}=(?=[\w.'\"/])", f"{option} ", message)
            message = re.sub(rf"\b{name}=", option, message)
            message = re.sub(rf"(^|\n){name}: ", rf"\g<1>{option}: ", message)
    return message


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """Ends the process without a traceback on a closed pipe or a signal."""
    try:
        yield
    except BrokenPipeError:
        # Redirects buffered output to the null device; Python would report an error for it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except KeyboardInterrupt:
        sys.exit(_SIGNALLED + signal.SIGINT)
    except Terminated as ended:
        sys.exit(_SIGNALLED + ended.number)


@contextmanager
def _signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception, so that unfinished files are removed.

    Signals that are ignored (`nohup`) or have a handler stay as they are.
    """
    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: Any) -> None:
    raise Terminated(number)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Prints warnings as notes, without the source line; with --quiet those about images are omitted."""

    def show(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        from bliss_jax.cli.terminal import notes, printable

        context = click.get_current_context(silent=True)
        quiet = bool(context and context.params.get("quiet"))
        if quiet and category.__name__ == "ImageWarning":
            return
        command = context.command if context is not None else None
        notes.print(f"warning: {printable(_as_options(str(message), command))}")

    original = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = original
