"""Embeds the images and texts that an evaluation needs."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from bliss_jax.datasets import ImageDataset, decoding_of
from bliss_jax.embedding.embedding_set import EmbeddingSet
from bliss_jax.embedding.encoder import AnyEncoder, encoder_facts, preprocessing_facts
from bliss_jax.embedding.images import BATCH_SIZE, embed_images
from bliss_jax.embedding.progress import Track
from bliss_jax.embedding.texts import embed_prompts, embed_texts
from bliss_jax.storage import package_versions
from bliss_jax.text import (
    CLIP_AD_ANOMALY,
    MCM_PROMPT,
    PROMPT,
    Prompt,
    dictionary_hash,
    fill_prompt,
    find_overlap,
    prompt_as_json,
)
from bliss_jax.text import exclude_labels as without_labels


def embed_dataset(
    model: AnyEncoder,
    train: ImageDataset,
    test: ImageDataset,
    dictionary: Sequence[str],
    *,
    dictionary_name: str = "custom",
    exclude_labels: bool = False,
    prompt: Prompt = PROMPT,
    preprocess: str | None = None,
    batch_size: int = BATCH_SIZE,
    train_classes: Collection[int] | None = None,
    test_classes: Collection[int] | None = None,
    skip_unreadable: bool = False,
    cache: Path | None = None,
    track: Track = lambda what, total: nullcontext(lambda done: None),
) -> EmbeddingSet:
    """Embeds the images and texts that an evaluation needs.

    These are the training and test images, the labels, the dictionary, and the texts of the baselines MCM
    and CLIP-AD.

    Args:
        model: A `Model` or another `Encoder`.
        train: Labelled training images; they must include every class that is normal in some split.
        test: Labelled test images, with the same class names.
        dictionary: Phrases of the dictionary.
        dictionary_name: Name of the dictionary, for the provenance.
        exclude_labels: Whether to remove phrases that equal a label from the dictionary.
        prompt: Template with `{label}`, for labels and dictionary phrases; or several, as for `embed_prompts`.
        preprocess: Preprocessing, as for `Model.encode_images`.
        batch_size: Images per batch, as for `embed_images`.
        train_classes: Ids of the classes whose training images are embedded; all by default.
        test_classes: Ids of the classes whose test images are embedded; all by default.
        skip_unreadable: Whether to skip images that cannot be read and list them in the provenance. By
            default they are an error that names all of them.
        cache: Folder in which finished embeddings of images and dictionary are stored, as for
            `embed_images`.
        track: Opens a progress display for each stage.

    Returns:
        The embeddings. Their provenance records model, preprocessing, prompt, dictionary, data set and
        versions.

    Raises:
        ValueError: The class names of both sets differ, the preprocessing is unknown, a prompt is too long
            for the model, images cannot be read (the message gives the name and reason of each), or
            `embed_images` raises it.
        OSError: A shard cannot be written.
    """
    if train.class_names != test.class_names:
        raise ValueError(
            f"training and test set must have the same class names: {train.name}, {test.name}"
        )
    labels_in_it = sorted(find_overlap(dictionary, train.class_names))
    if exclude_labels:
        dictionary = without_labels(dictionary, train.class_names)
    # Texts come first because they are fast, and a prompt that is too long then fails before the images.
    names = train.class_names
    mcm, something = fill_prompt(MCM_PROMPT, names), (CLIP_AD_ANOMALY,)
    texts = 2 * len(names) + len(dictionary) + 1
    with track("texts", texts) as progress:
        arrays = {
            "label_embeddings": embed_prompts(model, prompt, names, progress=progress),
            "dictionary_embeddings": embed_prompts(
                model, prompt, dictionary, allow_repeats=True, cache=cache, progress=progress
            ),
            "mcm_label_embeddings": embed_texts(model, mcm, progress=progress),
            "something_embedding": embed_texts(model, something, progress=progress)[0],
        }

    unreadable: list[str] = []
    for side, dataset, classes in (
        ("train", train, train_classes),
        ("test", test, test_classes),
    ):
        if classes is not None:
            dataset = dataset.subset(np.flatnonzero(np.isin(dataset.labels, list(classes))))
        with track(f"{side} images", len(dataset)) as progress:
            embedded = embed_images(
                model,
                dataset,
                preprocess=preprocess,
                batch_size=batch_size,
                cache=cache,
                progress=progress,
            )
        arrays[f"{side}_embeddings"] = embedded.embeddings
        arrays[f"{side}_labels"] = dataset.labels[embedded.rows]
        # Both sets may be of one folder, with the same problems.
        listed = (*dataset.problems, *embedded.unreadable)
        unreadable += [name for name in listed if name not in unreadable]
        if unreadable and not skip_unreadable:
            raise ValueError(
                f"{len(unreadable)} {side} images cannot be read:\n" + "\n".join(unreadable)
            )
    decoding = decoding_of(train.images)
    return EmbeddingSet(
        **arrays,
        class_names=train.class_names,
        dictionary=tuple(dictionary),
        provenance={
            "model": encoder_facts(model),
            "preprocessing": preprocessing_facts(model, preprocess),
            "prompt": prompt_as_json(prompt),
            "dictionary": {
                "name": dictionary_name,
                "texts": len(dictionary),
                "sha256": dictionary_hash(dictionary),
                "labels_found": labels_in_it,
                "labels_excluded": exclude_labels,
            },
            "dataset": {
                "name": train.name,
                "train": train.source,
                "test": test.source,
                "unreadable": unreadable,
                **({} if decoding is None else {"decoding": decoding.describe()}),
            },
            "versions": package_versions(),
        },
    )
