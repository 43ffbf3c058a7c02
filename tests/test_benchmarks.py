"""Both sides of the CIFAR-10 benchmark compute the same: its ratio of times compares like with like."""

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
