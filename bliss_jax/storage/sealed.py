"""Files of arrays that carry a description, and the SHA-256 of both.

    safetensors: the arrays; in the header one metadata entry, named after what the file is:
        {"description": JSON text, "sha256": of that text and of every array's name, type, shape and bytes}

Whatever byte is changed later, reading refuses the file. Nothing in such a file can run: it is numbers and
JSON. Shards of embeddings and detectors are kept in this form.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_LENGTH = 8
"""Bytes before the header, which say how long it is."""


def seal(kind: str, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file; the same bytes for the same input.

    Args:
        kind: Name of the metadata entry.
        description: JSON values.
        arrays: Of any shapes and of dtypes that safetensors has.
    """
    text = json.dumps(description, sort_keys=True)
    # One entry: safetensors writes several in an order that changes from run to run.
    entry = json.dumps({"description": text, "sha256": _digest(text, arrays)})
    return save(dict(arrays), metadata={kind: entry})


def unseal(kind: str, content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays that `seal` put into this content.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    try:
        text, sha256 = _entry(kind, content)
        arrays = load(content)
        intact = sha256 == _digest(text, arrays)
        description = json.loads(text)
    # RecursionError: JSON that is nested too deeply. The others are what wrong bytes lead to.
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    if not intact:
        raise ValueError("it is damaged: its SHA-256 is not the one it was written with")
    if not isinstance(description, dict):
        raise ValueError("it is damaged: its description is no JSON object")
    return description, arrays


def _entry(kind: str, content: bytes) -> tuple[str, str]:
    """Description and SHA-256 as they stand in the header."""
    length = int.from_bytes(content[:_LENGTH], "little")
    metadata = json.loads(content[_LENGTH : _LENGTH + length])["__metadata__"]
    entry = json.loads(metadata[kind])
    text, sha256 = entry["description"], entry["sha256"]
    if not isinstance(text, str) or not isinstance(sha256, str):
        raise ValueError("the header's entry holds no texts")
    return text, sha256


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the description and of all arrays with their names, types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
