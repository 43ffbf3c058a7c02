"""The public names, and what importing them costs."""

import ast
import subprocess
import sys
from pathlib import Path

import bliss_jax

PACKAGE = Path(bliss_jax.__file__).parent

# An import only ever points to a room that stands earlier in this list.
ROOMS = [
    "_checks", "files", "sealed", "versions", "distributed", "scores", "metrics", "conformal",
    "outlier_detector", "text", "models", "datasets", "embedding_set", "shards", "embed",
    "detector_state", "detector_file", "detector_inputs", "detector", "results", "bias", "evaluation",
    "split_aurocs", "study", "studies", "scored_files", "labelled_files", "score_tables", "report", "demo",
    "compilation_cache", "cli",
]  # fmt: skip


def test_every_public_name_is_there_and_typed():
    """The lazy table and the names that type checkers see are the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert sorted(typed) == bliss_jax.__all__
    for name, (module, original) in typed.items():
        assert original == name
        assert module == f"bliss_jax.{bliss_jax._MODULE[name]}"
        assert getattr(bliss_jax, name).__doc__


def test_the_scores_need_jax_alone():
    program = (
        "import sys, bliss_jax as bj\n"
        "bj.bliss_score, bj.auroc\n"
        "heavy = {'flax', 'transformers', 'tensorflow_datasets', 'sklearn', 'torch', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)  # noqa: S603


def imports_of(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bliss_jax"):
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            yield from (name for name in names if name in ROOMS)


def test_imports_point_one_way():
    files = [file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.stem in ROOMS]
    assert len(files) > 30
    for file in files:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in imports_of(file):
            assert ROOMS.index(imported) <= ROOMS.index(room), f"{file} imports {imported}"


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
