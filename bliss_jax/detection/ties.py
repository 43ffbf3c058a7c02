"""Ties between scored images and calibration images that survive rounding.

A p-value counts calibration scores of at least s(x). If an image equals a calibration image, the two scores
are tied, and the guarantee needs the tie. On one machine a detector's embeddings of equal images are equal
bits (`encoding.py`). On another kind of device, in another process on a GPU (which may choose other
kernels), or in a caller's own batches they differ by rounding. An embedding that equals a calibration
embedding up to rounding is therefore replaced by it before it is scored.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

ROUNDING = {"float32": 1e-4, "bfloat16": 0.03}
"""Largest distance of two embeddings of one image, by the dtype of the encoder. Between batch sizes, entries
of embeddings in float32 differ by up to 2e-7, which is a distance of 5e-6 in 512 dimensions. In bfloat16,
`benchmarks/padded_batches.py` finds differences of cosines up to 2.8e-4, a distance of 0.024."""


def rounding_of(provenance: Mapping[str, Any]) -> float:
    """Returns the largest distance of two embeddings of one image by the encoder of a detector's provenance."""
    model = provenance.get("model")
    dtype = model.get("dtype") if isinstance(model, dict) else None
    return ROUNDING.get(str(dtype), ROUNDING["float32"])


class KnownEmbeddings:
    """Embeddings that are recognised up to rounding.

    Args:
        embeddings: Rows of unit norm.
        tolerance: Largest distance at which a row counts as equal.
    """

    def __init__(self, embeddings: Float[np.ndarray, "known dim"], tolerance: float):
        self._known, self._tolerance = embeddings, tolerance
        direction = np.random.default_rng(0).normal(size=embeddings.shape[1])
        self._direction = direction / np.linalg.norm(direction)
        projections = embeddings.astype(np.float64) @ self._direction
        self._order = np.argsort(projections, kind="stable")
        self._sorted = projections[self._order]

    def snap(self, embeddings: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images dim"]:
        """Returns the embeddings with the nearest known one in place of each that equals it up to rounding.

        Two vectors within the tolerance have projections on any direction within the tolerance, so a binary
        search finds the few candidates.
        """
        if not len(self._known) or not len(embeddings):
            return embeddings
        projections = embeddings.astype(np.float64) @ self._direction
        first = np.searchsorted(self._sorted, projections - self._tolerance, side="left")
        last = np.searchsorted(self._sorted, projections + self._tolerance, side="right")
        rows = np.flatnonzero(first < last)
        snapped = embeddings.copy() if len(rows) else embeddings
        for row in rows:
            candidates = np.sort(self._order[first[row] : last[row]])
            distances = np.linalg.norm(self._known[candidates] - embeddings[row], axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] <= self._tolerance:
                snapped[row] = self._known[candidates[nearest]]
        return snapped
