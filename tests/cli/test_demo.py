"""`bliss-jax demo` prints the numbers of docs/results.md and writes its report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RESULTS = (Path(__file__).parents[2] / "docs" / "results.md").read_text()


@pytest.mark.slow
def test_the_demo_prints_the_documented_numbers(tmp_path):
    command = "from bliss_jax.cli import main; main()"
    finished = subprocess.run(  # noqa: S603
        [sys.executable, "-c", command, "demo", "-o", "report", "--json", "all.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=900,
        env={**os.environ, "XLA_FLAGS": ""},  # one device, as on a reader's machine
    )
    assert finished.returncode == 0, finished.stderr
    assert "Report: report/index.html" in finished.stdout
    assert "images and their own labels" in finished.stdout
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('data-place="') == 24

    document = json.loads((tmp_path / "all.json").read_text())
    assert document["provenance"]["command"].endswith("demo -o report --json all.json")
    found = _table(finished.stdout, "│")
    stated = _table(RESULTS[RESULTS.index("bliss-jax demo\n```") :], "|")
    assert set(stated) <= set(found)
    assert {"bliss", "max_cosine", "bliss, shrinkage 20, 5 images per class"} <= set(stated)
    for score, areas in stated.items():
        # The last digit may differ between CPUs.
        assert areas == pytest.approx(found[score], abs=0.11), score
    best = max(areas[-1] for score, areas in found.items() if not score.startswith("bliss"))
    assert found["bliss"][-1] > best + 1


def _table(text: str, bar: str) -> dict[str, list[float]]:
    """Returns the AUROCs by score, from the first table with seven numbers per row."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(bar)[1:-1]]
        if len(cells) == 8 and all(re.fullmatch(r"\d+\.\d", cell) for cell in cells[1:]):
            rows.setdefault(cells[0], [float(cell) for cell in cells[1:]])
    return rows
