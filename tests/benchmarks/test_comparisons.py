"""Both sides of the CIFAR-10 benchmark compute the same: its ratio of times compares like with like."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def scores(monkeypatch, unchecked):
    """benchmarks.scores, which is not installed; last on the path, so that the installed library is tested.

    Unchecked: compiling ahead of time passes JAX's descriptions of arrays through `ClassMoments`.
    """
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    return import_module("benchmarks.scores")


@pytest.mark.parametrize("peer", ["split_by_split", "shared"])
def test_the_library_and_plain_numpy_agree_at_toy_size(scores, peer):
    e = scores.embeddings(train=600, test=300, texts=97, classes=10, dim=32)
    normal = scores.splits()
    numpy_run = getattr(scores.peers, peer)(e, normal)
    found = scores.agreement(e, numpy_run, scores.Library(e, normal).run())
    assert found.doubtful == 0
    assert found.score < 1e-3
    assert found.auroc < 1e-5


def test_both_ways_of_a_case_of_scale_agree_and_can_be_drawn(scores, tmp_path):
    """Runs one toy case; `measure_case` itself refuses scores that differ."""
    scale, plot = import_module("benchmarks.scale"), import_module("benchmarks.plot")
    case = scale.Case(texts=70, classes=3, images=50, batch=20, times=1)
    cost = scale.measure_case(case)
    assert len(cost.score_seconds) == len(cost.prepared_seconds) == 1
    assert cost.apart < 1e-3
    assert 0 < cost.temporary_bytes <= case.bound
    batch = {"encoder": "B/32", "batch": 2, "flops": 1e9, "seconds": [0.1]}
    numbers = {"scale": {"cases": [scale._numbers(case, cost)]}, "batches": {"cases": [batch]}}
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"benchmarks": numbers}))
    plot.main([str(file), "--output", str(tmp_path)], standalone_mode=False)
    drawn = (tmp_path / "scores.svg").read_text()
    assert "operations of similarities and variances" in drawn
    assert "GFLOP of a batch" in (tmp_path / "encoders.svg").read_text()
    file.write_text(json.dumps({"benchmarks": {}}))
    with pytest.raises(plot.click.BadParameter, match="expected the numbers of scale or batches"):
        plot.main([str(file), "--output", str(tmp_path)], standalone_mode=False)


def test_work_divided_over_devices_gives_the_scores_of_one(scores):
    """`_measure` refuses scores that differ; both ways of dividing are run."""
    sharding = import_module("benchmarks.sharding")
    for over in ("images", "dictionary"):
        cost = sharding._measure(sharding.Case(over, "strong", 8, 64, 80, 1))
        assert len(cost.seconds) == 1
        assert cost.apart < 1e-4


def test_prompts_have_the_lengths_that_are_stated(scores):
    """What the benchmark of prompts encodes: 1,860 rows that begin alike and end where they should."""
    encoders = import_module("benchmarks.encoders")
    tokens = encoders.prompts(1860)
    ends = (tokens == encoders.END).argmax(axis=1) + 1
    lengths, counts = np.unique(ends, return_counts=True)
    assert dict(zip(lengths.tolist(), counts.tolist(), strict=True)) == encoders.PROMPT_LENGTHS
    assert sum(encoders.PROMPT_LENGTHS.values()) == 1860
    assert (tokens[:, : len(encoders.PROMPT)] == encoders.PROMPT).all()


def test_all_ways_to_encode_prompts_agree(scores, monkeypatch):
    """The benchmark itself refuses other embeddings; here with a model of the smallest size."""
    encoders = import_module("benchmarks.encoders")
    small = import_module("benchmarks.gpu.architectures").architectures(True)
    monkeypatch.setattr(encoders, "ARCHITECTURES", small)
    table = encoders.prompts_benchmark(True)
    assert min(table.data["cosine"].values()) > 0.99999
    assert any("PyTorch" in row[0] for row in table.rows)
