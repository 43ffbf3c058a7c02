"""The benchmarks compare procedures that compute the same, so that their times can be compared."""

import json

import numpy as np
import pytest

from benchmarks import encoders, out_of_distribution, peers, plot, scale, scores, sharding
from benchmarks.gpu.architectures import architectures

pytestmark = pytest.mark.usefixtures("unchecked")
"""Compilation ahead of time passes JAX's descriptions of arrays through `ClassMoments`."""


def test_the_library_and_both_forms_in_numpy_agree():
    e = scores.embeddings(train=600, test=300, texts=97, classes=10, dim=32)
    normal = scores.splits()
    ours = scores.Library(e, normal).run()
    for procedure in (peers.split_by_split, peers.shared):
        found = scores.agreement(e, procedure(e, normal), ours)
        assert found.doubtful == 0
        assert found.score < 1e-3
        assert found.auroc < 1e-5


def numbers_of(case, cost):
    batch = {"encoder": "B/32", "batch": 2, "flops": 1e9, "seconds": [0.1]}
    benchmarks = {"scale": {"cases": [scale._numbers(case, cost)]}, "batches": {"cases": [batch]}}
    return json.dumps({"benchmarks": benchmarks})


@pytest.mark.slow
def test_both_scores_of_scale_agree_and_keep_the_memory_bound():
    """`measure_case` itself refuses scores that differ."""
    case = scale.Case(texts=70, classes=3, images=50, batch=20, times=1)
    cost = scale.measure_case(case)
    assert len(cost.score_seconds) == len(cost.prepared_seconds) == 1
    assert cost.apart < 1e-3
    assert 0 < cost.temporary_bytes <= case.bound


def test_figures_are_drawn_from_the_numbers_of_a_run(tmp_path):
    case = scale.Case(texts=70, classes=3, images=50, batch=20, times=1)
    cost = scale.Cost([0.2], [0.1], [0.15], 0.05, 0.0, 1.0, 1000, 2000, 3000)
    file = tmp_path / "numbers.json"
    file.write_text(numbers_of(case, cost))
    plot.main([str(file), "--output", str(tmp_path)], standalone_mode=False)
    drawn = (tmp_path / "scores.svg").read_text()
    assert "operations of similarities and variances" in drawn
    assert "GFLOP of a batch" in (tmp_path / "encoders.svg").read_text()


def test_a_file_without_numbers_to_draw_is_refused(tmp_path):
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"benchmarks": {"ask": {}}}))
    with pytest.raises(
        plot.click.BadParameter, match="expected the numbers of scale or batches, found ask"
    ):
        plot.main([str(file), "--output", str(tmp_path)], standalone_mode=False)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["images", "dictionary"])
def test_sharded_scores_equal_those_of_one_device(over):
    """`_measure` itself refuses scores that differ."""
    cost = sharding._measure(sharding.Case(over, "strong", 8, 64, 80, 1))
    assert len(cost.seconds) == 1
    assert cost.apart < 1e-4


def test_prompts_have_the_stated_lengths():
    """The benchmark encodes 1,860 rows that begin with the same tokens and end after their lengths."""
    tokens = encoders.prompts(1860)
    ends = (tokens == encoders.END).argmax(axis=1) + 1
    lengths, counts = np.unique(ends, return_counts=True)
    assert dict(zip(lengths.tolist(), counts.tolist(), strict=True)) == encoders.PROMPT_LENGTHS
    assert sum(encoders.PROMPT_LENGTHS.values()) == 1860
    assert (tokens[:, : len(encoders.PROMPT)] == encoders.PROMPT).all()


@pytest.mark.torch
def test_all_ways_to_encode_prompts_agree(monkeypatch):
    """The benchmark itself refuses embeddings that differ; here it runs with a shrunken model."""
    monkeypatch.setattr(encoders, "ARCHITECTURES", architectures(True))
    table = encoders.prompts_benchmark(True)
    assert min(table.data["cosine"].values()) > 0.99999
    assert any("PyTorch" in row[0] for row in table.rows)


@pytest.mark.slow
def test_the_scores_shared_with_pytorch_ood_are_measured(monkeypatch):
    """Without pytorch-ood, only the library and its bounds are measured; with it, `_apart` refuses other scores."""
    sizes = {"train": 600, "test": 200, "texts": 1}
    monkeypatch.setattr(out_of_distribution, "QUICK", sizes)
    table = out_of_distribution.pytorch_ood(True)
    assert "600 normal and 200 test images" in table.title
    rows = {row[0]: row for row in table.rows}
    assert {"MCM", "energy", "Mahalanobis: fit", "kNN: score", "Detector: update"} <= set(rows)
    assert rows["kNN: score"][5].startswith("similarity product: ")
    assert float(rows["kNN: score"][6]) > 0
    assert all(row[5] == "" for name, row in rows.items() if name in ("MCM", "RMD: score"))


def test_scores_that_differ_are_not_compared():
    with pytest.raises(AssertionError, match="energy: "):
        out_of_distribution._apart("energy", np.arange(5.0), np.arange(5.0) + 0.1, 1e-3)
