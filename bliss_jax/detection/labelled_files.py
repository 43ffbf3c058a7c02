"""Images that lie in one folder, and what they show: a label said for all, or the likeliest of several.

label(x) = argmax over labels of s(x, t)       t: the label's prompt; zero-shot classification with CLIP
(Radford et al. 2021)
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
    """The files below a folder as a data set, each with the label of the largest cosine.

    Args:
        model: The encoder; used where there are several labels.
        folder: Walked through as `find_files` does.
        labels: Class names.
        prompt: Template with `{label}`.
        track: Opens a progress display.
        preprocess: As `embed_images`.
        batch_size: As `embed_images`.
        cache: As `embed_images`.

    Returns:
        The data set, whose source says how its labels came about, and what was left out of it with reasons.

    Raises:
        ValueError: no files, or labels that are empty or repeated.
    """
    prompts = fill_prompt(prompt, labels)
    root = folder.resolve()
    found = list(find_files([root]))
    problems = tuple(f"{file.path}: {file.problem}" for file in found if file.problem)
    names = [str(Path(file.path).relative_to(root)) for file in found if not file.problem]
    if not names:
        raise ValueError(f"{folder}: there are no files in it")
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
