"""The library on every Python, and on the oldest and newest releases it supports.

`pip install nox`, then `nox -s wheel-3.12` (the built wheel, tested outside the source tree on Python 3.12),
`nox -s oldest` (the wheel with the releases in oldest.txt), `nox -s newest` (with the newest, pre-releases
included), `nox -s docs` (the documentation, warnings as errors).
"""

import shutil
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")
WITHOUT_TORCH = (
    "tests/scores",
    "tests/detection/test_detector.py",
    "tests/detection/test_sklearn.py",
    "tests/test_metrics.py",
    "tests/test_package.py",
    "tests/cli/test_command_detect.py",
)
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [f"wheel-{PYTHONS[0]}", "docs"]


def _wheel(session: nox.Session) -> str:
    """Builds sdist and wheel, the wheel from the sdist; returns the wheel's path."""
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(out), ".")
    return str(next(out.glob("*.whl")))


def _test_outside(session: nox.Session) -> None:
    """Runs the tests on a copy of them, where no source of the library lies beside them."""
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
    """The built wheel on one Python."""
    session.install(f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The built wheel with the oldest releases that are supported."""
    session.install("-c", "oldest.txt", f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """The built wheel with the newest releases, pre-releases included."""
    session.install("--pre", "--upgrade", f"{_wheel(session)}[test]")
    _test_outside(session)


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """The documentation; every warning is an error."""
    session.install(".[docs]")
    site = Path(session.create_tmp()) / "site"
    session.run("sphinx-build", "-W", "--keep-going", "-n", "docs", str(site))
