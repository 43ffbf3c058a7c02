"""Both sides of the CIFAR-10 benchmark compute the same: its ratio of times compares like with like."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def scores(monkeypatch, unchecked):
    """benchmarks.scores, which is not installed; last on the path, so that the installed library is tested.

    Unchecked: compiling ahead of time passes JAX's descriptions of arrays through `ClassMoments`.
    """
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1])])
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
    numbers = {"benchmarks": {"scale": {"cases": [scale._numbers(case, cost)]}}}
    file, svg = tmp_path / "numbers.json", tmp_path / "scores.svg"
    file.write_text(json.dumps(numbers))
    plot.main([str(file), "--output", str(svg)], standalone_mode=False)
    assert "operations of similarities and variances" in svg.read_text()
    file.write_text(json.dumps({"benchmarks": {}}))
    with pytest.raises(plot.click.BadParameter, match="expected the numbers of `scale`"):
        plot.main([str(file), "--output", str(svg)], standalone_mode=False)


def test_work_divided_over_devices_gives_the_scores_of_one(scores):
    """`_measure` refuses scores that differ; both ways of dividing are run."""
    sharding = import_module("benchmarks.sharding")
    for over in ("images", "dictionary"):
        cost = sharding._measure(sharding.Case(over, "strong", 8, 64, 80, 1))
        assert len(cost.seconds) == 1
        assert cost.apart < 1e-4
