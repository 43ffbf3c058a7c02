"""The answers of a fitted detector: scores, p-values, thresholds, explanations."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.detection.inputs import Images, are_embeddings, embed, float32, unlabelled
from bliss_jax.detection.state import DetectorState
from bliss_jax.embedding import BATCH_SIZE, embed_texts
from bliss_jax.models import Model
from bliss_jax.scores import (
    PreparedBliss,
    benjamini_hochberg,
    bliss_score_prepared,
    check_calibration_size,
    conformal_p_values,
    conformal_threshold,
    explain_bliss_prepared,
    prepare_bliss,
)

Control = Literal["false-alarms", "fdr"]

_BLOCK = 128
"""Embeddings scored at once, padded: a score does not depend on how many are asked for with it."""

# Jitted once for all detectors: those of the same sizes share their programs.
_prepare = jax.jit(prepare_bliss)
_score = jax.jit(bliss_score_prepared, static_argnames="k")
_p_values = jax.jit(conformal_p_values)
_explain = jax.jit(explain_bliss_prepared, static_argnames=("k", "num_texts"))


class Explanation(NamedTuple):
    """Why an image has its score."""

    score: float
    """BLISS, exactly that of `Detector.score`."""
    p_value: float | None
    """As `Detector.p_values`; None without calibration images."""
    nearest_class: str
    """The normal class for which internal + lambda external is smallest."""
    internal: float
    """Internal class score, at that class."""
    external: float
    """External text score, at that class; lambda is not in it."""
    words: tuple[tuple[str, float], ...]
    """The nearest phrases of the dictionary by falling cosine, each with its z-score: how much more like
    the image it is than like the normal images of the class."""


@dataclass(frozen=True, eq=False)
class DetectorAnswers(DetectorState):
    """The methods of a detector that answer questions about images; they change nothing."""

    model: Model | None = None
    """Without it the detector takes embeddings only."""

    def score(self, images: Images) -> Float[np.ndarray, " images"]:
        """BLISS of each image, higher = more anomalous; float32.

        The same whatever other images are asked about at once.

        Raises:
            ValueError: images that are neither uint8 nor embeddings of this detector's dimension, embeddings
                that are not finite or not of unit norm, images that cannot be read (all named), no encoder.
        """
        score = partial(_score, prepared=self.prepared, k=self.k, weight=self.weight)
        return _in_blocks(score, self._embeddings(images))

    def p_values(self, scores: Float[np.ndarray | jax.Array, " images"]) -> np.ndarray:
        """p(x) = (1 + #{calibration images with a score >= s(x)}) / (m + 1) of scores of this detector.

        For a normal image P(p <= alpha) <= alpha, if it and the calibration images are exchangeable;
        `bliss_jax.scores.conformal` has the source.

        Raises:
            ValueError: there are no calibration images.
        """
        p_values = partial(_p_values, calibration_scores=self.calibration_scores)
        return _in_blocks(p_values, np.asarray(scores))

    def threshold(self, alpha: float) -> float:
        """The score above which p(x) <= alpha.

        Raises:
            ValueError: alpha is no rate, or has too few calibration images; says how many are needed.
        """
        self._check_calibration(alpha)
        return float(conformal_threshold(self.calibration_scores, alpha))

    def predict(
        self, images: Images, alpha: float = 0.05, control: Control = "false-alarms"
    ) -> Bool[np.ndarray, " images"]:
        """Whether each image is an anomaly.

        Args:
            images: As `score`.
            alpha: The rate that is kept.
            control: "false-alarms": of normal images at most alpha are flagged, each image judged by itself.
                "fdr": of the images flagged in this batch at most alpha are normal, on average
                (Benjamini-Hochberg on the p-values of the batch).

        Raises:
            ValueError: as `score` and `threshold`.
        """
        return self.judge(self.score(images), alpha, control)

    def judge(
        self,
        scores: Float[np.ndarray | jax.Array, " images"],
        alpha: float = 0.05,
        control: Control = "false-alarms",
    ) -> Bool[np.ndarray, " images"]:
        """`predict` from scores of this detector."""
        if control == "false-alarms":
            return np.asarray(scores) > self.threshold(alpha)
        if control == "fdr":
            self._check_calibration(alpha)
            return np.asarray(benjamini_hochberg(self.p_values(scores), alpha))
        raise ValueError(f"control: expected 'false-alarms' or 'fdr', got {control!r}")

    def explain(self, images: Images, words: int = 5) -> tuple[Explanation, ...]:
        """The nearest normal class of each image, both parts of its score, and its nearest words.

        Args:
            images: As `score`.
            words: Nearest phrases to name, at most those of the dictionary.

        Raises:
            ValueError: as `score`; fewer than one word.
        """
        if words < 1:
            raise ValueError(f"words: expected at least 1, got {words}")
        named = min(words, len(self.dictionary))
        explain = partial(
            _explain, prepared=self.prepared, k=self.k, weight=self.weight, num_texts=named
        )
        why = _in_blocks(explain, self._embeddings(images))
        scored = self.p_values(why.score) if len(self.calibration_labels) else None
        return tuple(
            Explanation(
                score=float(why.score[i]),
                p_value=None if scored is None else float(scored[i]),
                nearest_class=self.class_names[why.nearest_class[i]],
                internal=float(why.internal[i]),
                external=float(why.external[i]),
                words=tuple(
                    (self.dictionary[text], float(z))
                    for text, z in zip(why.texts[i], why.z_scores[i], strict=True)
                ),
            )
            for i in range(len(why.score))
        )

    @cached_property
    def prepared(self) -> PreparedBliss:
        """The statistics of all texts, for `bliss_score_prepared`; computed when first asked for."""
        return _prepare(
            self.label_embeddings,
            self.dictionary_embeddings,
            self.moments,
            shrinkage=self.shrinkage,
        )

    @cached_property
    def calibration_scores(self) -> Float[np.ndarray, " calibration"]:
        """Scores of the calibration images.

        Raises:
            ValueError: there are none.
        """
        self._check_calibration()
        return self.score(self.calibration_embeddings)

    def _embeddings(self, images: Images) -> Float[np.ndarray, "images dim"]:
        """Of images, or what is given where they are embeddings."""
        if are_embeddings(images):
            embeddings = float32("embeddings", images)
            if embeddings.shape[1] != self.embedding_dim:
                raise ValueError(
                    f"embeddings: expected [n, {self.embedding_dim}], got {list(embeddings.shape)}"
                )
            return embeddings
        if isinstance(images, str | os.PathLike):
            raise ValueError(
                f"images: expected images or embeddings, got the path {os.fspath(images)!r}; "
                "bliss_jax.score_files scores files and folders"
            )
        model = self._encoder("images")
        if not len(images):
            return np.empty((0, self.embedding_dim), np.float32)
        dataset = unlabelled(images)
        size = min(BATCH_SIZE, 1 << (len(dataset) - 1).bit_length())
        return embed(model, dataset, self.preprocess, size, False, None, None)[0]

    def _embed_texts(self, prompts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        return embed_texts(self._encoder("texts"), prompts)

    def _encoder(self, what: str) -> Model:
        if self.model is None:
            raise ValueError(
                f"this detector has no encoder for {what}: give embeddings, or with_model(load_model(...))"
            )
        return self.model

    def _check_calibration(self, alpha: float | None = None) -> None:
        m = len(self.calibration_labels)
        if not m:
            raise ValueError(
                "this detector has no calibration images, so that its scores have no threshold: fit it with "
                "calibration=0.2, or give it normal images that were not fitted (calibrate)"
            )
        if alpha is not None:
            check_calibration_size(m, alpha)


def _in_blocks(function: Callable[[np.ndarray], Any], rows: Float[np.ndarray, "images ..."]) -> Any:
    """function(rows), a pytree of NumPy arrays with a row for each, computed in blocks of one shape.

    Of one shape, so that a stream of batches of all sizes compiles nothing anew.
    """
    blocks = []
    for start in range(0, max(1, len(rows)), _BLOCK):
        block = rows[start : start + _BLOCK]
        padding = [(0, _BLOCK - len(block))] + [(0, 0)] * (rows.ndim - 1)
        computed = function(np.pad(block, padding))
        blocks.append(jax.tree.map(_first(len(block)), computed))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)


def _first(n: int) -> Callable[[jax.Array], np.ndarray]:
    return lambda leaf: np.asarray(leaf)[:n]
