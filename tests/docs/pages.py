"""The blocks of code in the README and the documentation, parsed and run with Sybil.

    <!-- not run: REASON -->    before a block: its names are checked, but it is not run
    <!-- needs: MODULE -->      before a block of Python: it is not run if the module is not installed
    <!-- prints -->             before a block of text: the output of the block above, numbers within 2 %
    <!-- exits: CODE -->        before a block of bash: the exit code of its last command, 0 by default

All other blocks of Python and bash are run. The blocks of a page share a namespace and a folder.
"""

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [
    name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    if (ROOT / name).exists()  # the tests of the wheel have no CONTRIBUTING.md
]
PAGES += sorted(
    str(file.relative_to(ROOT))
    for file in (ROOT / "docs").rglob("*.md")
    if "_build" not in file.parts
)
RUN = ("python", "bash")

_MARK = re.compile(r"<!-- (not run|needs|prints|exits)(?:: ([^\n]+))? -->\n\s*\Z")
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def mark(example: Example) -> tuple[str, str]:
    """Returns the mark before a block and its argument, or two empty strings."""
    found = _MARK.search(example.document.text[: example.region.start])
    return (found[1], found[2] or "") if found else ("", "")


def run_python(example: Example) -> None:
    """Runs a block of Python and keeps its output for the block after it."""
    kind, argument = mark(example)
    if kind == "not run" or (kind == "needs" and find_spec(argument) is None):
        return
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        PythonEvaluator()(example)
    example.namespace["printed"] = out.getvalue()


def run_bash(example: Example) -> None:
    """Runs a block of bash line by line.

    A `bliss-jax` without pipes is called in this process, which has already imported everything.

    Raises:
        AssertionError: If a command has another exit code than expected.
    """
    kind, argument = mark(example)
    if kind == "not run":
        return
    from click.testing import CliRunner

    from bliss_jax.cli import main

    printed, lines = "", commands(example.parsed)
    for number, command in enumerate(lines):
        arguments = shlex.split(command)
        if arguments[0] == "bliss-jax" and not set("|&;<>$*`") & set(command):
            result = CliRunner().invoke(main, arguments[1:], prog_name="bliss-jax")
            code, text, errors = result.exit_code, result.stdout, result.stderr
            errors += repr(result.exception) if result.exception else ""
        else:
            done = subprocess.run(  # noqa: S603
                ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
            code, text, errors = done.returncode, done.stdout, done.stderr
        wanted = int(argument) if kind == "exits" and number == len(lines) - 1 else 0
        assert code == wanted, f"{command}\nexit code {code}, expected {wanted}\n{text}{errors}"
        printed += text
    example.namespace["printed"] = printed


def compare_text(example: Example) -> None:
    """Compares a block of text that is marked `prints` with the output of the block above it."""
    if mark(example)[0] == "prints":
        printed = example.namespace["printed"]
        assert alike(example.parsed, printed), f"the page differs from the output:\n{printed}"


SYBIL = Sybil(
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("bash", run_bash),
        CodeBlockParser("text", compare_text),
    ],
    encoding="utf-8",
)


def parsed(page: str) -> Document:
    """Returns a page as a Sybil document."""
    return SYBIL.parse(ROOT / page)


def run_page(page: str, folder: str) -> None:
    """Runs all blocks of a page in a folder."""
    os.chdir(folder)
    document = parsed(page)
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        try:
            example.evaluate()
        except BaseException as error:
            error.add_note(f"{page}:{example.line}")
            raise


def commands(code: str) -> list[str]:
    """Returns the commands of a block of bash: continued lines are joined, comments are removed."""
    lines = re.sub(r"\\\n\s*", " ", code).split("\n")
    return [text for text in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if text]


def alike(shown: str, printed: str) -> bool:
    """Returns whether two texts are equal, apart from blanks and from numbers that differ by 2 % or 0.02."""
    texts = [_NUMBER.sub("0", text).split() for text in (shown, printed)]
    numbers = [[float(n.replace(",", "")) for n in _NUMBER.findall(t)] for t in (shown, printed)]
    return (
        texts[0] == texts[1]
        and len(numbers[0]) == len(numbers[1])
        and all(
            math.isclose(a, b, rel_tol=0.02, abs_tol=0.02) for a, b in zip(*numbers, strict=True)
        )
    )
