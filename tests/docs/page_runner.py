"""Runs pages as a reader would: a process that is asked for one page after the other.

A line of JSON in, `{"folder": ..., "blocks": [[place, line, language, code, exit code], ...]}`; a line out,
`{"error": null | text, "printed": [text, ...]}`. The blocks of a page share a namespace and a folder. A
`bliss-jax` without pipes is called in this process, which has loaded everything; the rest is the shell's.
"""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import traceback

from click.testing import CliRunner
from code_blocks import commands

from bliss_jax.cli import main


def run_page(folder: str, blocks: list[list]) -> dict:
    os.chdir(folder)
    namespace, printed = {"__name__": "__main__"}, []
    for place, line, language, code, expected in blocks:
        try:
            if language == "python":
                printed.append(run_python(namespace, place, line, code))
            else:
                printed.append(run_bash(code, expected))
        except BaseException:
            return {"error": f"{place}\n{traceback.format_exc()}", "printed": printed}
    return {"error": None, "printed": printed}


def run_python(namespace: dict, place: str, line: int, code: str) -> str:
    out = io.StringIO()
    # As many empty lines before it as stand before it in the page: tracebacks name the page's lines.
    program = compile("\n" * line + code, place.rsplit(":", 1)[0], "exec")
    with contextlib.redirect_stdout(out):
        exec(program, namespace)  # noqa: S102
    return out.getvalue()


def run_bash(code: str, expected: int) -> str:
    out, lines = "", commands(code)
    for number, command in enumerate(lines):
        arguments = shlex.split(command)
        if arguments[0] == "bliss-jax" and not set("|&;<>$*`") & set(command):
            result = CliRunner().invoke(main, arguments[1:], prog_name="bliss-jax")
            if result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception
            code, text, errors = result.exit_code, result.stdout, result.stderr
        else:
            done = subprocess.run(  # noqa: S603
                ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
            code, text, errors = done.returncode, done.stdout, done.stderr
        wanted = expected if number == len(lines) - 1 else 0
        if code != wanted:
            raise RuntimeError(f"{command}\nexit code {code}, expected {wanted}\n{text}{errors}")
        out += text
    return out


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    for request in sys.stdin:
        answers.write(json.dumps(run_page(**json.loads(request))) + "\n")
        answers.flush()
