"""The report of scored files: one HTML page with the most anomalous images and their explanations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bliss_jax.datasets import Decoding, UnreadableImageError, decode_image
from bliss_jax.detection import Control, Detector, ScoredFile, note_on_parts
from bliss_jax.report import figures
from bliss_jax.report.drawing import save_figure
from bliss_jax.report.gallery import thumbnail, thumbnail_size
from bliss_jax.report.heat_maps import heat_map_uri, write_map
from bliss_jax.report.templating import render
from bliss_jax.scores import score_table
from bliss_jax.storage import replacing


def write_score_report(
    folder: Path,
    detector: Detector,
    most_anomalous: Sequence[ScoredFile],
    *,
    scores: Sequence[float],
    unreadable: Sequence[ScoredFile] = (),
    errors: int = 0,
    flagged: int = 0,
    alpha: float | None = None,
    control: Control = "false-alarms",
    command: str | None = None,
    decoding: Decoding | None = None,
    maps: bool = False,
) -> Path:
    """Writes the page and returns its path.

    Args:
        folder: Folder to write to. It is created if necessary, and files with the same names are replaced.
        detector: Detector that computed the scores.
        most_anomalous: Rows of the images to show, with their nearest words. The images are read again
            from their files.
        scores: Scores of all images, for the histogram.
        unreadable: Rows of the files that could not be scored, or the first of them.
        errors: Total number of files that could not be scored.
        flagged: Number of flagged images.
        alpha: Rate at which images were flagged. None if no images were flagged.
        control: Rate that alpha bounds: that of false alarms or that of false discoveries.
        command: Command line that reproduces the page.
        decoding: Background and bit depth with which the images are read; by default those of the fit.
        maps: Whether to show maps of the score, its parts and the words over the images. The map of each score is also
            written to `maps/`, as PNG over the image and as an array in the image's pixels (`.npy`).

    Raises:
        OSError: If the folder cannot be written.
        ValueError: Maps are requested and the detector has no `Model`, or a score that JAX cannot differentiate.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    fitted = bool(np.any(detector.moments.count))
    record = score_table().get(detector.score_name)
    label = "BLISS" if detector.score_name == "bliss" else detector.score_name
    held_out = detector.calibration_scores if len(detector.calibration_labels) else None
    threshold = None
    if alpha is not None and control == "false-alarms":
        threshold = detector.threshold(alpha)
    figure = None
    if scores:
        drawn = figures.score_histogram_figure(scores, held_out, threshold, score_label=label)
        figure = save_figure(drawn, folder / "figures", "histogram")
    errors = max(errors, len(unreadable))
    counts = [
        ("images scored", f"{len(scores):,}"),
        ("files that could not be scored", f"{errors:,}"),
    ]
    if alpha is not None:
        counts.append((f"flagged at alpha {alpha:g}", f"{flagged:,}"))
    model = detector.provenance.get("model") or {}
    page = render(
        "scores.html.j2",
        title=f"Anomalies found by {label}",
        score_label=label,
        source=record.source if record is not None else "a score of one's own",
        note=note_on_parts(detector.score_name, fitted=fitted),
        unit="z" if fitted else "cosine",
        part_format="%+.2f" if fitted else "%+.3f",
        word_format="%+.1f" if fitted else "%+.3f",
        summary=f"Normal classes: {_listed(detector.class_names)}. Normal images: "
        f"{int(detector.moments.count.sum()):,} fitted, {len(detector.calibration_labels):,} held out for "
        f"calibration. Model: {model.get('name', 'unknown')}. "
        f"Dictionary: {len(detector.dictionary):,} texts.",
        counts=counts,
        promise=_promise(alpha, control),
        figure=figure,
        calibrated=held_out is not None,
        weight=detector.weight,
        k=detector.k,
        cards=[
            _card(
                row,
                detector,
                decoding or detector.decoding,
                folder / "maps" / f"{place:03d}" if maps else None,
            )
            for place, row in enumerate(most_anomalous, 1)
        ],
        maps=maps,
        unreadable=[(_shown(row.path), _shown(row.error or "")) for row in unreadable],
        more_unreadable=errors - len(unreadable),
        command=None if command is None else _shown(command),
        provenance=json.dumps(detector.describe(), indent=1),
    )
    with replacing(folder / "index.html") as file:
        file.write(page.encode("utf-8"))
    return folder / "index.html"


def _card(
    row: ScoredFile, detector: Detector, decoding: Decoding, maps: Path | None
) -> dict[str, Any]:
    """Returns the content of an image's card. With `maps` its maps are computed and written to files of this name."""
    shown: dict[str, Any] = {"image": None, "problem": None, "maps": []}
    try:
        image = decode_image(Path(row.path), row.path, decoding)
        shown["image"] = thumbnail(image)
        if maps is not None:
            shown["maps"] = _maps(row, detector, image, maps)
    except UnreadableImageError as error:  # The file changed after it was scored.
        shown["problem"] = _shown(error.reason)
    return {
        **row._asdict(),
        "shown_score": f"{row.score:.2f}" if detector.score_name == "bliss" else f"{row.score:.4g}",
        "path": _shown(row.path),
        "words": row.words or (),
        "kind": "anomaly" if row.anomaly else "scored",
        **shown,
    }


def _maps(
    row: ScoredFile, detector: Detector, image: UInt8[np.ndarray, "h w 3"], file: Path
) -> list[str]:
    """Returns heat maps of the score, its parts and the words as data URIs, and writes that of the score."""
    [why] = detector.explain([image], words=max(1, len(row.words or ())), maps=True)
    assert why.maps is not None  # noqa: S101 (requested)
    file.parent.mkdir(exist_ok=True)
    write_map(file, image, why.maps.score)
    return [heat_map_uri(values) for values in why.maps.at_size(*thumbnail_size(image))]


def _promise(alpha: float | None, control: Control) -> str | None:
    if alpha is None:
        return None
    if control == "fdr":
        return (
            f"On average, at most {100 * alpha:.3g} % of the flagged images are normal (Benjamini-Hochberg "
            "procedure on conformal p-values). This holds if the normal images scored here and the images "
            "held out for calibration come from the same distribution."
        )
    return (
        f"On average, at most {100 * alpha:.3g} % of normal images are flagged. This holds if the normal "
        "images scored here and the images held out for calibration come from the same distribution."
    )


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:6])
    return f"{few} and {len(names) - 6} more classes" if len(names) > 6 else few


def _shown(text: str) -> str:
    """Returns the text with bytes that are not valid UTF-8 as escape sequences."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
