"""Every script of the paper's experiments runs with --quick and writes the numbers of the library."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
from click.testing import CliRunner
from clusters import clusters
from sklearn.metrics import roc_auc_score

from bliss_jax.datasets import load_protocol
from bliss_jax.embedding import load_embeddings, save_embeddings
from bliss_jax.evaluation import Settings, evaluate
from experiments.paper import ablation

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SCRIPTS = (
    "main_table",
    "ablation",
    "few_shot",
    "dictionary",
    "grids",
    "similarity_bias",
    "backbones",
    "figures",
)
TINY = ("--dataset", "glyphs", "--model", "bliss-jax/tiny")


def run(name: str, *arguments: object) -> str:
    """Runs a script as its reader does, and returns what it printed."""
    finished = subprocess.run(  # noqa: S603
        [sys.executable, "-m", f"experiments.paper.{name}", "--quick", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        timeout=600,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def tables(markdown: str) -> list[list[str]]:
    """Returns the cells of all rows of Markdown tables, without the rules below the headings."""
    rows = re.findall(r"^\| (.*) \|$", markdown, flags=re.MULTILINE)
    return [row.split(" | ") for row in rows if not re.fullmatch(r"[-:| ]+", row)]


def test_a_script_evaluates_a_file_of_embeddings(tmp_path, monkeypatch):
    """The ablation of synthetic embeddings, in this process: its table, its command and its results."""
    e, file = clusters(), tmp_path / "clusters.npz"
    save_embeddings(e, file)
    arguments = ["--embeddings", str(file), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "paper" / "ablation.py"), *arguments])
    result = CliRunner().invoke(ablation.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = (tmp_path / "out" / "ablation.md").read_text()
    assert written.startswith(f"`python -m experiments.paper.ablation {' '.join(arguments)}`\n\n")
    assert "Model clusters; data set clusters." in written
    headings, row = tables(written)
    assert headings == ["protocol", "internal", "external", "bliss", "bliss, shrinkage 20"]
    areas = []
    for c in range(6):
        *_, score = reference.bliss(
            e.test_embeddings, e.label_embeddings, e.dictionary_embeddings, e.train_embeddings,
            e.train_labels, (c,),
        )  # fmt: skip
        areas.append(roc_auc_score(e.test_labels != c, score))
    assert [row[0], row[3]] == ["one-class", f"{100 * np.mean(areas):.1f}"]
    document = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert document["results"]["studies"][0]["series"]["bliss"][0][0] == pytest.approx(areas)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_its_table_its_command_and_its_results(name, output):
    printed = run(name, *TINY, "--output", output)
    written = (output / f"{name}.md").read_text()
    assert (
        written
        == f"`python -m experiments.paper.{name} --quick {' '.join(TINY)} --output {output}`\n\n"
        + (printed[:-1])
    )
    document = json.loads((output / f"{name}.json").read_text())
    assert document["command"] in written
    if name == "figures":
        [page] = document["results"]["pages"]
        assert {"tsne", "label-similarity", "error-quantiles", "parts"} <= {
            file.stem for file in (Path(page).parent / "figures").glob("*.svg")
        }
        return
    rows = tables(written)
    assert len({len(row) for row in rows}) <= 2, "at most two tables, each with rows of one length"
    numbers = [float(n) for row in rows for n in re.findall(r"(?<=^)\d+\.\d(?= ±|$)", row[-1])]
    assert all(0 <= number <= 100 for number in numbers)


def test_every_script_is_tested_and_has_its_command_in_the_readme():
    assert {file.stem for file in (EXPERIMENTS / "paper").glob("*.py")} == set(SCRIPTS)
    readme = (EXPERIMENTS / "README.md").read_text()
    for name in SCRIPTS:
        assert f"python -m experiments.paper.{name}" in readme


@pytest.mark.slow
@pytest.mark.parity
def test_embeddings_are_cached_and_reproduce_the_tables_numbers(output):
    run("ablation", *TINY, "--output", output)
    [file] = [
        f for f in (output / "embeddings").iterdir() if "tiny-unicode-names-own-quick" in f.name
    ]
    before = file.stat().st_mtime_ns
    row = tables(run("ablation", *TINY, "--output", output))[1]
    assert file.stat().st_mtime_ns == before
    embeddings = load_embeddings(file)
    protocol = load_protocol(row[0], dataset="glyphs", num_classes=embeddings.num_classes)
    settings = Settings(scores=("internal", "external", "bliss"), k=1, shrinkages=(0.0, 20.0))
    found = evaluate(embeddings, replace(protocol, splits=protocol.splits[:3]), settings).rows
    areas = {(r.score, r.settings.get("shrinkage") or 0.0): f"{100 * r.auroc:.1f}" for r in found}
    columns = [("internal", 0.0), ("external", 0.0), ("bliss", 0.0), ("bliss", 20.0)]
    assert row[1:] == [areas[column] for column in columns]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["few_shot", "similarity_bias"])
def test_a_script_runs_on_the_file_of_real_clip_embeddings(name, shared, tmp_path):
    file = shared / "data" / "clip_vitb32_cifar10_embeddings.npz"
    printed = run(name, "--embeddings", file, "--output", tmp_path)
    assert "Model openai/clip-vit-base-patch32; data set cifar10." in printed
    rows = tables(printed)
    if name == "similarity_bias":
        # method.md, section 3: label to dictionary 0.685, image to its own label 0.255.
        assert rows[0][2:5:2] == ["label-dictionary", "image-own label"]
        np.testing.assert_allclose(
            [float(rows[1][2]), float(rows[1][4])], [0.685, 0.255], atol=2e-3
        )
