"""Tests the library on every supported Python, and with the oldest and newest supported releases.

Install nox with `pip install nox`. The sessions are:

- `nox -s wheel-3.12`: the built wheel, tested outside the source tree on Python 3.12;
- `nox -s oldest`: the wheel with the releases in oldest.txt;
- `nox -s newest`: the wheel with the newest releases, pre-releases included;
- `nox -s docs`: the documentation, with warnings as errors.
"""

import shutil
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")
WITHOUT_TORCH = (
    "tests/scores",
    "tests/detection/test_detector.py",
    "tests/detection/test_sklearn.py",
    "tests/metrics",
    "tests/test_package.py",
    "tests/cli/test_command_detect.py",
)
"""Tests that the sessions run unless others are named after `--`; they need no PyTorch."""

nox.options.error_on_missing_interpreters = False
nox.options.sessions = [f"wheel-{PYTHONS[0]}", "docs"]


def _wheel(session: nox.Session) -> str:
    """Builds the sdist, and from it the wheel. Returns the wheel's path."""
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(out), ".")
    return str(next(out.glob("*.whl")))


def _test_outside(session: nox.Session) -> None:
    """Runs the tests from a copy in a folder without the library's source."""
    away = Path(session.create_tmp()) / "away"
    shutil.rmtree(away, ignore_errors=True)
    for folder in ("tests", "docs"):
        shutil.copytree(
            folder, away / folder, ignore=shutil.ignore_patterns("__pycache__", "_build")
        )
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(file, away)
    session.chdir(away)
    session.run("pytest", "-q", *(session.posargs or WITHOUT_TORCH))
    session.run("bliss-jax", "models", silent=True)


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """Tests the built wheel on one Python."""
    session.install(f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Tests the built wheel with the oldest supported releases."""
    session.install("-c", "oldest.txt", f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Tests the built wheel with the newest releases, pre-releases included."""
    session.install("--pre", "--upgrade", f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """Builds the documentation. Every warning is an error."""
    session.install(".[docs]")
    site = Path(session.create_tmp()) / "site"
    session.run("sphinx-build", "-W", "--keep-going", "-n", "docs", str(site))
