"""The results table of the README, regenerated from the embeddings and compared digit by digit."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# max cosine, max softmax, internal, BLISS: AUROC x 100 with 1, 6 and 9 of 10 classes normal, computed
# independently of this library with the same halves.
KNOWN = {
    "max_cosine": (97.6, 91.6, 89.3),
    "msp": (50.0, 90.5, 87.6),
    "internal": (97.6, 92.0, 89.9),
    "bliss": (98.8, 95.6, 93.5),
}


@pytest.fixture(scope="module")
def experiment():
    return runpy.run_path(str(ROOT / "experiments" / "real_clip_cifar10.py"))


@pytest.fixture(scope="module")
def sets(experiment, shared):
    return experiment["halves"](shared / "data" / "clip_vitb32_cifar10_embeddings.npz", 10, 0)


@pytest.fixture(scope="module")
def table(experiment, sets):
    return experiment["score_table"](sets)


@pytest.mark.parity
@pytest.mark.shared_data
def test_the_known_table_is_reproduced(table):
    for score, expected in KNOWN.items():
        found = tuple(round(column[score], 1) for column in table.values())
        assert found == expected, score


@pytest.mark.shared_data
def test_the_readme_prints_this_table(table):
    readme = (ROOT / "README.md").read_text()
    scores = list(table["1 of 10"])
    for score in scores:
        numbers = " | ".join(f"{column[score]:.1f}" for column in table.values())
        assert f"| {score} | {numbers} |" in readme


@pytest.mark.shared_data
def test_shrinkage_helps_where_images_are_few(experiment, sets, monkeypatch):
    """2 shots: variances of two images are noise. On all images it changes less than a point."""
    monkeypatch.setitem(experiment["shots_table"].__globals__, "SHOTS", (2, None))
    shots = experiment["shots_table"](sets[:2], 5, 0)
    for heading, few in (("6 of 10", 5), ("9 of 10", 5), ("1 of 10", 2)):
        reference, shrunk = shots[heading].values()
        assert shrunk[0] > reference[0] + few
        assert abs(shrunk[1] - reference[1]) < 1
