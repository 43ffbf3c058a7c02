"""Results on real CLIP embeddings equal the known numbers and the tables of the documentation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bliss_jax.datasets import Protocol, load_protocol
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import Settings, evaluate, few_shot_study
from experiments import clip_file

ROOT = Path(__file__).parents[2]
SCRIPTS = ("main_table", "few_shot", "ablation", "dictionary", "grids", "similarity_bias")

ALSO_STATED_IN = {"main_table": ("README.md", "docs/results.md"), "few_shot": ("docs/results.md",)}

# AUROC x 100 with 1, 6 and 9 of 10 normal classes, computed with the same halves but without this library.
KNOWN = {
    "max_cosine": ("97.6", "91.6", "89.3"),
    "msp": ("50.0", "90.5", "87.6"),
    "internal": ("97.6", "92.0", "89.9"),
    "bliss": ("98.8", "95.6", "93.5"),
}
pytestmark = [pytest.mark.parity, pytest.mark.shared_data]


@pytest.fixture(scope="module")
def printed(shared, tmp_path_factory):
    """Returns a function that runs a script on the file and returns the rows of its tables as Markdown."""
    output, made = tmp_path_factory.mktemp("experiments"), {}
    file = shared / "data" / "clip_vitb32_cifar10_embeddings.npz"

    def rows(name: str) -> list[str]:
        if name not in made:
            program = [sys.executable, "-m", f"experiments.paper.{name}"]
            finished = subprocess.run(  # noqa: S603
                [*program, "--embeddings", file, "--output", output],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={**os.environ, "XLA_FLAGS": ""},
                timeout=600,
            )
            assert finished.returncode == 0, finished.stderr
            made[name] = re.findall(r"^\|.*\|$", finished.stdout, flags=re.MULTILINE)
        return made[name]

    return rows


@pytest.fixture(scope="module")
def halves(shared) -> list[EmbeddingSet]:
    return clip_file.halves(shared / "data" / "clip_vitb32_cifar10_embeddings.npz", 10, seed=0)


def test_evaluate_reproduces_the_known_table(halves):
    names = ("one-class", "zoc-6", "leave-one-out")
    splits = [load_protocol(name, dataset="cifar10", num_classes=10).splits for name in names]
    # One protocol with the splits of all three, so that the evaluation is compiled once.
    joint = Protocol("joint", "custom", None, tuple(split for own in splits for split in own))
    evaluations = [evaluate(e, joint, Settings(scores=tuple(KNOWN))) for e in halves]
    ends = np.cumsum([len(own) for own in splits])
    for rows in zip(*(evaluation.rows for evaluation in evaluations), strict=True):
        areas = np.array([[split.auroc for split in row.splits] for row in rows])
        means = [100 * part.mean() for part in np.split(areas, ends[:-1], axis=1)]
        assert tuple(f"{mean:.1f}" for mean in means) == KNOWN[rows[0].score]


def test_shrinkage_helps_with_two_images_per_class(halves):
    """The variances of two images are mostly noise."""
    protocol = load_protocol("zoc-6", dataset="cifar10", num_classes=10)
    study = few_shot_study(halves[0], protocol, (2,), draws=3, shrinkage=20.0)
    assert study.mean("bliss, shrinkage 20")[0] > study.mean("bliss")[0] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_documentation_states_the_tables_that_the_scripts_print(printed, name):
    rows = printed(name)
    assert len(rows) > 2
    for file in ("experiments/README.md", *ALSO_STATED_IN.get(name, ())):
        stated = (ROOT / file).read_text().splitlines()
        assert [row for row in rows if row not in stated] == [], f"{file} states something else"
