"""Data set of an embedding set, from its provenance or from its class names."""

from typing import NamedTuple

from bliss_jax.datasets import class_positions, dataset_names, recognise_dataset
from bliss_jax.embedding import EmbeddingSet


class Recognition(NamedTuple):
    """Data set of an embedding set."""

    name: str | None
    """Name of the data set, or None if neither the provenance nor the class names tell it."""
    by_class_names: bool
    """Whether the name is known from the class names and not from the provenance."""


def dataset_of(embeddings: EmbeddingSet) -> Recognition:
    """Returns the data set of an embedding set.

    A named data set in the provenance comes first, then a named data set whose class names are those of the
    embeddings (in any order), then another name in the provenance, e.g. that of a folder.

    Args:
        embeddings: Embedding set, e.g. read from a file of unknown origin.
    """
    source = embeddings.provenance.get("dataset")
    recorded = source.get("name") if isinstance(source, dict) else None
    recorded = recorded if isinstance(recorded, str) else None
    if recorded not in dataset_names():
        recognised = recognise_dataset(embeddings.class_names)
        if recognised is not None:
            return Recognition(recognised, True)
    return Recognition(recorded, False)


def has_own_order(embeddings: EmbeddingSet, dataset: str) -> bool:
    """Returns whether the classes are those of a data set in another order than in the data set."""
    positions = class_positions(dataset, embeddings.class_names)
    return positions is not None and positions != tuple(range(len(positions)))
