"""A detector as one file: safetensors, sealed (`sealed.py`), nothing in it that could run.

    count int32 [C]                  mean float32 [C, d]             cov float32 [C, d, d]
    label_embeddings [C, d]          dictionary_embeddings [M, d]
    calibration_embeddings [m, d]    calibration_labels int32 [m]

The description, JSON in the header's entry "bliss_jax.detector", holds `format` (a number), `class_names`,
`dictionary`, `k`, `weight`, `shrinkage`, `prompt`, `preprocess` and `provenance`.

The encoder is not in it: the provenance names it, with the SHA-256 of its weights, and `Detector.load` checks
that. A file of every format ever released is kept in the tests and stays readable; a newer one than this
library knows is refused by its number.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bliss_jax.detection.state import DetectorState
from bliss_jax.scores import ClassMoments
from bliss_jax.storage import seal, unseal

KIND = "bliss_jax.detector"
FORMAT = 1
_ARRAYS = (
    "label_embeddings",
    "dictionary_embeddings",
    "calibration_embeddings",
    "calibration_labels",
)
_MOMENTS = {"count": np.int32, "mean": np.float32, "cov": np.float32}
_DESCRIBED = (
    "class_names",
    "dictionary",
    "k",
    "weight",
    "shrinkage",
    "prompt",
    "preprocess",
    "provenance",
)


def encode_detector(state: DetectorState) -> bytes:
    """The content of a detector's file; the same bytes for the same detector."""
    arrays = {name: np.asarray(getattr(state, name)) for name in _ARRAYS}
    arrays |= {name: np.asarray(getattr(state.moments, name)) for name in _MOMENTS}
    description = {name: getattr(state, name) for name in _DESCRIBED}
    description["provenance"] = dict(state.provenance)
    return seal(KIND, {"format": FORMAT, **description}, arrays)


def decode_detector(content: bytes, name: str) -> DetectorState:
    """The detector that `encode_detector` made into this content.

    Args:
        content: Of a file.
        name: What errors call it.

    Raises:
        ValueError: it is no detector, damaged, or of a format that is not known.
    """
    try:
        description, arrays = unseal(KIND, content)
        found = description.pop("format", None)
        if found != FORMAT:
            raise ValueError(
                f"format {found!r}, while this version of bliss_jax reads formats 1 to {FORMAT}"
            )
        if arrays.keys() != {*_ARRAYS, *_MOMENTS} or description.keys() != set(_DESCRIBED):
            raise ValueError(
                f"it holds {sorted(arrays)} and {sorted(description)}, expected "
                f"{sorted((*_ARRAYS, *_MOMENTS))} and {sorted(_DESCRIBED)}"
            )
        # Before JAX, which would make wider numbers narrow.
        for name, dtype in _MOMENTS.items():
            if arrays[name].dtype != dtype:
                raise ValueError(f"{name} is {arrays[name].dtype}, expected {np.dtype(dtype).name}")
        fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        moments = ClassMoments(*(jnp.asarray(arrays[part]) for part in _MOMENTS))
        return DetectorState(**_typed(description), **fields, moments=moments)
    except ValueError as error:
        raise ValueError(f"{name} is no detector that can be used: {error}") from error


def _typed(description: dict[str, Any]) -> dict[str, Any]:
    """The description's fields, with tuples for lists and types checked."""
    expected = {
        "class_names": list,
        "dictionary": list,
        "k": int,
        "weight": float | int,
        "shrinkage": float | int,
        "prompt": str,
        "preprocess": str | None,
        "provenance": dict,
    }
    for field, kind in expected.items():
        if not isinstance(description[field], kind) or isinstance(description[field], bool):
            raise ValueError(f"{field} is {type(description[field]).__name__}, expected {kind}")
    for field in ("class_names", "dictionary"):
        description[field] = tuple(description[field])
    for field in ("weight", "shrinkage"):
        description[field] = float(description[field])
    return description


def state_of(detector: DetectorState) -> dict[str, Any]:
    """The fields of the state, without copying."""
    return {f.name: getattr(detector, f.name) for f in dataclasses.fields(DetectorState)}
