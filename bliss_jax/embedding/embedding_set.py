"""Everything an evaluation needs of a data set and a model: embeddings, labels, texts, provenance.

`EmbeddingSet` is what `embed.py` makes and `evaluation.py` scores, and it is one `.npz` file:

    train_embeddings [n, d]       train_labels [n] int      test_embeddings [q, d]   test_labels [q] int
    class_names [C]               label_embeddings [C, d]
    dictionary [M] str            dictionary_embeddings [M, d]
    mcm_label_embeddings [C, d]   something_embedding [d]   provenance, one JSON string

The embeddings are float32 of unit norm; rows that are not are normalised on reading. The third row holds
what MCM and CLIP-AD need beside the labels and may be missing. No array may hold pickled objects.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.storage import replacing

_REQUIRED = (
    "train_embeddings",
    "train_labels",
    "test_embeddings",
    "test_labels",
    "class_names",
    "label_embeddings",
    "dictionary",
    "dictionary_embeddings",
)
_OPTIONAL = ("mcm_label_embeddings", "something_embedding", "provenance")


@dataclass(frozen=True, eq=False)
class EmbeddingSet:
    """Embeddings of images, labels and dictionary, checked on construction.

    Raises:
        ValueError: shapes that do not fit each other, labels out of range, embeddings that are not
            finite float32 of unit norm; the field is named.
    """

    train_embeddings: Float[np.ndarray, "train dim"]
    """Of the official training set; moments are fitted on its images of the normal classes."""
    train_labels: Int[np.ndarray, " train"]
    test_embeddings: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    class_names: tuple[str, ...]
    label_embeddings: Float[np.ndarray, "classes dim"]
    """Of each class's prompt."""
    dictionary: tuple[str, ...]
    dictionary_embeddings: Float[np.ndarray, "texts dim"]
    """Of each phrase's prompt."""
    mcm_label_embeddings: Float[np.ndarray, "classes dim"] | None = None
    """Of `a photo of a {label}`, MCM's prompt."""
    something_embedding: Float[np.ndarray, " dim"] | None = None
    """Of `a photo of something`, CLIP-AD's anomaly."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the embeddings were made with; JSON values."""

    def __post_init__(self):
        dim = np.shape(self.train_embeddings)[-1:]
        classes = len(self.class_names)
        for name, rows in [
            ("train_embeddings", (len(self.train_labels),)),
            ("test_embeddings", (len(self.test_labels),)),
            ("label_embeddings", (classes,)),
            ("dictionary_embeddings", (len(self.dictionary),)),
            ("mcm_label_embeddings", (classes,)),
            ("something_embedding", ()),
        ]:
            array: np.ndarray = getattr(self, name)
            if array is None and name in _OPTIONAL:
                continue
            if array.shape != rows + dim or array.dtype != np.float32:
                raise ValueError(
                    f"{name}: expected float32 {[*rows, *dim]}, got {array.dtype} {list(array.shape)}"
                )
            norms = np.linalg.norm(array.astype(np.float64), axis=-1)
            if not np.allclose(norms, 1, rtol=0, atol=1e-3):
                raise ValueError(f"{name}: expected rows of unit norm")
        for name in ("train_labels", "test_labels"):
            labels = getattr(self, name)
            if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1 or not len(labels):
                raise ValueError(
                    f"{name}: expected integers [n], got {labels.dtype} {labels.shape}"
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise ValueError(
                    f"{name}: expected positions in the {classes} class names, "
                    f"got {labels.min()}..{labels.max()}"
                )

    @property
    def num_classes(self) -> int:
        """C, the number of classes, normal and anomalous."""
        return len(self.class_names)


def save_embeddings(embeddings: EmbeddingSet, path: str | Path) -> None:
    """Writes the `.npz` file described above, whole or not at all.

    Raises:
        ValueError, OSError: the file cannot be written; an earlier file of that name is left as it was.
    """
    path = Path(path)
    arrays = {name: getattr(embeddings, name) for name in (*_REQUIRED, *_OPTIONAL[:-1])}
    arrays = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    arrays["provenance"] = np.asarray(json.dumps(dict(embeddings.provenance)))
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_embeddings(path: str | Path) -> EmbeddingSet:
    """Reads the `.npz` file described above.

    Embeddings in another floating type become float32, and rows that are not of unit norm are
    normalised; whether that happened is recorded under `"read"` in the provenance, with the SHA-256 of
    the file.

    Raises:
        ValueError: not a readable `.npz`, arrays that are missing, unknown, pickled, not finite or zero,
            or that do not fit each other; the file and the array are named.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    content = _read_arrays(path)
    missing = [name for name in _REQUIRED if name not in content]
    unknown = sorted(set(content) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        raise ValueError(
            f"{path.name}: missing arrays {missing}, unknown arrays {unknown}; "
            f"expected {list(_REQUIRED)} and perhaps {list(_OPTIONAL)}"
        )
    normalised = []
    for name in [name for name in content if name.endswith(("embeddings", "embedding"))]:
        array = content[name]
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(f"{path.name}: {name} must hold finite floating numbers")
        norms = np.linalg.norm(array.astype(np.float64), axis=-1, keepdims=True)
        if not norms.all():
            raise ValueError(f"{path.name}: {name} has a row of zeros")
        if not np.allclose(norms, 1, rtol=0, atol=1e-5):
            normalised.append(name)
            array = array / norms
        content[name] = array.astype(np.float32)
    try:
        provenance = json.loads(str(content.pop("provenance", "{}")))
        if not isinstance(provenance, dict):
            raise ValueError("provenance is not a JSON object")
        content["class_names"] = _texts(content, "class_names")
        content["dictionary"] = _texts(content, "dictionary")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        read = {"file": path.name, "sha256": digest, "normalised_on_reading": normalised}
        return EmbeddingSet(**content, provenance={**provenance, "read": read})
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read_arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # Damaged archives raise what zipfile, zlib, tokenize and NumPy come upon.
    except Exception as error:
        raise ValueError(f"{path.name}: not an .npz file of plain arrays ({error})") from error


def _texts(content: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    array = content[name]
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"{name}: expected strings [n], got {array.dtype} {list(array.shape)}")
    return tuple(array.tolist())
