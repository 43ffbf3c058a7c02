"""A report on a small data set whose names contain HTML markup."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from clusters import PROTOCOL, M, clusters

from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import Evaluation, Settings, evaluate
from bliss_jax.report import write_report

SCRIPT = "<script>document.title = 'taken'</script>"
K, WEIGHT = 3, 0.7


@dataclass(frozen=True)
class Report:
    page: Path
    embeddings: EmbeddingSet
    evaluation: Evaluation
    images: np.ndarray


def write_example(folder: Path) -> Report:
    """Writes the report with all figures and a gallery."""
    names = (SCRIPT, "cat & dog", "a \"b\" 'c'", "d", "ü", "f")
    embeddings = replace(
        clusters(names),
        dictionary=(*(f"{SCRIPT}{i}" for i in range(M - 1)), "word"),
        provenance={"model": {"name": SCRIPT}, "dataset": {"name": "clusters"}},
    )
    images = np.random.default_rng(0).integers(0, 256, (90, 12, 16, 3), np.uint8)
    settings = Settings(scores=("bliss", "max_cosine", "mcm", "knn"), k=K, weight=WEIGHT)
    evaluation = evaluate(embeddings, PROTOCOL, settings)
    page = write_report(
        folder,
        embeddings,
        PROTOCOL,
        [evaluation],
        images=images,
        command=f"bliss-jax evaluate --model '{SCRIPT}'",
    )
    return Report(page, embeddings, evaluation, images)
