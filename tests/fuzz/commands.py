"""The command line under fuzzing: an input's lines are its arguments; what is heavy or leaves traces is shut.

Data sets, models and evaluations are refused before they are made, so that what is seen is the parsing, the
checks and the messages; only a detector's file is there to be read. Standard input is empty. While a command
runs, an audit hook watches for files written outside the folder it runs in, for programs and for connections.
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
    "bliss_jax.detection.detector.load_model",
    "bliss_jax.detection.label_files",
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
"""The folder a command runs in, while it runs."""
_seen: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    if event in _NEVER:
        _seen.append(f"{event} {arguments[:1]!r}")
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if (not writes and event not in _CHANGES) or not isinstance(arguments[0], str | bytes):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not path.startswith(_watching[0] + os.sep) and path != os.devnull:
        _seen.append(f"{event} {path!r}")


def _refuse(*args: object, **kwargs: object) -> None:
    raise ValueError("not while fuzzing")


@cache
def _prepare() -> str:
    """A folder to run in, with the heavy parts shut for good."""
    os.environ["BLISS_JAX_COMPILATION_CACHE"] = "off"
    sys.dont_write_bytecode = True
    sys.addaudithook(_watch)
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    (Path(folder.name) / "det.safetensors").write_bytes(detector_content())
    return os.path.realpath(folder.name)


_kept: list[tempfile.TemporaryDirectory] = []


@contextlib.contextmanager
def _shut() -> Iterator[None]:
    """The heavy parts refuse, and the folder is where commands run."""
    here = Path.cwd()
    with contextlib.ExitStack() as stack:
        for name in _HEAVY:
            stack.enter_context(mock.patch(name, _refuse))
        stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO())))
        stack.callback(os.chdir, here)
        os.chdir(_prepare())
        yield


def read(content: bytes) -> None:
    """Runs a command; ValueError where it refuses."""
    lines = content.replace(b"\0", b"").split(b"\n")
    arguments = [os.fsdecode(line) for line in lines[:40]]
    said = io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    with _shut(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        _seen.clear()
        _watching.append(_prepare())
        try:
            main(arguments, prog_name="bliss-jax")
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        finally:
            _watching.clear()
    if _seen:
        raise AssertionError(f"{arguments!r} did {_seen!r}")
    if code not in _CODES:
        raise AssertionError(f"{arguments!r} ended with {code!r}")
    if code:
        raise ValueError(f"exit code {code}")


def _parameters() -> Iterator[str]:
    """Every name that occurs in the command's grammar."""
    for name, command in main.commands.items():
        yield name
        for parameter in command.params:
            yield from parameter.opts
            if isinstance(parameter.type, click.Choice):
                yield from map(str, parameter.type.choices)


def words() -> list[bytes]:
    """Options, commands and values, each as an argument of its own."""
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
    """Command lines by the help's own examples, and every command's help."""
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
