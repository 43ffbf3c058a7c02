"""File format of a detector: one sealed safetensors file (`storage/sealed.py`) without executable code.

    count int32 [C]                  mean float32 [C, d]             cov float32 [C, d, d]
    label_embeddings [C, d]          dictionary_embeddings [M, d]
    calibration_embeddings [m, d]    calibration_labels int32 [m]

    and the arrays of `chosen_score.STORED` that the score needs, if it is not BLISS

The header's entry "bliss_jax.detector" holds a description, a JSON object with `format` (a number),
`class_names`, `dictionary`, `k`, `weight`, `shrinkage`, `prompt`, `preprocess` and `provenance`. A detector with BLISS
has format 1. One with another score has format 2 and the further entry `score`, the score's name. One with several
prompt templates has format 3: `prompt` is the list of its templates, and `score` is always present. The function of a
score is never in the file; the provenance names the module and the function of a user's own score.

The file does not contain the encoder. The provenance holds its name and the SHA-256 of its weights, which
`Detector.load` checks. The tests keep a file of every released format, and all of them stay readable. A file
of a newer format is rejected, and the message names its number.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bliss_jax.detection.chosen_score import BLISS, STORED
from bliss_jax.detection.state import DetectorState
from bliss_jax.scores import ClassMoments
from bliss_jax.storage import seal, unseal

KIND = "bliss_jax.detector"
FORMAT = 3
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
    """Returns the content of a detector's file. Equal detectors give equal bytes."""
    arrays = {name: np.asarray(getattr(state, name)) for name in _ARRAYS}
    arrays |= {
        name: np.asarray(getattr(state.moments, name)).astype(dtype)
        for name, dtype in _MOMENTS.items()
    }
    description = {name: getattr(state, name) for name in _DESCRIBED}
    description["provenance"] = dict(state.provenance)
    several_templates = not isinstance(state.prompt, str)
    if state.score_name == BLISS and not several_templates:
        return seal(KIND, {"format": 1, **description}, arrays)
    arrays |= {name: np.asarray(array) for name, array in state.score_arrays.items()}
    version = 3 if several_templates else 2
    return seal(KIND, {"format": version, **description, "score": state.score_name}, arrays)


def decode_detector(content: bytes, name: str) -> DetectorState:
    """Returns the detector in a file's content: the inverse of `encode_detector`.

    Args:
        content: Content of the file.
        name: Name of the file in error messages.

    Raises:
        ValueError: The content is damaged, is not a detector, or has an unknown format.
    """
    try:
        description, arrays = unseal(KIND, content)
        found = description.pop("format", None)
        if isinstance(found, bool) or found not in range(1, FORMAT + 1):
            raise ValueError(
                f"its format is {found!r}, but this version of bliss_jax reads formats 1 to {FORMAT}; "
                "update bliss_jax"
            )
        of_score = {name: arrays.pop(name) for name in STORED if found > 1 and name in arrays}
        described = (*_DESCRIBED, "score") if found > 1 else _DESCRIBED
        if arrays.keys() != {*_ARRAYS, *_MOMENTS} or description.keys() != set(described):
            raise ValueError(
                f"it holds {sorted(arrays)} and {sorted(description)}, expected "
                f"{sorted((*_ARRAYS, *_MOMENTS))} and {sorted(described)}"
            )
        score = description.pop("score", BLISS)
        if not isinstance(score, str):
            raise ValueError(f"score is {type(score).__name__}, expected a name")
        # Before the conversion to JAX arrays, which would narrow 64-bit numbers.
        for name, dtype in _MOMENTS.items():
            if arrays[name].dtype != dtype:
                raise ValueError(f"{name} is {arrays[name].dtype}, expected {np.dtype(dtype).name}")
        fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        moments = ClassMoments(
            *(jnp.asarray(arrays[part]).astype(jnp.float32) for part in _MOMENTS)
        )
        fields |= {"score_name": score, "score_arrays": of_score}
        typed = _typed(description, several_templates=found == 3)
        return DetectorState(**typed, **fields, moments=moments)
    except ValueError as error:
        raise ValueError(f"{name} is not a usable detector: {error}") from error


def _typed(description: dict[str, Any], *, several_templates: bool) -> dict[str, Any]:
    """Returns the description's fields with checked types, and with tuples in place of lists."""
    expected = {
        "class_names": list,
        "dictionary": list,
        "k": int,
        "weight": float | int,
        "shrinkage": float | int,
        "prompt": list if several_templates else str,
        "preprocess": str | None,
        "provenance": dict,
    }
    for field, kind in expected.items():
        if not isinstance(description[field], kind) or isinstance(description[field], bool):
            raise ValueError(f"{field} is {type(description[field]).__name__}, expected {kind}")
    if several_templates:
        description["prompt"] = tuple(description["prompt"])
    for field in ("class_names", "dictionary"):
        description[field] = tuple(description[field])
    for field in ("weight", "shrinkage"):
        description[field] = float(description[field])
    return description


def state_of(detector: DetectorState) -> dict[str, Any]:
    """Returns the fields of the state by name, without copying arrays."""
    return {f.name: getattr(detector, f.name) for f in dataclasses.fields(DetectorState)}
