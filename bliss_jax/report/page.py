"""The report: one self-contained HTML page, and its figures as PNG and SVG files beside it.

DIR/index.html            no network, no external script
DIR/figures/NAME.png      and NAME.svg, the same figures
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bliss_jax.datasets import Images, Protocol, Split
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import (
    KS,
    ON_REQUEST,
    SCORES,
    SHOTS,
    WEIGHTS,
    Evaluation,
    Row,
    Settings,
    SplitScores,
    Study,
    at_weight,
    dictionary_study,
    few_shot_study,
    grid_studies,
    score_split,
    similarity_bias,
)
from bliss_jax.report import figures
from bliss_jax.report.drawing import save_figure
from bliss_jax.report.gallery import explain_split, gallery
from bliss_jax.report.tables import bias_rows, summary_rows
from bliss_jax.report.templating import render
from bliss_jax.scores import BlissExplanation
from bliss_jax.storage import replacing

CARDS = 12
"""Images of each kind in the gallery."""
_COMPARED = ("bliss", "max_cosine", "energy", "knn")
_STUDIED_SPLITS = 10
"""Of a protocol with more splits, so many evenly spaced ones are studied."""


@dataclass(frozen=True)
class _Figure:
    source: str
    caption: str


@dataclass(frozen=True)
class _Section:
    title: str
    text: str
    figures: list[_Figure]


def write_report(
    folder: Path,
    embeddings: EmbeddingSet,
    protocol: Protocol,
    evaluations: Sequence[Evaluation],
    *,
    images: Images | None = None,
    command: str | None = None,
) -> Path:
    """Writes the report and returns its page.

    Figures, studies and the gallery are of `protocol`; where they are of one split, of that whose AUROC of
    BLISS is the median. Its settings are those of the first evaluation of it. A threshold shown is that of
    equal error rates on these very images: for a drawing, not for use.

    Args:
        folder: Made if it does not exist; files of the same names are replaced.
        embeddings: What was evaluated.
        protocol: One that was.
        evaluations: All that the tables hold, of any protocols.
        images: The test images, uint8 [height, width, 3]; without them there is no gallery.
        command: What reproduces the page.

    Raises:
        ValueError: no evaluation of the protocol with the score `bliss`, or another number of images than
            the test set has.
        OSError: The folder cannot be written.
    """
    own = next((e for e in evaluations if _is_of(e, protocol)), None)
    if own is None:
        raise ValueError(f"expected an evaluation of {protocol.name!r} that holds the score bliss")
    if images is not None and len(images) != len(embeddings.test_labels):
        raise ValueError(f"expected {len(embeddings.test_labels)} test images, got {len(images)}")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    settings = _settings(own)
    rows = {row.score: row for row in own.rows if not row.settings.get("shrinkage")}
    areas = [split.auroc for split in rows["bliss"].splits]
    split = protocol.splits[int(np.argsort(areas, kind="stable")[(len(areas) - 1) // 2])]
    split_name = _split_name(split, embeddings.class_names)

    def save(name: str, figure: Figure, caption: str) -> _Figure:
        return _Figure(save_figure(figure, folder / "figures", name), caption)

    # Studies are computed while the rest is drawn: most of both is work for one core.
    with ThreadPoolExecutor() as pool:
        studies = _start_studies(pool, embeddings, protocol, settings)
        scored = score_split(embeddings, split, settings)
        explanation = explain_split(embeddings, split, scored.rows, settings)
        of_paper, of_split = _figures_of_split(save, embeddings, scored, explanation, settings)
        of_protocol = [
            save("splits", _splits_figure(embeddings, protocol, rows),
                 f"AUROC of each split of {protocol.name}, with 95 % intervals."),
            *(save(study.name, study.figure(), f"AUROC against {study.axis}.") for study in studies),
        ]  # fmt: skip
    cards = None
    if images is not None:
        cards = gallery(embeddings, explanation, scored.rows, scored.is_anomaly, images, each=CARDS)
    sections = [
        _Section("The paper's four figures", f"On {split_name} where of one split.", of_paper),
        _Section("One split", f"{split_name}; all else in the protocol is anomalous.", of_split),
        _Section(f"The protocol {protocol.name}", "", of_protocol),
    ]
    page = render(
        "report.html.j2",
        title=f"BLISS on {_name(embeddings, 'dataset')}",
        summary=f"Model {_name(embeddings, 'model')}; {len(embeddings.train_labels)} training and "
        f"{len(embeddings.test_labels)} test images of {embeddings.num_classes} classes; a dictionary of "
        f"{len(embeddings.dictionary)} texts.",
        **_table(evaluations),
        bias=[
            (between, f"{value:.3f}") for between, value in bias_rows(similarity_bias(embeddings))
        ],
        sections=sections,
        cards=cards,
        split=split_name,
        k=settings.k,
        weight=settings.weight,
        command=command,
        provenance=json.dumps([dict(e.provenance) for e in evaluations], indent=1, default=str),
    )
    with replacing(folder / "index.html") as file:
        file.write(page.encode("utf-8"))
    return folder / "index.html"


def _figures_of_split(
    save: Callable[[str, Figure, str], _Figure],
    embeddings: EmbeddingSet,
    scored: SplitScores,
    explanation: BlissExplanation,
    settings: Settings,
) -> tuple[list[_Figure], list[_Figure]]:
    """The paper's four figures, then those of how well the split's sides are told apart."""
    bliss = scored.scores["bliss"]
    threshold = figures.equal_error_threshold(bliss, scored.is_anomaly)
    dictionary = embeddings.dictionary_embeddings.mean(axis=0)
    mean_similarity = embeddings.test_embeddings[scored.rows] @ dictionary
    compared = {n: s for n, s in scored.scores.items() if n in ("bliss", "max_cosine")}
    of_paper = [
        save("tsne", figures.tsne_figure(embeddings),
             "t-SNE: images lie among images, texts among texts."),
        save("label-similarity", figures.label_similarity_figure(embeddings),
             "Each label's mean cosine to the dictionary and to its own images."),
        save("error-quantiles",
             figures.error_quantiles_figure(compared, scored.is_anomaly, mean_similarity),
             "Errors of images by their mean similarity to the dictionary."),
        save("parts",
             figures.parts_scatter_figure(
                 np.asarray(explanation.internal), np.asarray(explanation.external),
                 scored.is_anomaly, weight=settings.weight, threshold=threshold),
             "Internal against external score, at the nearest normal class."),
    ]  # fmt: skip
    of_split = [
        save("roc", figures.roc_figure(scored.scores, scored.is_anomaly),
             "ROC curves and AUROC x 100 of all scores."),
        save("histogram", figures.histogram_figure(bliss, scored.is_anomaly, threshold),
             "BLISS of normal and anomalous images, and the threshold at which both err equally often."),
    ]  # fmt: skip
    return of_paper, of_split


def _splits_figure(embeddings: EmbeddingSet, protocol: Protocol, rows: Mapping[str, Row]) -> Figure:
    shown = {name: rows[name] for name in _COMPARED if name in rows}
    names = [_split_name(split, embeddings.class_names) for split in protocol.splits]
    return figures.split_aurocs_figure(shown, split_names=names)


def _is_of(evaluation: Evaluation, protocol: Protocol) -> bool:
    return evaluation.provenance["protocol"]["name"] == protocol.name and any(
        row.score == "bliss" for row in evaluation.rows
    )


def _settings(evaluation: Evaluation) -> Settings:
    """The settings of an evaluation, from its provenance."""
    made = evaluation.provenance["settings"]
    measured = {row.score for row in evaluation.rows}
    return Settings(
        scores=tuple(name for name in SCORES + ON_REQUEST if name in measured),
        k=made["k"],
        weight=made["lambda"],
        shots=made["shots"],
        seed=made["seed"],
    )


class _Pending(NamedTuple):
    """A study that is being computed, and what its figure is to show."""

    name: str
    axis: str
    chosen: float | None
    study: Callable[[], Study]
    """Waits for it."""

    def figure(self) -> Figure:
        return figures.study_figure(self.study(), chosen=self.chosen)


def _start_studies(
    pool: Executor, embeddings: EmbeddingSet, protocol: Protocol, settings: Settings
) -> tuple[_Pending, ...]:
    """AUROC against lambda, k, dictionary size and shots."""
    step = -(-len(protocol.splits) // _STUDIED_SPLITS)
    some = Protocol(protocol.name, protocol.family, protocol.dataset, protocol.splits[::step])
    k, weight = settings.k, settings.weight
    ks = [k for k in KS if k <= len(embeddings.dictionary)]
    normal = {c for split in some.splits for c in split.normal}
    count = np.bincount(embeddings.train_labels, minlength=embeddings.num_classes)
    fewest = min(count[c] for c in normal)
    shots = [n for n in SHOTS if n <= fewest]
    grid = pool.submit(grid_studies, embeddings, some, sorted({*WEIGHTS, weight}), sorted({*ks, k}))
    return (
        _Pending("lambda", "lambda, the weight of the external score", weight,
                 lambda: grid.result()[k]),
        _Pending("k", "k, the dictionary texts per image", float(k),
                 lambda: at_weight(grid.result(), weight)),
        _Pending("dictionary", "the size of random dictionaries", None,
                 pool.submit(dictionary_study, embeddings, some, repeats=3, k=k, weight=weight).result),
        _Pending("shots", "the normal images per class", None,
                 pool.submit(few_shot_study, embeddings, some, shots, draws=5, k=k, weight=weight).result),
    )  # fmt: skip


def _table(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Columns and rows of the table of AUROCs; the best of each column is marked."""
    protocols, by_name = summary_rows(evaluations)
    best = np.max(list(by_name.values()), axis=0)
    rows = [
        (name, [(f"{100 * v:.1f}", v == top) for v, top in zip(values, best, strict=True)])
        for name, values in by_name.items()
    ]
    return {"protocols": [*protocols, "mean"], "rows": rows}


def _name(embeddings: EmbeddingSet, what: str) -> str:
    recorded = embeddings.provenance.get(what)
    return str(recorded.get("name", "?")) if isinstance(recorded, dict) else "embeddings of a file"


def _split_name(split: Split, class_names: Sequence[str]) -> str:
    """The normal classes, or the anomalous ones where these are fewer."""
    few, which = min((split.normal, "normal"), (split.anomalous, "anomalous"), key=_length)
    shown = ", ".join(class_names[c] for c in few[:4])
    return f"{shown}{' and others' if len(few) > 4 else ''} {which}"


def _length(side: tuple[Sequence[int], str]) -> int:
    return len(side[0])
