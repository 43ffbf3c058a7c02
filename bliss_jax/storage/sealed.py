"""Sealed files: arrays and a JSON description, protected by a SHA-256 checksum.

A sealed file is a safetensors file. Its header has one metadata entry, whose name is the kind of the file:

    {"description": JSON text, "sha256": of this text and each array's name, dtype, shape and bytes}

Reading refuses a file in which any byte has changed. The file holds only numbers and JSON, so reading it
cannot run code. Embedding shards and detectors are stored in this form.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_LENGTH = 8
"""Number of bytes before the header that store the length of the header."""


def seal(kind: str, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encodes arrays and their description as the content of a sealed file.

    The same input always gives the same bytes.

    Args:
        kind: Name of the metadata entry.
        description: JSON values.
        arrays: Arrays by name, of any shapes and of the dtypes that safetensors supports.

    Returns:
        The bytes of the file.
    """
    text = json.dumps(description, sort_keys=True)
    # A single entry, because safetensors writes several entries in an order that varies between runs.
    entry = json.dumps({"description": text, "sha256": _digest(text, arrays)})
    return save(dict(arrays), metadata={kind: entry})


def unseal(kind: str, content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Decodes the content of a sealed file.

    Args:
        kind: Name of the metadata entry, as given to `seal`.
        content: The bytes of the file.

    Returns:
        The description and the arrays that were given to `seal`.

    Raises:
        ValueError: The content is not a sealed file of this kind, or it is damaged.
    """
    try:
        text, sha256 = _entry(kind, content)
        arrays = load(content)
        intact = sha256 == _digest(text, arrays)
        description = json.loads(text)
    # JSON that is nested too deeply raises RecursionError. Invalid bytes raise the other errors.
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    if not intact:
        raise ValueError("it is damaged: its content does not match its SHA-256")
    if not isinstance(description, dict):
        raise ValueError("it is damaged: its description is not a JSON object")
    return description, arrays


def _entry(kind: str, content: bytes) -> tuple[str, str]:
    """Returns the description and the SHA-256 that the header states."""
    length = int.from_bytes(content[:_LENGTH], "little")
    metadata = json.loads(content[_LENGTH : _LENGTH + length])["__metadata__"]
    entry = json.loads(metadata[kind])
    text, sha256 = entry["description"], entry["sha256"]
    if not isinstance(text, str) or not isinstance(sha256, str):
        raise ValueError("the description and the SHA-256 in the header must be text")
    return text, sha256


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the description and of all arrays with their names, dtypes and shapes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
