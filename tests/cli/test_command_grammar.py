"""Conventions of all commands: help, examples, exit codes, pipes, interrupts, colours."""

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
from bliss_jax.cli.terminal import notes, tables
from bliss_jax.datasets import dataset_names, load_dataset, protocol_names
from bliss_jax.models import model_names
from bliss_jax.text import dictionary_names

COMMANDS = sorted(main.commands)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def program(*arguments: str, **options):
    command = [sys.executable, "-m", "bliss_jax.cli", *arguments]
    return subprocess.run(command, timeout=120, capture_output=True, **options)  # noqa: S603


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_valid_examples(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    # Each example is on one line; a wrapped one could not be pasted into a shell.
    examples = re.findall(r"bliss-jax [^\n]*", result.stdout.split("Example", 1)[1])
    assert examples
    for example in examples:
        words = shlex.split(re.split(" >>? ", example)[0])
        assert words[:2] == ["bliss-jax", name]
        with main.commands[name].make_context(name, words[2:]) as context:
            assert not context.args


def test_commands_with_progress_have_the_option_quiet():
    quiet = [name for name in COMMANDS if "--quiet" in run(name, "--help").stdout]
    assert quiet == ["compare", "demo", "embed", "evaluate", "fit", "score"]


def test_help_imports_no_heavy_package():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom bliss_jax.cli import main\n"
        f"for name in {COMMANDS}:\n"
        "    assert CliRunner().invoke(main, [name, '--help']).exit_code == 0\n"
        "assert not {'jax', 'flax', 'transformers', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603


def test_the_help_lists_the_exit_codes():
    codes = re.findall(r"^    (\d+) +\w", run("--help").stdout, flags=re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "129", "130", "141", "143"]


def test_the_catalogue_commands_print_the_registries():
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
    facts = {"family": "zoc", "splits": 5, "normal": [6, 6], "anomalous": [4, 4]}
    assert {"dataset": "cifar10", "protocol": "zoc-6", **facts} in of_cifar


def test_the_catalogue_states_the_numbers_of_images_of_downloaded_data_sets():
    from bliss_jax.datasets.cifar import Cifar10, Cifar100
    from bliss_jax.datasets.tiny_imagenet import TinyImagenet, class_table

    rows = {row["name"]: row for row in json.loads(run("datasets", "--json").stdout)}
    for name, builder in (("cifar10", Cifar10), ("cifar100", Cifar100)):
        assert {split: rows[name][split] for split in ("train", "test")} == builder.IMAGES
    assert rows["cifar10+cifar100"]["test"] == 2 * Cifar10.IMAGES["test"]
    tiny = rows["tiny-imagenet"]
    assert tiny["train"] == len(class_table()) * TinyImagenet.TRAIN_IMAGES_PER_CLASS
    assert tiny["test"] == TinyImagenet.TEST_IMAGES
    assert [name for name, row in rows.items() if not row["download"]] == ["glyphs", "digits"]


@pytest.mark.parametrize("name", ["digits", pytest.param("glyphs", marks=pytest.mark.slow)])
def test_the_catalogue_states_the_numbers_of_images_of_generated_data_sets(name):
    rows = {row["name"]: row for row in json.loads(run("datasets", "--json").stdout)}
    for split in ("train", "test"):
        dataset = load_dataset(name, split)
        assert rows[name][split] == len(dataset)
        assert rows[name]["classes"] == len(dataset.class_names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["evalute"], "No such command 'evalute'. Did you mean 'evaluate'?"),
        (["nothing"], "No such command 'nothing'."),
        (["models", "--jso"], "--json"),
        (["protocols", "--dataset", "cifar"], "expected cifar10 or cifar100"),
        (["protocols", "--dataset", "xyz"], "expected cifar10 or cifar100 or cifar10+cifar100 or"),
        (["completion", "csh"], "'bash', 'zsh', 'fish'"),
        (["score"], "DETECTOR"),
        (["fit", "-o", "x"], "--images"),
    ],
)
def test_an_invalid_command_line_ends_with_2_and_suggestions(wrong, message):
    result = run(*wrong)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program_and_its_variable(shell):
    script = run("completion", shell).stdout
    assert "bliss-jax" in script
    assert "_BLISS_JAX_COMPLETE" in script


def test_completion_completes_a_command_name():
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


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"]])
def test_a_closed_pipe_ends_with_141_and_no_message(arguments):
    """A table, a JSON document and a help text, which rich, click and the group handle in different ways."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bliss_jax.cli", *arguments]
    with os.fdopen(writer) as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, timeout=120)  # noqa: S603
    assert ended.returncode == 141
    assert ended.stderr == b""


def test_an_interrupt_ends_with_130_and_no_traceback(tmp_path):
    code = "import signal, time, click\nfrom bliss_jax.cli import main\n"
    # A program that is started in the background may ignore interrupts.
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
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


COLOUR = rb"\x1b\[[0-9;]*\b(3[0-7]|38|9[0-7])\b"


def progress_on_a_terminal(**variables: str) -> bytes:
    """Returns the output of a progress bar on a terminal."""
    code = (
        "from bliss_jax.cli.terminal import progress\n"
        "with progress('images', 3) as advance:\n    advance(3)\n"
    )
    ours, theirs = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], stderr=theirs, check=True, timeout=60,
        env={**environment, "TERM": "xterm-256color", **variables},
    )  # fmt: skip
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        return terminal.read(65536)


def test_output_has_colours_only_on_terminals_without_no_color():
    assert re.search(COLOUR, progress_on_a_terminal())
    without = progress_on_a_terminal(NO_COLOR="1")
    assert b"3/3" in without
    assert not re.search(COLOUR, without)
    assert b"\x1b" not in program("models").stdout
    assert b"\x1b" not in program("--help").stdout


def test_names_are_printed_literally(capsys):
    """By default rich reads brackets as styles and words between colons as emoji."""
    from rich.table import Table

    name = "[bold]a[/x] :cat: [/]"
    table = Table(name)
    table.add_row(name)
    for thing in (name, table):
        tables().print(thing)
        notes.print(thing)
    said = capsys.readouterr()
    assert said.out.count(name) == said.err.count(name) == 3
