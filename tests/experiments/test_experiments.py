"""Every experiment runs at small size, and what it writes are the library's numbers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bliss_jax.datasets import load_protocol
from bliss_jax.embedding_set import load_embeddings
from bliss_jax.evaluation import Settings, evaluate

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
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
pytestmark = pytest.mark.slow


def run(name: str, *arguments: object) -> str:
    finished = subprocess.run(  # noqa: S603
        [sys.executable, EXPERIMENTS / f"{name}.py", "--quick", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def tables(markdown: str) -> list[list[str]]:
    rows = re.findall(r"^\| (.*) \|$", markdown, flags=re.MULTILINE)
    return [row.split(" | ") for row in rows if not re.fullmatch(r"[-:| ]+", row)]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_its_table_and_all_that_made_it(name, output):
    printed = run(name, *TINY, "--output", output)
    written = (output / f"{name}.md").read_text()
    assert (
        written
        == f"`python experiments/{name}.py --quick {' '.join(TINY)} --output {output}`\n\n"
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
    assert len({len(row) for row in rows}) <= 2, "as many cells as headings (two tables at most)"
    numbers = [float(n) for row in rows for n in re.findall(r"(?<=^)\d+\.\d(?= ±|$)", row[-1])]
    assert all(0 <= number <= 100 for number in numbers)


def test_every_script_is_tested_and_named_in_the_readme():
    using = {file.stem for file in EXPERIMENTS.glob("*.py") if "@experiment(" in file.read_text()}
    assert using - {"common"} == set(SCRIPTS)
    readme = (EXPERIMENTS / "README.md").read_text()
    for name in SCRIPTS:
        assert f"python experiments/{name}.py" in readme


@pytest.mark.parity
def test_what_is_embedded_is_not_embedded_again_and_gives_the_tables_numbers(output):
    run("ablation", *TINY, "--output", output)
    [file] = [
        f for f in (output / "embeddings").iterdir() if "tiny-unicode-names-own-quick" in f.name
    ]
    before = file.stat().st_mtime_ns
    row = tables(run("ablation", *TINY, "--output", output))[1]
    assert file.stat().st_mtime_ns == before
    embeddings = load_embeddings(file)
    protocol = load_protocol(row[2], dataset="glyphs", num_classes=embeddings.num_classes)
    settings = Settings(scores=("internal", "external", "bliss"), k=1, shrinkages=(0.0, 20.0))
    areas = [
        100 * np.mean([split.auroc for split in r.splits[:3]])
        for r in evaluate(embeddings, protocol, settings).rows
    ]
    order = [row.score for row in evaluate(embeddings, protocol, settings).rows]
    expected = {name: area for name, area in zip(order, areas, strict=True) if name != "bliss"}
    assert row[3:5] == [f"{expected['internal']:.1f}", f"{expected['external']:.1f}"]
    assert row[5:] == [f"{areas[i]:.1f}" for i, name in enumerate(order) if name == "bliss"]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["few_shot", "similarity_bias"])
def test_real_embeddings_of_others(name, shared, tmp_path):
    file = shared / "data" / "clip_vitb32_cifar10_embeddings.npz"
    rows = tables(run(name, "--embeddings", file, "--output", tmp_path))
    assert rows[1][:2] == ["openai/clip-vit-base-patch32", "cifar10"]
    if name == "similarity_bias":
        # method.md, section 3: label to dictionary 0.685, image to its own label 0.255.
        assert rows[0][4:7:2] == ["label-dictionary", "image-own label"]
        np.testing.assert_allclose(
            [float(rows[1][4]), float(rows[1][6])], [0.685, 0.255], atol=2e-3
        )
