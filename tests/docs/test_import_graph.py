"""The import graph of the library has no cycles, and `docs/import_graph.py` finds the cycles of others."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "import_graph.py"
_spec = importlib.util.spec_from_file_location("import_graph", SCRIPT)
import_graph = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(import_graph)


@pytest.fixture
def package(tmp_path):
    """Writes a package of three rooms; returns a function that adds a file to it."""
    folder = tmp_path / "bliss_jax"

    def write(name, text):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return folder

    write("__init__.pyi", "from bliss_jax.ground import thing as thing\n")
    write("ground.py", "import os\n")
    write("middle/__init__.py", "")
    write("middle/a.py", "def f():\n    from bliss_jax.ground import thing\n")
    write("top/main.py", "import bliss_jax.middle.a\nfrom bliss_jax import thing\n")
    return write


def test_the_library_has_no_cycles():
    """Only the source tree is read, which is present also if an installed wheel is what is tested."""
    if not import_graph.PACKAGE.is_dir():
        pytest.skip("the tests run outside the source tree")
    graph = import_graph.room_graph()
    assert import_graph.cycles(graph) == []
    assert len(graph) == 12
    assert len(import_graph.floors(graph)) <= 6


def test_imports_inside_functions_and_from_the_package_count(package):
    graph = import_graph.room_graph(package("other.txt", ""))
    assert graph == {
        "ground": frozenset(),
        "middle": frozenset({"ground"}),
        "top": frozenset({"ground", "middle"}),
    }
    assert import_graph.floors(graph) == [["ground"], ["middle"], ["top"]]
    assert import_graph.summary(graph) == "3 rooms, 3 floors, 3 arrows, 0 cycles"


def test_pictures_leave_out_arrows_that_a_path_implies(package):
    graph = import_graph.room_graph(package("other.txt", ""))
    assert import_graph.as_mermaid(graph) == (
        "flowchart TD\n    middle --> ground\n    top --> middle\n"
    )
    assert import_graph.as_svg(graph).count("marker-end") == 2


def test_a_cycle_is_found_and_named(package):
    graph = import_graph.room_graph(package("ground.py", "from bliss_jax.top.main import x\n"))
    assert import_graph.cycles(graph) == [frozenset({"ground", "middle", "top"})]
    with pytest.raises(ValueError, match="ground, middle, top"):
        import_graph.floors(graph)


def test_the_script_prints_the_counts_and_writes_a_picture(tmp_path):
    if not import_graph.PACKAGE.is_dir():
        pytest.skip("the tests run outside the source tree")
    file = tmp_path / "rooms.svg"
    printed = subprocess.run(  # noqa: S603
        [sys.executable, SCRIPT, "--svg", file], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[0].startswith("12 rooms, ")
    assert printed.splitlines()[0].endswith(", 0 cycles")
    assert file.read_text().startswith("<svg")
