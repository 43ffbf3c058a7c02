"""Class masks of a protocol's splits, and selection of the training images of an evaluation."""

import numpy as np
from jaxtyping import Bool, Int

from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet


def class_masks(
    protocol: Protocol, embeddings: EmbeddingSet
) -> tuple[Bool[np.ndarray, "splits classes"], Bool[np.ndarray, "splits classes"]]:
    """Returns masks of the normal and of the anomalous classes of each split.

    Raises:
        ValueError: If a split names a class that the embeddings do not have, or has no normal or no
            anomalous test images.
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
                f"protocol {protocol.name!r}, split {split}: expected at least one {side} image in "
                "the test set, got none"
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
    """Returns the rows of the training set to fit on, for each few-shot draw.

    Args:
        embeddings: Embeddings of a data set.
        ever_normal: Whether each class is normal in at least one split.
        shots: Images per class, drawn without replacement. None selects all images of these classes, in
            ascending order, and gives one draw.
        draws: Number of few-shot draws.
        seed: Seed of the draws.

    Returns:
        Positions in the training set. With `shots`, they are grouped by class, in ascending order of the
        class ids.

    Raises:
        ValueError: If a class has fewer than `shots` training images, or none.
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
