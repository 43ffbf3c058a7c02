"""Labels for the images of one folder: one given label, or the most likely of several.

    label(x) = argmax over labels of s(x, t)        t: prompt of the label

This is zero-shot classification with CLIP (Radford et al. 2021).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bliss_jax.datasets import FileImages, ImageDataset
from bliss_jax.detection.scored_files import find_files
from bliss_jax.embedding import BATCH_SIZE, Track, embed_images
from bliss_jax.models import Model
from bliss_jax.text import fill_prompt


def label_files(
    model: Model,
    folder: Path,
    labels: tuple[str, ...],
    *,
    prompt: str,
    track: Track,
    preprocess: str | None = None,
    batch_size: int = BATCH_SIZE,
    cache: Path | None = None,
) -> tuple[ImageDataset, tuple[str, ...]]:
    """Returns the files below a folder as a data set, each with the label of the largest cosine.

    Args:
        model: Encoder, used if there are several labels.
        folder: Folder, searched as in `find_files`.
        labels: Class names.
        prompt: Template with `{label}`.
        track: Opens a progress display.
        preprocess: Name of the preprocessing statistics, as in `embed_images`.
        batch_size: Images per call of the encoder, as in `embed_images`.
        cache: Folder for finished embeddings, as in `embed_images`.

    Returns:
        The data set, whose source says how it was labelled, and the omitted files with their reasons.

    Raises:
        ValueError: The folder has no files, or labels are empty or repeated.
    """
    prompts = fill_prompt(prompt, labels)
    root = folder.resolve()
    found = list(find_files([root]))
    problems = tuple(f"{file.path}: {file.problem}" for file in found if file.problem)
    names = [str(Path(file.path).relative_to(root)) for file in found if not file.problem]
    if not names:
        raise ValueError(f"{folder}: expected image files, found none")
    dataset = ImageDataset(
        root.name,
        FileImages(root, names),
        np.zeros(len(names), np.int32),
        labels,
        f"folder ({len(names)} files)",
    )
    if len(labels) == 1:
        return dataset, problems
    with track("images, for their labels", len(names)) as advance:
        embedded = embed_images(
            model,
            dataset,
            preprocess=preprocess,
            batch_size=batch_size,
            cache=cache,
            progress=advance,
        )
    nearest = np.argmax(embedded.embeddings @ np.asarray(model.encode_texts(prompts)).T, axis=1)
    source = f"{dataset.source}, labels by the largest cosine"
    labelled = replace(
        dataset.subset(embedded.rows), labels=nearest.astype(np.int32), source=source
    )
    return labelled, (*problems, *embedded.unreadable)
