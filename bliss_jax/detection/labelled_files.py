"""Labels for the images of one folder: one given label, or the most likely of several.

    label(x) = argmax over labels of s(x, t)        t: prompt of the label

This is zero-shot classification with CLIP (Radford et al. 2021).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bliss_jax.datasets import ImageDataset
from bliss_jax.detection.encoding import embed_dataset_images
from bliss_jax.embedding import AnyEncoder, Track, embed_prompts
from bliss_jax.text import Prompt


def label_images(
    model: AnyEncoder,
    dataset: ImageDataset,
    *,
    prompt: Prompt,
    track: Track,
    images_per_device: int,
    preprocess: str | None = None,
    cache: Path | None = None,
) -> ImageDataset:
    """Gives each image of a data set the class name of the largest cosine.

    Args:
        model: The encoder.
        dataset: The images; their labels are ignored.
        prompt: Template with `{label}`, or several, as for `embed_prompts`.
        track: Opens a progress display.
        images_per_device: Images per device and call of the encoder.
        preprocess: Name of the preprocessing statistics, as in `embed_images`.
        cache: Folder for finished embeddings, as in `embed_images`.

    Returns:
        The data set with labels and without unreadable images, which are among its `problems`.
    """
    labels = dataset.class_names
    if len(labels) == 1:
        return dataset
    names = embed_prompts(model, prompt, labels)
    with track("images, for their labels", len(dataset)) as advance:
        embedded = embed_dataset_images(
            model,
            dataset,
            preprocess=preprocess,
            images_per_device=images_per_device,
            cache=cache,
            progress=advance,
        )
    nearest = np.argmax(embedded.embeddings @ names.T, axis=1)
    return replace(
        dataset.subset(embedded.rows),
        labels=nearest.astype(np.int32),
        source=f"{dataset.source}, labels by the largest cosine",
        problems=(*dataset.problems, *embedded.unreadable),
    )
