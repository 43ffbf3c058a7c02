"""The GPU benchmark's command: results are kept at once, no case is skipped silently, tables are right."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.gpu import cases, command, results, supervisor, tables
from benchmarks.gpu.measuring import Compilations, Context

ROOT = Path(__file__).parents[2]


def measures(context):
    yield {"value": 1}
    yield {"scratch": str(context.scratch)}


def fails(context):
    yield {"value": 2}
    raise MemoryError("no room\nand more")


def hangs(context):
    yield {"value": 3}
    time.sleep(60)


def crashes(context):
    yield {"value": 4}
    os._exit(7)


def toy_cases():
    functions = (measures, fails, hangs, crashes)
    return {function.__name__: cases.Case(function, 1) for function in functions}


def outcome(worker, name, seconds=60.0):
    """Numbers of a case, and its status and reason if it did not finish."""
    numbers = {}
    try:
        for some in worker.run(name, seconds):
            numbers |= some
    except supervisor.CaseError as error:
        return numbers, error.status, str(error)
    return numbers, results.MEASURED, ""


def test_a_case_that_fails_or_hangs_keeps_its_numbers_and_says_why(tmp_path):
    log = tmp_path / "log"
    worker = supervisor.Worker("jax", Context(True, tmp_path), log, toy_cases)
    failed = outcome(worker, "fails")
    assert failed == ({"value": 2}, results.FAILED, "MemoryError: no room")
    numbers, status, _ = outcome(worker, "measures")
    assert status == results.MEASURED
    assert numbers["scratch"] == str(tmp_path)
    assert numbers["programs"] == 0
    stopped = outcome(worker, "hangs", 0.5)
    assert stopped == ({"value": 3}, results.STOPPED, "it was not finished after 0 s")
    assert not worker.alive
    assert "and more" in log.read_text()


@pytest.mark.slow
def test_a_process_that_ends_during_a_case_is_reported(tmp_path):
    worker = supervisor.Worker("jax", Context(True, tmp_path), tmp_path / "log", toy_cases)
    numbers, status, reason = outcome(worker, "crashes")
    assert (numbers, status) == ({"value": 4}, results.FAILED)
    assert reason == "its process ended with exit code 7"


class FakeWorker:
    """Runs cases in this process, in place of `Worker`."""

    def __init__(self, kind, context, log):
        self.kind, self.context, self.alive = kind, context, True

    def run(self, name, seconds):
        if name == "machine":
            yield {"device": "toy", "platform": "cpu"}
            return
        yield from toy_cases()[name].run(self.context)
        yield {"programs": 3, "cache_hits": 1, "compile_s": 2.0}

    def end(self):
        self.alive = False


def run_toys(monkeypatch, folder, chosen, seconds):
    monkeypatch.setattr(supervisor, "Worker", FakeWorker)
    lines = []
    found = results.Results(folder, True)
    supervisor.run_cases(
        chosen,
        Context(True, folder),
        found,
        deadline=time.monotonic() + seconds,
        report=lines.append,
    )
    return found, lines


def test_a_case_that_needs_more_than_the_seconds_left_is_left_out_by_name(monkeypatch, tmp_path):
    chosen = {"hangs": cases.Case(hangs, 500), "measures": cases.Case(measures, 1)}
    found, lines = run_toys(monkeypatch, tmp_path, chosen, 100)
    assert found.records["hangs"]["status"] == results.LEFT_OUT
    assert found.records["hangs"]["reason"].startswith("it needs about 500 s")
    assert found.records["measures"]["status"] == results.MEASURED
    assert any("hangs: left out" in line for line in lines)
    missing = tables.missing_table(found.records)
    assert [row[0] for row in missing.rows] == ["hangs"]


def test_numbers_are_in_the_file_as_soon_as_they_are_measured(monkeypatch, tmp_path):
    found, _ = run_toys(monkeypatch, tmp_path, {"measures": cases.Case(measures, 1)}, 100)
    assert results.read_results(found.file) == found.records
    with found.file.open("a") as file:
        file.write('{"case": "measures", "started": true}\n{"case": "cut off')
    assert results.read_results(found.file)["measures"] == {"started": True}


def test_results_of_another_machine_or_of_shrunken_models_are_refused(tmp_path):
    kept = results.Results(tmp_path, True)
    kept.check_machine({"device": "one"})
    with pytest.raises(ValueError, match=r"results\.jsonl.*other"):
        results.Results(tmp_path, True).check_machine({"device": "other"})
    with pytest.raises(ValueError, match="--quick has changed"):
        results.Results(tmp_path, False)


def test_patterns_choose_cases_in_the_benchmarks_order():
    assert list(command.chosen_cases(["torch L*", "ceiling"])) == [
        "ceiling",
        "torch L/14",
        "torch L/14-336",
    ]
    with pytest.raises(ValueError, match="--only nothing: expected one of"):
        command.chosen_cases(["nothing"])


def test_every_required_case_is_among_the_first_ones():
    """The encoders with PyTorch beside them, scores, prompts, `embed_images` and CIFAR-10."""
    first = list(cases.cases())[:16]
    required = {f"{kind} {name}" for kind in ("encoder", "torch") for name in tables.ARCHITECTURES}
    required |= {"ceiling", "embed_images 32", "embed_images 224", "cifar10", "prompts B/32"}
    assert required | {"scores 1000000", "from uint8 B/32"} <= set(first)


def test_tables_compute_shares_and_ratios():
    records = {
        "machine": {"device": "NVIDIA H200", "quick": False},
        "ceiling": {"flops of bfloat16 square": 800e12, "flops of float32 square": 50e12},
        "encoder L/14": {
            "status": "measured", "batch": 256, "images_per_s": 3000.0, "flops_per_image": 160e9,
            "seconds": {"median": 256 / 3000},
        },
        "torch L/14": {"status": "stopped", "reason": "slow", "eager_images_per_s": 2000.0},
        "scores 1860": {
            "images": 100, "texts": 1860,
            **{kind: {"seconds": s} for kind, s in (("product", 0.1), ("top k", 0.15))},
        },
    }  # fmt: skip
    (row,) = tables.encoders_table(records).rows
    assert row[:5] == ("L/14", "256", "3,000", "480", "60 %")
    assert row[5] == "59 %"  # 50.7 ms at 790 TFLOP/s over 85.3 ms
    assert row[6:9] == ("2,000", "", "")
    (row,) = tables.scores_table(records).rows
    assert row[:5] == ("1,860", "100", "100", "150", "1.50")
    assert [row[:2] for row in tables.missing_table(records).rows] == [("torch L/14", "stopped")]


def test_joined_files_of_results_give_one_set_of_tables(tmp_path, capsys):
    """The results of a second command replace what the first one left out."""
    lines = [
        {"case": "machine", "device": "toy", "quick": False},
        {"case": "ceiling", "status": "left out", "reason": "no time"},
        {"case": "machine", "device": "toy", "quick": False},
        {"case": "ceiling", "started": True, "status": "stopped"},
        {"case": "ceiling", "bandwidth": 2e12, "status": "measured", "took_s": 3.0},
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    command.main(["--tables", str(file)])
    printed = capsys.readouterr().out
    assert "| bandwidth | 2000 GB/s |" in printed
    assert "| ceiling | measured | 3 |" in printed
    assert "no time" not in printed


def test_compiled_programs_are_counted():
    counter = Compilations()
    jax.jit(lambda x: 3 * x + 1)(np.float32(2))
    assert counter.counted()["programs"] >= 1
    assert counter.counted()["programs"] == 0


@pytest.mark.slow
def test_the_command_runs_without_optional_packages_and_reports_what_failed(tmp_path):
    """A new interpreter and its workers refuse PyTorch and others; one case fails for that reason."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers", "sklearn", "click", "PIL"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
""")
    output = tmp_path / "out"
    chosen = ["--only", "ceiling", "--only", "encoder B/32", "--only", "torch B/32"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.gpu", "--quick", "--output", str(output), *chosen],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "torch B/32: failed" in done.stdout
    assert "ImportError: torch" in done.stdout
    assert "2 measured, 1 failed" in done.stdout
    assert json.loads((output / "results.jsonl").read_text().splitlines()[0])["quick"] is True
    assert "Vision towers" in (output / "tables.md").read_text()


@pytest.mark.slow
@pytest.mark.torch
def test_every_case_runs_with_shrunken_models(tmp_path):
    """Nothing is skipped: each case of the benchmark is measured and has a line in the table of cases."""
    done = subprocess.run(  # noqa: S603
        [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--quick",
            "--output",
            tmp_path,
            "--budget",
            "1500",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = results.read_results(tmp_path / "results.jsonl")
    assert set(records) == {"machine", *cases.cases()}
    assert all(records[name]["status"] == results.MEASURED for name in cases.cases())
    rows = {row[0]: row[1] for row in tables.cases_table(records).rows}
    assert rows == dict.fromkeys(cases.cases(), results.MEASURED)
