"""Images of a fit: their embeddings, their classes, and the reasons why they cannot be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.datasets import Decoding, ImageDataset, decoding_of
from bliss_jax.detection.changes import image_counts
from bliss_jax.detection.encoding import embed_dataset_images
from bliss_jax.detection.inputs import Labelled, are_embeddings, float32, unreadable_error
from bliss_jax.embedding import AnyEncoder, Track


def embed_labelled(
    model: AnyEncoder,
    of: Labelled,
    what: str,
    *,
    preprocess: str | None,
    images_per_device: int,
    skip_unreadable: bool,
    cache: Path | None,
    track: Track,
) -> tuple[Float[np.ndarray, "images dim"], Int[np.ndarray, " images"], list[str]]:
    """Returns embeddings of labelled images, the position of each in `of`, and the images that cannot be read.

    Args:
        model: The encoder.
        of: Images or embeddings.
        what: Name of the images in the progress display.
        preprocess: Name of the preprocessing statistics.
        images_per_device: Images per device and call of the encoder.
        skip_unreadable: Whether to continue without images that cannot be read.
        cache: Folder for finished embeddings.
        track: Opens a progress display.

    Raises:
        ValueError: Images cannot be read and `skip_unreadable` is false, or no image of a class can be read.
    """
    if not len(of.labels):
        return np.empty((0, model.embedding_dim), np.float32), np.arange(0), []
    if are_embeddings(of.images):
        return float32("images", of.images), np.arange(len(of.images)), []
    with track(what, len(of.labels)) as progress:
        embedded = embed_dataset_images(
            model,
            of.images,
            preprocess=preprocess,
            images_per_device=images_per_device,
            cache=cache,
            progress=progress,
        )
    unreadable = [*of.problems, *embedded.unreadable]
    if unreadable and not skip_unreadable:
        raise unreadable_error(unreadable)
    _check_lost_classes(of, embedded.rows, embedded.unreadable)
    return embedded.embeddings, embedded.rows, unreadable


def with_class_names(images: Labelled, class_names: tuple[str, ...]) -> Labelled:
    """Returns calibration images with labels as positions in the class names of the fit."""
    if images.class_names == class_names:
        return images
    used = sorted(set(images.labels.tolist()))
    unknown = [images.class_names[c] for c in used if images.class_names[c] not in class_names]
    if unknown:
        raise ValueError(
            f"calibration: expected images of the classes {', '.join(class_names)}, got images of "
            f"{', '.join(unknown)}"
        )
    position = {c: class_names.index(images.class_names[c]) for c in used}
    mapped = np.array([position[c] for c in images.labels.tolist()], np.int32)
    return images._replace(labels=mapped, class_names=class_names)


def decoding_of_fit(images: Any, default: Decoding) -> Decoding:
    """Returns the decoding of a data set's own reader, or the default for other images."""
    own = decoding_of(images.images) if isinstance(images, ImageDataset) else None
    return own or default


def _check_lost_classes(
    images: Labelled, rows: np.ndarray, unreadable: Sequence[str], listed: int = 10
) -> None:
    """Raises ValueError, with the reasons, if no image of a class can be read."""
    lost = np.setdiff1d(np.unique(images.labels), images.labels[rows])
    if not len(lost):
        return
    missing = np.setdiff1d(np.arange(len(images.labels)), rows)
    reasons = dict(zip(missing.tolist(), unreadable, strict=False))
    of_class = [reason for row, reason in reasons.items() if images.labels[row] == lost[0]]
    more = f"\n... and {len(of_class) - listed} more" if len(of_class) > listed else ""
    raise ValueError(
        f"none of the {len(of_class)} images of class {images.class_names[lost[0]]!r} can be read:\n"
        + "\n".join(of_class[:listed])
        + more
    )


def check_every_class(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises ValueError if a class has no images."""
    empty = [name for name, n in image_counts(labels, class_names).items() if not n]
    if empty:
        raise ValueError(f"expected images of every normal class, got none of {', '.join(empty)}")
