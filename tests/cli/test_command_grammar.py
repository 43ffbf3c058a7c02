"""One grammar for all commands: help, examples, exit codes, pipes, interrupts, colours."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from bliss_jax.cli import main
from bliss_jax.datasets import dataset_names, protocol_names
from bliss_jax.models.registry import model_names
from bliss_jax.text import dictionary_names

COMMANDS = sorted(main.commands)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def program(*arguments: str, **options):
    command = [sys.executable, "-m", "bliss_jax.cli", *arguments]
    return subprocess.run(command, timeout=120, capture_output=True, **options)  # noqa: S603


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_its_own_options(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    examples = re.findall(
        r"(bliss-jax [^\n]*(?:\n +[^\n]+)?)", result.stdout.split("Example", 1)[1]
    )
    assert examples
    for example in examples:
        words = shlex.split(example.split(">>")[0])
        assert words[:2] == ["bliss-jax", name]
        for option in (word for word in words if re.match("-+[a-z]", word)):
            assert re.search(rf"(?<!\S){option}\b", result.stdout.split("Options:")[1])


def test_help_needs_no_jax():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom bliss_jax.cli import main\n"
        f"for name in {COMMANDS}:\n"
        "    assert CliRunner().invoke(main, [name, '--help']).exit_code == 0\n"
        "assert not {'jax', 'flax', 'transformers', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603


def test_the_exit_codes_are_in_the_help():
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n  {code}" in run("--help").stdout.replace("    ", "  ")


def test_catalogues_hold_what_the_registries_hold():
    for command, names in [
        ("models", model_names()),
        ("datasets", dataset_names()),
        ("dictionaries", dictionary_names()),
    ]:
        rows = json.loads(run(command, "--json").stdout)
        assert [row["name"] for row in rows] == list(names)
        table = run(command)
        assert table.exit_code == 0
        for name in names:
            assert name in table.stdout
    rows = json.loads(run("protocols", "--json").stdout)
    assert {row["protocol"] for row in rows} == set(protocol_names())
    of_cifar = json.loads(run("protocols", "--dataset", "cifar10", "--json").stdout)
    assert {row["dataset"] for row in of_cifar} == {"cifar10"}
    assert {"dataset": "cifar10", "protocol": "zoc-6", "family": "zoc", "splits": 5, "normal classes": 6} in [
        {**row, "normal classes": int(row["normal classes"])} for row in of_cifar
    ]  # fmt: skip
    assert run("protocols", "--dataset", "cifar").exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_program(shell):
    script = run("completion", shell).stdout
    assert "bliss-jax" in script
    assert "_BLISS_JAX_COMPLETE" in script


def test_completion_completes():
    asked = {
        "COMP_WORDS": "bliss-jax pro",
        "COMP_CWORD": "1",
        "_BLISS_JAX_COMPLETE": "bash_complete",
    }
    code = "from bliss_jax.cli import main; main(prog_name='bliss-jax')"
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, timeout=60
    )
    assert found.stdout.split() == [b"plain,protocols"]


def test_a_command_line_that_is_wrong_ends_with_2():
    for wrong in (["nothing"], ["score"], ["models", "--jso"], ["fit", "-o", "x"]):
        assert run(*wrong).exit_code == 2, wrong


def test_a_pipe_that_is_closed_ends_quietly():
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'bliss_jax.cli', 'protocols', '--json'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.readline(); p.stdout.close()\n"
        "said = p.stderr.read(); p.wait(60)\n"
        "assert said == b'', said\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)  # noqa: S603


def test_an_interrupt_ends_with_130_and_no_traceback(tmp_path):
    code = "import time, click\nfrom bliss_jax.cli import main\n"
    code += "@click.command()\ndef wait():\n    print('here', flush=True)\n    time.sleep(60)\n"
    code += "main.add_command(wait)\nmain()\n"
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout.readline() == b"here\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in said


def test_there_are_no_colours_where_there_is_no_terminal():
    assert b"\x1b" not in program("models").stdout
    assert b"\x1b" not in program("--help").stdout
