"""The report of an evaluation: one self-contained HTML page, and its figures as PNG and SVG files.

DIR/index.html            the page; it needs no network and no external script
DIR/figures/NAME.png      the figures of the page
DIR/figures/NAME.svg      the same figures as SVG
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
from bliss_jax.scores import BlissExplanation, score_table
from bliss_jax.storage import replacing

CARDS = 12
"""Maximum number of normal images, and of anomalies, in the gallery."""
_COMPARED = ("bliss", "max_cosine", "energy", "knn")
_STUDIED_SPLITS = 10
"""Maximum number of splits in the studies. If a protocol has more, evenly spaced ones are used."""


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
    """Writes the report and returns the path of its page.

    Figures, studies and the gallery show `protocol`, with the settings of its first evaluation. Those that
    show a single split use the split with the median AUROC of BLISS. The threshold in the figures has equal
    error rates on the images shown (see `equal_error_threshold`), so it is not meant for use.

    Args:
        folder: Folder to write to. It is created if necessary, and files with the same names are replaced.
        embeddings: Embeddings that were evaluated.
        protocol: Protocol of at least one of the evaluations.
        evaluations: Evaluations shown in the table, of any protocols.
        images: Test images, uint8 [height, width, 3]. Without them, the page has no gallery.
        command: Command line that reproduces the page.

    Raises:
        ValueError: If no evaluation of the protocol contains the score `bliss`, or if the number of images
            is not that of the test set.
        OSError: If the folder cannot be written.
    """
    own = next((e for e in evaluations if _is_of(e, protocol)), None)
    if own is None:
        raise ValueError(
            f"expected an evaluation of protocol {protocol.name!r} with the score bliss, got none"
        )
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

    # The studies are computed while the other figures are drawn, because both mostly use one core.
    with ThreadPoolExecutor() as pool:
        studies = _start_studies(pool, embeddings, protocol, settings)
        scored = score_split(embeddings, split, settings)
        explanation = explain_split(embeddings, split, scored.rows, settings)
        of_paper, of_split = _figures_of_split(save, embeddings, scored, explanation, settings)
        of_protocol = [
            save("splits", _splits_figure(embeddings, protocol, rows),
                 f"AUROC x 100 of each split of {protocol.name}, with 95 % intervals."),
            *(save(study.name, study.figure(), f"AUROC x 100 against {study.axis}.") for study in studies),
        ]  # fmt: skip
    cards = None
    if images is not None:
        cards = gallery(embeddings, explanation, scored.rows, scored.is_anomaly, images, each=CARDS)
    sections = [
        _Section(
            "Figures of the paper",
            f"The last two figures show one split ({split_name}): the one with the median AUROC of BLISS.",
            of_paper,
        ),
        _Section("One split", f"The same split ({split_name}).", of_split),
        _Section(f"All splits of {protocol.name}", "", of_protocol),
    ]
    page = render(
        "report.html.j2",
        title=f"BLISS on {_name(embeddings, 'dataset')}",
        summary=f"Model: {_name(embeddings, 'model')}. Images: {len(embeddings.train_labels):,} for "
        f"training and {len(embeddings.test_labels):,} for testing, of {embeddings.num_classes} classes. "
        f"Dictionary: {len(embeddings.dictionary):,} texts.",
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
    """Returns the paper's four figures, and the ROC curves and histogram of the split."""
    bliss = scored.scores["bliss"]
    threshold = figures.equal_error_threshold(bliss, scored.is_anomaly)
    dictionary = embeddings.dictionary_embeddings.mean(axis=0)
    mean_similarity = embeddings.test_embeddings[scored.rows] @ dictionary
    compared = {n: s for n, s in scored.scores.items() if n in ("bliss", "max_cosine")}
    of_paper = [
        save("tsne", figures.tsne_figure(embeddings),
             "t-SNE of the embeddings: images and texts form separate clusters."),
        save("label-similarity", figures.label_similarity_figure(embeddings),
             "Mean cosine of each label to the dictionary and to the images of its class."),
        save("error-quantiles",
             figures.error_quantiles_figure(compared, scored.is_anomaly, mean_similarity),
             "Error rates by the images' mean cosine to the dictionary."),
        save("parts",
             figures.parts_scatter_figure(
                 np.asarray(explanation.internal), np.asarray(explanation.external),
                 scored.is_anomaly, weight=settings.weight, threshold=threshold),
             "Internal class score against external text score, for the nearest normal class."),
    ]  # fmt: skip
    of_split = [
        save("roc", figures.roc_figure(scored.scores, scored.is_anomaly),
             "ROC curves and AUROC x 100 of all scores."),
        save("histogram", figures.histogram_figure(bliss, scored.is_anomaly, threshold),
             "BLISS scores of normal images and of anomalies, and the threshold with equal error rates."),
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
    """Returns the settings of an evaluation with the scores of the library, from its provenance."""
    made = evaluation.provenance["settings"]
    measured = {row.score for row in evaluation.rows} - {*made["own_scores"]}
    return Settings(
        scores=tuple(name for name in score_table() if name in measured),
        k=made["k"],
        weight=made["lambda"],
        shots=made["shots"],
        seed=made["seed"],
    )


class _Pending(NamedTuple):
    """A study that is being computed, and the description of its figure."""

    name: str
    axis: str
    """Description of the values, for the caption."""
    chosen: float | None
    """Value to mark in the figure."""
    study: Callable[[], Study]
    """Function that waits for the study and returns it."""

    def figure(self) -> Figure:
        return figures.study_figure(self.study(), chosen=self.chosen)


def _start_studies(
    pool: Executor, embeddings: EmbeddingSet, protocol: Protocol, settings: Settings
) -> tuple[_Pending, ...]:
    """Starts the studies of lambda, k, dictionary size and shots."""
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
        _Pending("lambda", "lambda, the weight of the external text score", weight,
                 lambda: grid.result()[k]),
        _Pending("k", "k, the number of dictionary texts per image", float(k),
                 lambda: at_weight(grid.result(), weight)),
        _Pending("dictionary", "the size of random subsets of the dictionary", None,
                 pool.submit(dictionary_study, embeddings, some, repeats=3, k=k, weight=weight).result),
        _Pending("shots", "the number of normal images per class", None,
                 pool.submit(few_shot_study, embeddings, some, shots, draws=5, k=k, weight=weight).result),
    )  # fmt: skip


def _table(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Returns the columns and rows of the table of AUROCs, with a mark at the best of each column."""
    protocols, by_name = summary_rows(evaluations)
    best = np.max(list(by_name.values()), axis=0)
    rows = [
        (name, [(f"{100 * v:.1f}", v == top) for v, top in zip(values, best, strict=True)])
        for name, values in by_name.items()
    ]
    return {"protocols": [*protocols, "mean"], "rows": rows}


def _name(embeddings: EmbeddingSet, what: str) -> str:
    recorded = embeddings.provenance.get(what)
    return str(recorded.get("name", "unknown")) if isinstance(recorded, dict) else "unknown"


def _split_name(split: Split, class_names: Sequence[str]) -> str:
    """Names a split by its normal classes, or by its anomalous classes if these are fewer."""
    few, which = min((split.normal, "normal"), (split.anomalous, "anomalous"), key=_length)
    shown = ", ".join(class_names[c] for c in few[:4])
    return f"{which}: {shown}{f' and {len(few) - 4} more' if len(few) > 4 else ''}"


def _length(side: tuple[Sequence[int], str]) -> int:
    return len(side[0])
