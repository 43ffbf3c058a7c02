"""The public names, the order of the rooms, and what importing costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bliss_jax

PACKAGE = Path(bliss_jax.__file__).parent
ROOT = PACKAGE.parent

# An import points to a room that comes earlier in this list, or to the room itself.
ROOMS = [
    "_checks", "storage", "text", "datasets", "scores", "metrics", "models", "embedding", "evaluation",
    "detection", "report", "cli",
]  # fmt: skip
PACKAGES = [room for room in ROOMS if (PACKAGE / room).is_dir() and room != "cli"]
LONGEST_FILE = 500


def imports_of(file: Path):
    """Yields the (module, name) pairs that a file imports from the library."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bliss_jax"):
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(module: str, name: str) -> str | None:
    """Returns the room that an import leads to; None for the package itself."""
    parts = [*module.split("."), name]
    return parts[1] if parts[1] in ROOMS else None


def exports(package: str) -> list[tuple[str, str]]:
    """Returns the (module, name) pairs that a package's stub lists."""
    stub = PACKAGE.joinpath(*package.split(".")[1:], "__init__.pyi")
    return [pair for pair in imports_of(stub) if pair[0] != "collections.abc"]


def test_nothing_else_lies_loose_in_the_package():
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {
        *(room if (PACKAGE / room).is_dir() else f"{room}.py" for room in ROOMS),
        "__init__.py",
        "__init__.pyi",
        "py.typed",
    }


@pytest.mark.parametrize("package", ["bliss_jax", *(f"bliss_jax.{room}" for room in PACKAGES)])
def test_every_name_of_a_stub_can_be_imported(package):
    module = import_module(package)
    listed = exports(package)
    assert [name for _, name in sorted(listed, key=lambda pair: pair[1])] == module.__all__
    assert dir(module) == module.__all__
    for origin, name in listed:
        value = getattr(module, name)
        assert value is getattr(import_module(origin), name)
        assert not isinstance(value, type(ast)), f"{package}.{name} is a module"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_rooms_are_attributes_whether_or_not_something_imported_them():
    program = "import bliss_jax as bj; print(bj.metrics.__name__, bj.scores.__name__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["bliss_jax.metrics", "bliss_jax.scores"]


def test_every_public_name_has_a_docstring():
    for name in bliss_jax.__all__:
        assert getattr(bliss_jax, name).__doc__


def test_imports_point_one_way():
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"]
    assert len(files) > 80
    for file in files:
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, name in imports_of(file):
            room = room_of(module, name)
            if room is not None:
                assert ROOMS.index(room) <= ROOMS.index(own), f"{file} imports {module}.{name}"


def test_a_room_uses_only_the_names_that_another_room_exports():
    """Inside a room, modules import from each other; everything else goes through the room's stub."""
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0]
        for module, name in imports_of(file):
            room = room_of(module, name)
            if room in PACKAGES and room != own and module != "bliss_jax":
                assert module == f"bliss_jax.{room}", f"{file} imports {module}.{name}"
                assert name in {name for _, name in exports(module)}, f"{file}: {module}.{name}"


def test_no_file_is_long():
    for folder in ("bliss_jax", "experiments", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            length = len(file.read_text().splitlines())
            assert length <= LONGEST_FILE, f"{file}: {length} lines"


def test_tests_mirror_the_rooms():
    tests = Path(__file__).parent
    folders = {folder.name for folder in tests.iterdir() if list(folder.glob("test_*.py"))}
    assert folders == {*PACKAGES, "cli", "docs", "experiments", "benchmarks", "fuzz"}


def test_the_scores_need_jax_alone():
    program = (
        "import sys, bliss_jax as bj\n"
        "bj.bliss_score, bj.auroc\n"
        "heavy = {'flax', 'transformers', 'tensorflow_datasets', 'sklearn', 'torch', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)  # noqa: S603


def test_nothing_in_the_library_unpickles_or_runs_strings():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "torch", "tensorflow"}, (
                    file
                )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), file
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file
