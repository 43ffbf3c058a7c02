"""Conversion of a detector's arguments: images or embeddings, with or without labels, and dictionaries."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bliss_jax import _checks
from bliss_jax.datasets import ImageDataset, load_dataset
from bliss_jax.embedding import Progress, embed_images
from bliss_jax.models import Model
from bliss_jax.text import PROMPT, fill_prompt, load_dictionary

Images = ImageDataset | Sequence[np.ndarray] | np.ndarray | jax.Array
"""Images as uint8 [n, h, w, 3], as a list of uint8 [h, w, 3] or as a data set; or embeddings [n, dim]."""

Source = Images | str | os.PathLike[str]
"""Labelled images: also the name of a data set, or a folder with one subfolder per class."""

Phrases = str | os.PathLike[str] | Sequence[str]
"""A dictionary: its name, a text file, or the phrases themselves."""


class Labelled(NamedTuple):
    """Images (an `ImageDataset`) or embeddings with one label each."""

    images: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


def labelled(
    images: Source, labels: np.ndarray | Sequence[int] | None, class_names: Sequence[str] | None
) -> Labelled:
    """Returns any kind of `Source` with one label per image."""
    if isinstance(images, str | os.PathLike):
        images = load_dataset(images if isinstance(images, str) else Path(images), "train")
    if isinstance(images, ImageDataset):
        if labels is not None or class_names is not None:
            raise ValueError(
                "labels and class_names: expected None, because a data set has its own labels"
            )
        return Labelled(
            images, images.labels, images.class_names, f"{images.name}, {images.source}"
        )
    if class_names is None:
        raise ValueError(
            "class_names: expected the names of the classes, because the images are in memory"
        )
    names = tuple(class_names) if not isinstance(class_names, str) else class_names
    fill_prompt(PROMPT, names)  # raises for names that are empty or repeated
    if labels is None:
        if len(names) != 1:
            raise ValueError(
                f"labels: expected one per image, because there are {len(names)} classes"
            )
        labels = np.zeros(len(images), np.int32)
    checked = _checks.class_labels("labels", np.asarray(labels), len(images), len(names))
    what = "embeddings" if are_embeddings(images) else "images"
    known = np.asarray(checked, np.int32)
    if are_embeddings(images):
        return Labelled(images, known, tuple(names), f"{len(images)} {what} in memory")
    dataset = ImageDataset("images", _in_memory(images), known, tuple(names), f"{what} in memory")
    return Labelled(dataset, known, tuple(names), f"{len(images)} {what} in memory")


def unlabelled(images: Any) -> ImageDataset:
    """Returns images of any kind as a data set with a single class."""
    if isinstance(images, ImageDataset):
        return images
    labels = np.zeros(len(images), np.int32)
    return ImageDataset("images", _in_memory(images), labels, ("image",), "images in memory")


def _in_memory(images: Any) -> Any:
    """Returns images in a form that `ImageDataset` accepts and checks."""
    return np.asarray(images) if isinstance(images, jax.Array) else images


def are_embeddings(images: Any) -> bool:
    """Returns whether the argument is a floating array, and therefore not uint8 images."""
    dtype = getattr(images, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def float32(name: str, embeddings: Any) -> np.ndarray:
    """Returns checked embeddings as float32. Rounding float64 is harmless for rows of unit norm."""
    array = np.asarray(embeddings)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return np.asarray(_checks.embeddings_as_float(name, array), np.float32)


def embed(
    model: Model,
    images: Any,
    preprocess: str | None,
    batch_size: int,
    skip_unreadable: bool,
    cache: Path | None,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns embeddings, their positions among the images, and the reasons of unreadable images."""
    if are_embeddings(images):
        return float32("images", images), np.arange(len(images)), ()
    embedded = embed_images(
        model,
        images,
        preprocess=preprocess,
        batch_size=batch_size,
        cache=cache,
        progress=progress,
    )
    if embedded.unreadable and not skip_unreadable:
        raise ValueError(
            f"{len(embedded.unreadable)} images cannot be read:\n" + "\n".join(embedded.unreadable)
        )
    return embedded.embeddings, embedded.rows, embedded.unreadable


def phrases_of(dictionary: Phrases) -> tuple[tuple[str, ...], str]:
    """Returns the phrases of a dictionary and its name for the provenance."""
    if isinstance(dictionary, str | os.PathLike):
        return load_dictionary(dictionary), os.fspath(dictionary)
    return tuple(dictionary), "custom"


def prompts(prompt: str, phrases: Sequence[str]) -> tuple[str, ...]:
    """Returns the prompt of each phrase; phrases may repeat."""
    return fill_prompt(prompt, phrases, allow_repeats=True)


def hold_out(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """Returns a mask of held-out images: a random share of all, but never all images of a class."""
    if not 0 <= share < 1:
        raise ValueError(f"calibration: expected a share of at least 0 and below 1, got {share}")
    drawn = np.random.default_rng(seed).permutation(len(labels))[: int(share * len(labels))]
    held_out = np.zeros(len(labels), bool)
    held_out[drawn] = True
    fitted = np.bincount(labels[~held_out], minlength=classes)
    return held_out & (fitted[labels] > 0)
