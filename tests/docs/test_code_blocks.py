"""Every block of code in the README and the documentation runs as printed, or says why it does not."""

import json
import math
import os
import re
import selectors
import subprocess
import sys
from pathlib import Path

import click
import pytest
from code_blocks import PAGES, ROOT, RUN, SHOWN, blocks, calls, names_of, words

import bliss_jax
from bliss_jax.cli import main

BLOCKS = [block for page in PAGES for block in blocks(page)]
NOT_RUN = [block for block in BLOCKS if block.not_run is not None]
LIMIT_SECONDS = 400


@pytest.fixture(scope="module")
def run_page():
    """Asks one process for page after page; it has two devices and no network, and checks no shapes."""
    env = os.environ | {
        # Most of the time goes into compiling what runs once: a third less without optimization.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    runner = Path(__file__).with_name("page_runner.py")
    with subprocess.Popen(  # noqa: S603
        [sys.executable, runner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        answers = selectors.DefaultSelector()
        answers.register(process.stdout, selectors.EVENT_READ)

        def ask(**request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not answers.select(LIMIT_SECONDS):
                process.kill()
                pytest.fail(f"not done after {LIMIT_SECONDS} s")
            answer = process.stdout.readline()
            assert answer, "the process ended"
            return json.loads(answer)

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_page_runs(run_page, page, tmp_path):
    run, texts = [], {}
    for block in blocks(page):
        if "prints" in block.marks:
            texts[len(run) - 1] = block
        if block.language in RUN and block.not_run is None:
            code = int(block.marks.get("exits", 0))
            run.append((block.place, block.line, block.language, block.code, code))
    answer = run_page(folder=str(tmp_path), blocks=run)
    assert answer["error"] is None, answer["error"]
    for number, block in texts.items():
        assert alike(block.code, answer["printed"][number]), (
            f"{block.place} is not what is printed:\n{answer['printed'][number]}"
        )


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: f"{block.place}, {block.not_run}")
def test_what_is_not_run_exists(block):
    assert block.not_run, "a reason"
    assert block.language in RUN
    if block.language == "python":
        unknown = {name for name in names_of(block.code, "bj") if not hasattr(bliss_jax, name)}
        assert not unknown
    else:
        for arguments in calls(block, "bliss-jax"):
            check_command(arguments)
        for arguments in calls(block, "python"):
            check_script(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language(page):
    for block in blocks(page):
        directive = block.language.startswith("{")
        assert block.language in RUN + SHOWN or directive, f"{block.place}: {block.language!r}"
        assert block.language in RUN or "not run" not in block.marks, block.place


def test_blocks_are_found():
    text = "a\n<!-- not run: why -->\n```bash\nls\n```\n  ~~~python\n  x\n  ~~~\n"
    first, second = blocks("p", text)
    assert (first.language, first.code, first.line, first.not_run) == ("bash", "ls\n", 3, "why")
    assert (second.language, second.code, second.not_run) == ("python", "x\n", None)
    with pytest.raises(ValueError, match="before no block"):
        blocks("p", "<!-- not run: why -->\ntext\n```bash\n```\n")


def test_commands_inside_quotes_and_behind_others_are_found():
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


def check_command(arguments: list[str]) -> None:
    """The command and its options exist; values are not looked at."""
    if not arguments or arguments[0].startswith("-"):
        return
    command = main.commands.get(arguments[0])
    assert command is not None, f"no command {arguments[0]}"
    command.make_parser(click.Context(command)).parse_args(arguments[1:])


def check_script(arguments: list[str]) -> None:
    """The script or module exists, and so do its options: in its source, or in what it says of itself."""
    module = arguments[0] == "-m"
    start = arguments[: 1 + module]
    if module:
        # The scripts' packages are not installed: they are run from the repository's root.
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


NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def alike(shown: str, printed: str) -> bool:
    """The same text, but for numbers, which may differ by 2 % or in their second decimal, and blanks."""
    texts = [NUMBER.sub("0", text).split() for text in (shown, printed)]
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(t)] for t in (shown, printed)]
    return (
        texts[0] == texts[1]
        and len(numbers[0]) == len(numbers[1])
        and all(
            math.isclose(a, b, rel_tol=0.02, abs_tol=0.02) for a, b in zip(*numbers, strict=True)
        )
    )
