"""The README's Python runs as printed, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bliss_jax.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(code)
    subprocess.run([sys.executable, file], check=True, timeout=300, cwd=tmp_path)  # noqa: S603


def test_there_is_python():
    assert PYTHON


def test_every_option_in_a_command_exists():
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
    commands = re.findall(r"bliss-jax (evaluate|embed|demo)((?: (?:\\\n\s*)?[^\s&]+)*)", shell)
    assert len(commands) >= 4
    for command, arguments in commands:
        known = CliRunner().invoke(main, [command, "--help"]).stdout
        for option in re.findall(r"--?[a-z][a-z-]*", arguments):
            if re.search(rf"(?<!\S){option}\b", arguments):
                assert re.search(rf"(?<!\S){option}\b", known), f"{command} has no {option}"
