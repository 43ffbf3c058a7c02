"""Every block of code in the README and the documentation runs as printed, or says why it does not."""

import ast
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import pytest
from pages import PAGES, ROOT, RUN, SYBIL, alike, commands, mark, parsed, run_page

import bliss_jax
from bliss_jax.cli import main

EXAMPLES = [(page, example) for page in PAGES for example in parsed(page).examples()]
NOT_RUN = [(page, example) for page, example in EXAMPLES if mark(example)[0] == "not run"]
SHOWN = ("text", "json", "yaml", "bibtex")
LIMIT_SECONDS = 400


@pytest.fixture(scope="module")
def process():
    """Starts a process with eight devices, without a network and without the shape checks of the tests.

    Most of the time is spent on compiling programs that run once; without optimisation it is a third less.
    """
    changed = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    before = dict(os.environ)
    os.environ.update(changed)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()  # the process has read the environment
        os.environ.clear()
        os.environ.update(before)
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if list(parsed(page).examples())])
def test_page_runs(process, page, tmp_path):
    process.submit(run_page, page, str(tmp_path)).result(LIMIT_SECONDS)


@pytest.mark.parametrize(
    ("page", "example"), NOT_RUN, ids=[f"{page}:{example.line}" for page, example in NOT_RUN]
)
def test_names_and_options_in_blocks_that_are_not_run_exist(page, example):
    assert mark(example)[1], "expected a reason"
    try:
        unknown = {name for name in names_of(example.parsed, "bj") if not hasattr(bliss_jax, name)}
        assert not unknown
    except SyntaxError:  # bash
        for arguments in calls(example.parsed, "bliss-jax"):
            check_command(arguments)
        for arguments in calls(example.parsed, "python"):
            check_script(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_every_mark_a_block(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^ *(?:`{3,}|~{3,})(\S+)", text, re.MULTILINE)
    closing = re.findall(r"^ *(?:`{3,}|~{3,})$", text, re.MULTILINE)
    assert len(fences) == len(closing)
    assert {fence for fence in fences if not fence.startswith("{")} <= {*RUN, *SHOWN}
    marks = re.findall(r"^<!-- (?:not run|needs|prints|exits)\b", text, re.MULTILINE)
    assert len(marks) == sum(mark(example)[0] != "" for example in parsed(page).examples())


def test_sybil_finds_the_blocks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: why -->\n```bash\nls\n```\n\n```python\nx = 1\n```\n")
    first, second = sorted(SYBIL.parse(page).examples(), key=lambda example: example.line)
    assert (mark(first), first.parsed) == (("not run", "why"), "ls\n")
    assert (mark(second), second.parsed) == (("", ""), "x = 1\n")


def test_a_page_with_a_wrong_output_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n<!-- prints -->\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="differs from the output"):
        run_page(str(page), str(tmp_path))


def test_outputs_may_differ_by_two_percent():
    assert alike("a 100.0 b", "a  101.9\nb")
    assert not alike("a 100.0 b", "a 103.0 b")
    assert not alike("a 1", "b 1")


def test_commands_inside_quotes_and_after_other_commands_are_found():
    assert words("A=1 srun -n 2 bliss-jax embed -o x && ls | head") == [
        ["A=1", "srun", "-n", "2", "bliss-jax", "embed", "-o", "x"],
        ["ls"],
        ["head"],
    ]
    assert words('ssh --command="bliss-jax demo -o x"')[0] == ["bliss-jax", "demo", "-o", "x"]


def test_an_unknown_option_is_found():
    with pytest.raises(click.NoSuchOption):
        check_command(["demo", "--no-such"])
    with pytest.raises(AssertionError):
        check_command(["no-such"])


def names_of(code: str, module: str) -> set[str]:
    """Returns the attributes of a module that code uses.

    Raises:
        SyntaxError: If the code is not Python.
    """
    return {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    }


def words(command: str) -> list[list[str]]:
    """Returns the simple commands of a line as lists of words, also those inside a quoted word."""
    split = [[]]
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            split.append([])
        else:
            split[-1].append(word)
            if "bliss-jax " in word:
                split[:0] = words(word.split("=", 1)[-1])
    return [simple for simple in split if simple]


def calls(code: str, program: str) -> list[list[str]]:
    """Returns the arguments of each call of a program in a block of bash, also after `srun` and the like."""
    found = []
    for command in commands(code):
        for simple in words(command):
            if program in simple:
                arguments = simple[simple.index(program) + 1 :]
                found.append([word for word in arguments if word != "..."])
    return found


def check_command(arguments: list[str]) -> None:
    """Checks that the command of `bliss-jax` and its options exist. Values are not checked."""
    if not arguments or arguments[0].startswith("-"):
        return
    command = main.commands.get(arguments[0])
    assert command is not None, f"no command {arguments[0]}"
    command.make_parser(click.Context(command)).parse_args(arguments[1:])


def check_script(arguments: list[str]) -> None:
    """Checks that a script or module and its options exist, in its source or in its help."""
    module = arguments[0] == "-m"
    if module and arguments[1] in ("venv", "build"):
        return
    start = arguments[: 1 + module]
    if module:
        # The packages of the scripts are not installed: they are run from the root of the repository.
        here = ROOT.joinpath(*arguments[1].split("."))
        files = [here.with_suffix(".py"), here / "__main__.py"]
        source = next((file.read_text() for file in files if file.is_file()), None)
        assert source is not None, f"no module {arguments[1]}"
    else:
        source = (ROOT / arguments[0]).read_text()
    options = {word.split("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
    unseen = {option for option in options if f'"{option}"' not in source}
    if unseen:
        known = subprocess.run(  # noqa: S603
            [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        unseen = {option for option in unseen if not re.search(rf"{option}\b(?!-)", known)}
    assert not unseen, f"{' '.join(start)} has no {unseen}"
