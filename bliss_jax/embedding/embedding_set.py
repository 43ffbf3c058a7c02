"""Embedding sets: the embeddings, labels, texts and provenance that an evaluation needs.

`embed_dataset` creates an `EmbeddingSet`, and `bliss_jax.evaluation` scores it. Its file is one `.npz` file:

    train_embeddings [n, d]       train_labels [n] int      test_embeddings [q, d]   test_labels [q] int
    class_names [C]               label_embeddings [C, d]
    dictionary [M] str            dictionary_embeddings [M, d]
    mcm_label_embeddings [C, d]   something_embedding [d]   provenance, one JSON string

Embeddings are float32 of unit norm; other rows are normalised when the file is read. The arrays in the last
row are optional: `mcm_label_embeddings` and `something_embedding` are for the baselines MCM and CLIP-AD. No
array may contain pickled objects.
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


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingSet:
    """Embeddings of images, labels and dictionary, validated on construction.

    Raises:
        ValueError: Shapes do not match each other, labels are out of range, or embeddings are not finite
            float32 of unit norm; the message names the field.
    """

    train_embeddings: Float[np.ndarray, "train dim"]
    """Embeddings of the training images; moments are fitted on those of the normal classes."""
    train_labels: Int[np.ndarray, " train"]
    test_embeddings: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    class_names: tuple[str, ...]
    label_embeddings: Float[np.ndarray, "classes dim"]
    """Embedding of each class's prompt."""
    dictionary: tuple[str, ...]
    dictionary_embeddings: Float[np.ndarray, "texts dim"]
    """Embedding of each phrase's prompt."""
    mcm_label_embeddings: Float[np.ndarray, "classes dim"] | None = None
    """Embeddings of `a photo of a {label}`, the prompt of MCM."""
    something_embedding: Float[np.ndarray, " dim"] | None = None
    """Embedding of `a photo of something`, the anomaly prompt of CLIP-AD."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, preprocessing, prompt, dictionary, data set and versions, as JSON values."""

    def __repr__(self) -> str:
        model = (self.provenance.get("model") or {}).get("name", "unknown")
        return (
            f"EmbeddingSet({len(self.train_labels):,} training and {len(self.test_labels):,} test images, "
            f"{len(self.class_names)} classes, {len(self.dictionary):,} phrases, dim "
            f"{self.train_embeddings.shape[-1]}, model {model!r})"
        )

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
    """Writes an embedding set as an `.npz` file; an existing file is replaced atomically.

    Raises:
        ValueError, OSError: The file cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    arrays = {name: getattr(embeddings, name) for name in (*_REQUIRED, *_OPTIONAL[:-1])}
    arrays = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    arrays["provenance"] = np.asarray(json.dumps(dict(embeddings.provenance)))
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_embeddings(path: str | Path) -> EmbeddingSet:
    """Reads an embedding set from an `.npz` file.

    Embeddings of another floating-point type are converted to float32, and rows that do not have unit norm
    are normalised. The entry `"read"` of the provenance records the normalised arrays and the SHA-256 of
    the file.

    Raises:
        ValueError: The file is not a readable `.npz` file, or arrays are missing, unknown, pickled, not
            finite, zero or do not match each other; the message gives the file and the array.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    content = _read_arrays(path)
    missing = [name for name in _REQUIRED if name not in content]
    unknown = sorted(set(content) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        raise ValueError(
            f"{path.name}: missing arrays {missing}, unknown arrays {unknown}; "
            f"expected {list(_REQUIRED)} and optionally {list(_OPTIONAL)}"
        )
    normalised = []
    for name in [name for name in content if name.endswith(("embeddings", "embedding"))]:
        array = content[name]
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(f"{path.name}: {name} must contain finite floating-point numbers")
        norms = np.linalg.norm(array.astype(np.float64), axis=-1, keepdims=True)
        if not norms.all():
            raise ValueError(
                f"{path.name}: {name} contains a row of zeros, which cannot be normalised"
            )
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
    # Damaged archives raise errors of zipfile, zlib, tokenize and NumPy.
    except Exception as error:
        raise ValueError(f"{path.name}: not an .npz file of plain arrays ({error})") from error


def _texts(content: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    array = content[name]
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"{name}: expected strings [n], got {array.dtype} {list(array.shape)}")
    return tuple(array.tolist())
