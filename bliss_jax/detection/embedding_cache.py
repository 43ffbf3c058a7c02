"""A folder of embeddings of single image files, by the content of the files.

    FOLDER/scored-KEY/AB/CDEF....f32        float32 [dim]; ABCDEF... is the SHA-256 of the image file

KEY is derived from everything that decides an embedding: weights, configuration, preprocessing, batch shape,
background, bit depth and versions. A file is written under a temporary name and then renamed, so several
processes can share the folder. An entry of another size, or with a row that is not of unit norm, is computed
again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_UNIT = 1e-3


class EmbeddingCache:
    """Embeddings of image files.

    Args:
        root: Folder of the cache; created if it does not exist.
        key: Everything that decides an embedding; JSON values.
        dim: Dimension of the embeddings.

    Raises:
        OSError: The folder cannot be created.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], dim: int):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._folder, self._dim = root / f"scored-{digest[:16]}", dim
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str) -> Float[np.ndarray, " dim"] | None:
        """Returns the embedding of a file with this SHA-256, or None."""
        try:
            content = self._file(sha256).read_bytes()
        except OSError:
            return None
        if len(content) != 4 * self._dim:
            return None
        embedding = np.frombuffer(content, "<f4").astype(np.float32)
        return embedding if abs(np.linalg.norm(embedding) - 1) < _UNIT else None

    def put(self, sha256: str, embedding: Float[np.ndarray, " dim"]) -> None:
        """Writes the embedding of a file.

        Raises:
            OSError: It cannot be written, e.g. because the disk is full.
        """
        file = self._file(sha256)
        file.parent.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(embedding.astype("<f4").tobytes())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _file(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256[2:]}.f32"
