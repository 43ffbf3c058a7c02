"""Scores of one's own in `--score`: functions or `Score` records of a module or a file."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import click

_FORMS = "a score's name, MODULE:FUNCTION or FILE.py:FUNCTION"


def library_scores(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names without a colon, which are scores of the library.

    Raises:
        UsageError: A name with a colon has no module or no function.
    """
    for name in names:
        place, colon, attribute = name.rpartition(":")
        if colon and not (place and attribute):
            raise click.UsageError(f"--score: expected {_FORMS}, got {name!r}")
    return tuple(name for name in names if ":" not in name)


def load_scores(names: Sequence[str]) -> tuple[Any, ...] | None:
    """Returns the scores of the options `--score`, with a `Score` record for each `MODULE:FUNCTION`.

    This imports JAX and runs the code of the modules, so arguments and folders are checked before.

    Args:
        names: Values of the options; none of them stands for the default scores.

    Raises:
        ClickException: A module or file cannot be imported, has no such function, or the function is no score.
    """
    return tuple(_own_score(name) if ":" in name else name for name in names) or None


def _own_score(name: str) -> Any:
    from bliss_jax.scores import Score, as_score, score_table

    place, _, attribute = name.rpartition(":")
    with _naming(name):
        module = _file(place) if place.endswith(".py") else _module(place)
        if not hasattr(module, attribute):
            raise ValueError(f"{place} ({module.__file__}) has no attribute {attribute!r}")
        found = getattr(module, attribute)
        if not isinstance(found, Score) and not callable(found):
            raise ValueError(
                f"expected a function or a bliss_jax.Score, got a {type(found).__name__}"
            )
        score = as_score(found)
        if score.name in score_table():
            raise ValueError(
                f"{score.name!r} is the name of a score of the library; rename the function, or give it "
                "another name with bliss_jax.Score(name, function)"
            )
    return score


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns errors into one line that begins with the option and its value."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise click.ClickException(f"--score {name}: {error}") from error


def _module(name: str) -> ModuleType:
    """Imports a module; the current directory is searched first, as by `python -m`.

    Raises:
        ValueError: There is no such module, or its code fails.
    """
    here = str(Path.cwd())
    if not {"", here} & {*sys.path}:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise ValueError(
            f"there is no module {error.name!r} in {here} or among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _file(name: str) -> ModuleType:
    """Runs a file as a module that is named by its path, so that it replaces no other module.

    Its folder is not added to the path of imports.

    Raises:
        ValueError: There is no such file, or its code fails.
    """
    if not Path(name).is_file():
        raise ValueError(f"there is no file {name}")
    spec = util.spec_from_file_location(name, name)
    assert spec is not None and spec.loader is not None  # noqa: S101 (the name ends with .py)
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(name, error) from error
    return module


def _failed(name: str, error: BaseException) -> ValueError:
    """Returns an error that says in one line why an import failed, and in which line of the user's code."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and file not in (__file__, util.__file__):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    words = " ".join(str(error).split())
    return ValueError(f"importing {name} failed: {type(error).__name__}: {words}{place}")
