"""Fuzzing of the command line: the lines of an input are the arguments of one command.

Functions that load data sets or models or run evaluations are replaced by ones that raise ValueError, so the
fuzzer tests parsing, validation and messages. The only file that a command can read is a detector. Standard
input is empty. An audit hook detects files that a command writes outside its working folder, programs that
it starts and connections that it opens.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import click

from bliss_jax.cli import main
from fuzz.targets import detector_content

_CODES = {0, 1, 2, 3}
_HEAVY = (
    "bliss_jax.models.load_model",
    "bliss_jax.detection.label_images",
    "bliss_jax.detection.score_files",
    "bliss_jax.datasets.load_dataset",
    "bliss_jax.evaluation.evaluate",
    "bliss_jax.cli.demo.run_demo",
    "bliss_jax.embedding.initialize_distributed",
    "bliss_jax.embedding.embed_dataset",
    "bliss_jax.embedding.embed_images",
    "bliss_jax.embedding.embed_texts",
    "bliss_jax.report.write_report",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"}

_watching: list[str] = []
"""Working folder of the running command; empty if none is running."""
_violations: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    if event in _NEVER:
        _violations.append(f"{event} {arguments[:1]!r}")
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if (not writes and event not in _CHANGES) or not isinstance(arguments[0], str | bytes):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not path.startswith(_watching[0] + os.sep) and path != os.devnull:
        _violations.append(f"{event} {path!r}")


def _refuse(*args: object, **kwargs: object) -> None:
    raise ValueError("not available while fuzzing")


@cache
def _prepare() -> str:
    """Installs the audit hook, and returns a working folder that contains a detector."""
    os.environ["BLISS_JAX_COMPILATION_CACHE"] = "off"
    sys.dont_write_bytecode = True
    sys.addaudithook(_watch)
    folder = tempfile.TemporaryDirectory()
    _folders.append(folder)
    (Path(folder.name) / "det.safetensors").write_bytes(detector_content())
    return os.path.realpath(folder.name)


_folders: list[tempfile.TemporaryDirectory] = []


@contextlib.contextmanager
def _restricted() -> Iterator[None]:
    """Replaces the functions in `_HEAVY`, empties standard input and changes to the working folder."""
    here = Path.cwd()
    with contextlib.ExitStack() as stack:
        for name in _HEAVY:
            stack.enter_context(mock.patch(name, _refuse))
        stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO())))
        stack.callback(os.chdir, here)
        os.chdir(_prepare())
        yield


def read(content: bytes) -> None:
    """Runs a command.

    Raises:
        ValueError: The exit code is a documented one other than 0.
        AssertionError: The command is a crash.
    """
    lines = content.replace(b"\0", b"").split(b"\n")
    arguments = [os.fsdecode(line) for line in lines[:40]]
    printed = io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    with _restricted(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        _violations.clear()
        _watching.append(_prepare())
        try:
            main(arguments, prog_name="bliss-jax")
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        finally:
            _watching.clear()
    if _violations:
        raise AssertionError(f"{arguments!r} did {_violations!r}")
    if code not in _CODES:
        raise AssertionError(f"{arguments!r} ended with {code!r}")
    if code:
        raise ValueError(f"exit code {code}")


def _parameters() -> Iterator[str]:
    """Yields all commands, options and choices of the command line."""
    for name, command in main.commands.items():
        yield name
        for parameter in command.params:
            yield from parameter.opts
            if isinstance(parameter.type, click.Choice):
                yield from map(str, parameter.type.choices)


def words() -> list[bytes]:
    """Returns commands, options and values, each as a separate argument."""
    values = [
        "0",
        "-1",
        "3",
        "1e999",
        "nan",
        "0.05",
        "cat,dog",
        "cat,",
        ",",
        "--",
        "-",
        "-h",
        "=",
        "é",
    ]
    values += ["glyphs", "digits", "bliss-jax/tiny", "bliss", "one-class", "{label}", "%s", "$(x)"]
    values += ["det.safetensors"]
    values += ["x.npz", "x.csv", "/", "..", ".", "/dev/null", "no/such", "~", "*"]
    texts = [*dict.fromkeys(_parameters()), *values]
    raw = [b"\xff", b"\xed\xa0\x80", b"\x1b[31m", b"x" * 5000, b"[red]", b"[/]", b"\r", b"\n"]
    return [b"\n" + text.encode() for text in texts] + raw


def seeds() -> list[bytes]:
    """Returns command lines like the examples in the help texts, and the help of each command."""
    lines = [
        "--version",
        "--help",
        "evaluate --dataset cifar10 --protocol zoc-6 --model openai/clip-vit-base-patch16",
        "evaluate --embeddings x.npz --normal cat,dog --k 3 --lambda 0.5 --shots 1 --draws 2 --seed 3",
        "evaluate --embeddings x.npz --json out.json --csv out.csv --report page --score bliss",
        "embed --dataset . --model . --dictionary words.txt --exclude-labels -o x.npz --cache shards",
        "embed --dataset glyphs --distributed --heartbeat 3 -o x.npz --dtype bfloat16 --quiet",
        "demo -o page --json out.json --quiet",
        "fit --images . --labels cat,dog --k 3 --lambda 0.5 --calibration 0.2 -o new.safetensors",
        "fit --images . --folders --model . --dictionary words.txt --strict -o new.safetensors",
        "score det.safetensors . -o scores.csv --top 3 --alpha 0.05 --fdr --explain --report page",
        "score det.safetensors - --null --json --quiet --model . --batch-size 2",
        "explain det.safetensors a.png b.png --words 3 --json",
        "info det.safetensors",
        "info det.safetensors --json",
        "completion zsh",
        "models --json",
        *(f"{name} --help" for name in main.commands),
        *(name for name in main.commands),
    ]
    return [line.replace(" ", "\n").encode() for line in lines]
