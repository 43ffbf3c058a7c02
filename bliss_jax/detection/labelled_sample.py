"""A labelled sample of image files: normal images and anomalies, embedded for `Detector.compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.datasets import FileImages, FileReader, ImageDataset
from bliss_jax.detection.detector import Detector
from bliss_jax.detection.encoding import embed_dataset_images
from bliss_jax.embedding import Track


class LabelledSample(NamedTuple):
    """Embeddings of the files that can be read."""

    embeddings: Float[np.ndarray, "images dim"]
    is_anomaly: Bool[np.ndarray, " images"]
    unreadable: tuple[str, ...]
    """Files that cannot be read, each with the reason."""


def embed_sample(
    detector: Detector,
    normal: Sequence[str],
    anomalous: Sequence[str],
    *,
    reader: FileReader,
    track: Track,
    cache: Path | None = None,
) -> LabelledSample:
    """Embeds files and folders of normal images and of anomalies with the encoder of a detector.

    Args:
        detector: Detector with an encoder.
        normal: Files and folders of normal images.
        anomalous: Files and folders of anomalies.
        reader: How files are found and read.
        track: Opens a progress display for each of the two kinds.
        cache: Folder for finished embeddings, as in `embed_images`.

    Raises:
        ValueError: The detector has no encoder, no file of a kind can be read, or a file is of both kinds.
    """
    if detector.model is None:
        raise ValueError(
            "this detector has no encoder for files: add one with with_model(load_model(...))"
        )
    found = [list(reader.find(paths)) for paths in (normal, anomalous)]
    normal_files = {str(Path(file.path).resolve()) for file in found[0]}
    both = [file.path for file in found[1] if str(Path(file.path).resolve()) in normal_files]
    if both:
        raise ValueError(
            f"expected different files as normal images and as anomalies, got {both[0]} as both"
            + (f", and {len(both) - 1} more files" if len(both) > 1 else "")
        )
    parts, unreadable = [], []
    for kind, files in zip(("normal images", "anomalies"), found, strict=True):
        unreadable += [f"{file.path!r}: {file.problem}" for file in files if file.problem]
        names = [file.path for file in files if not file.problem]
        if not names:
            raise ValueError(f"{kind}: expected image files, found none")
        labels = np.zeros(len(names), np.int32)
        images = FileImages(Path(), names, reader)
        with track(kind, len(names)) as progress:
            embedded = embed_dataset_images(
                detector.model,
                ImageDataset(kind, images, labels, ("image",), f"{len(names)} files"),
                preprocess=detector.preprocess,
                images_per_device=detector.images_per_device,
                cache=cache,
                progress=progress,
            )
        unreadable += embedded.unreadable
        parts.append(embedded.embeddings)
        if not len(embedded.embeddings):
            raise ValueError(
                f"none of the {len(names)} {kind} can be read:\n" + "\n".join(unreadable[:10])
            )
    is_anomaly = np.repeat([False, True], [len(part) for part in parts])
    return LabelledSample(np.concatenate(parts), is_anomaly, tuple(unreadable))
