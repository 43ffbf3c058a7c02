"""Splits of a protocol as masks of classes, and the training images that each evaluation is fitted on."""

import numpy as np
from jaxtyping import Bool, Int

from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet


def class_masks(
    protocol: Protocol, embeddings: EmbeddingSet
) -> tuple[Bool[np.ndarray, "splits classes"], Bool[np.ndarray, "splits classes"]]:
    """The normal and the anomalous classes of each split.

    Raises:
        ValueError: a class that the embeddings do not have, or a side without test images.
    """
    classes = np.arange(embeddings.num_classes)
    largest = max(max(split.normal + split.anomalous) for split in protocol.splits)
    if largest >= len(classes):
        raise ValueError(
            f"protocol {protocol.name!r} names class {largest}, but the embeddings have "
            f"{len(classes)} classes"
        )
    normal = np.stack([np.isin(classes, split.normal) for split in protocol.splits])
    anomalous = np.stack([np.isin(classes, split.anomalous) for split in protocol.splits])
    in_test = np.bincount(embeddings.test_labels, minlength=len(classes)) > 0
    for side, mask in (("normal", normal), ("anomalous", anomalous)):
        if not (mask & in_test).any(axis=1).all():
            split = int(np.argmin((mask & in_test).any(axis=1)))
            raise ValueError(
                f"protocol {protocol.name!r}, split {split}: no {side} image in the test set"
            )
    return normal, anomalous


def training_rows(
    embeddings: EmbeddingSet,
    ever_normal: Bool[np.ndarray, " classes"],
    *,
    shots: int | None,
    draws: int,
    seed: int,
) -> Int[np.ndarray, "draws chosen"]:
    """Rows of the training set to fit on: all of the classes in use, or `shots` of each per draw.

    With shots, the rows of one class follow each other, classes ascending.

    Raises:
        ValueError: a class with fewer training images.
    """
    labels, wanted = embeddings.train_labels, shots or 1
    of_class = [np.flatnonzero(labels == c) for c in np.flatnonzero(ever_normal)]
    for c, rows in zip(np.flatnonzero(ever_normal), of_class, strict=True):
        if len(rows) < wanted:
            raise ValueError(
                f"normal class {c} ({embeddings.class_names[c]}): expected at least {wanted} "
                f"training images, got {len(rows)}"
            )
    if shots is None:
        return np.sort(np.concatenate(of_class)).astype(np.int32)[None, :]
    rng = np.random.default_rng(seed)
    drawn = [
        np.concatenate([rng.choice(rows, shots, replace=False) for rows in of_class])
        for _ in range(draws)
    ]
    return np.stack(drawn).astype(np.int32)
