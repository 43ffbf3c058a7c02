"""Methods of a fitted detector that score, judge and explain images, and its export as a program."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.datasets import AUTO, Decoding
from bliss_jax.detection.chosen_score import (
    BLISS,
    ScoreLike,
    check_score,
    fitted_arrays,
    record_of,
    score_arrays,
    texts_of,
    why_not,
)
from bliss_jax.detection.encoding import default_images_per_device, embed_dataset_images
from bliss_jax.detection.explanation import Explanation
from bliss_jax.detection.export import Inputs, export_detector
from bliss_jax.detection.inputs import (
    Images,
    are_embeddings,
    float32,
    single_image,
    unlabelled,
    unreadable_error,
)
from bliss_jax.detection.maps import anomaly_maps, check_maps
from bliss_jax.detection.platforms import DEFAULT_PLATFORMS
from bliss_jax.detection.prepared_score import PreparedScore, prepare_score, score_embeddings
from bliss_jax.detection.processes import check_process
from bliss_jax.detection.state import DetectorState
from bliss_jax.detection.text_explanation import explain_texts
from bliss_jax.detection.ties import KnownEmbeddings, rounding_of
from bliss_jax.embedding import AnyEncoder, embed_prompts, embed_texts
from bliss_jax.metrics import ScoreComparison, compare_scores
from bliss_jax.scores import (
    PreparedBliss,
    Score,
    benjamini_hochberg,
    bliss_score_prepared,
    check_calibration_size,
    conformal_p_values,
    conformal_threshold,
    explain_bliss_prepared,
    prepare_bliss,
    score_table,
)

Control = Literal["false-alarms", "fdr"]

_BLOCK = 128
"""Embeddings per call of the compiled score; the last block is padded. Every call therefore runs the same
program, and the score of an image does not depend on the number of images in the call."""

# Jitted once for all detectors. Detectors of the same sizes share the compiled programs.
_prepare = jax.jit(prepare_bliss)
_score = jax.jit(bliss_score_prepared, static_argnames="k")
_p_values = jax.jit(conformal_p_values)
_explain = jax.jit(explain_bliss_prepared, static_argnames=("k", "num_texts"))


@dataclass(frozen=True, eq=False)
class DetectorAnswers(DetectorState):
    """The methods of a detector that score, judge and explain images, and export a program that does so.

    They change nothing.
    """

    model: AnyEncoder | None = None
    """A `Model` or another `Encoder`. A detector without one accepts embeddings only."""
    own_score: Score | None = None
    """The record of the score, if it is not a score of the library."""

    def score(self, images: Images) -> Float[np.ndarray, " images"]:
        """Returns the score of each image, float32; higher is more anomalous. The score is BLISS by default.

        The score of an image does not depend on the other images in the call, and is the same in
        `score_files` and for calibration images, to the last bit.

        Args:
            images: Images or embeddings. Image files may be given by their paths; they are read as in
                `read_image`, with the background and the bit depth of the fit.

        Raises:
            ValueError: The images are neither uint8 nor embeddings of this detector's dimension; embeddings
                are not finite or not of unit norm; images cannot be read (the message names all of them);
                or images are given and the detector has no encoder.
        """
        return self._scores(self._known.snap(self._embeddings(images)))

    def p_values(self, scores: Float[np.ndarray | jax.Array, " images"]) -> np.ndarray:
        """Returns p(x) = (1 + #{calibration images with a score >= s(x)}) / (m + 1).

        For a normal image P(p <= alpha) <= alpha, if the image and the calibration images are exchangeable.
        `bliss_jax.scores.conformal` cites the source.

        Args:
            scores: Scores of this detector.

        Raises:
            ValueError: The detector has no calibration images.
        """
        p_values = partial(_p_values, calibration_scores=self.calibration_scores)
        return _in_blocks(p_values, np.asarray(scores))

    def threshold(self, alpha: float) -> float:
        """Returns the score above which p(x) <= alpha.

        Raises:
            ValueError: alpha is not between 0 and 1, or there are too few calibration images for it. The
                message says how many are needed.
        """
        self._check_calibration(alpha)
        return float(conformal_threshold(self.calibration_scores, alpha))

    def predict(
        self, images: Images, alpha: float = 0.05, control: Control = "false-alarms"
    ) -> Bool[np.ndarray, " images"]:
        """Returns whether each image is flagged as an anomaly.

        Args:
            images: Images or embeddings, as in `score`.
            alpha: Bound on the error rate that `control` names.
            control: "false-alarms" bounds the share of normal images that are flagged, and judges each image
                by itself. "fdr" bounds the expected share of normal images among the flagged images of this
                call (Benjamini-Hochberg on the p-values of the call).

        Raises:
            ValueError: One of the reasons listed in `score` and `threshold`.
        """
        return self.judge(self.score(images), alpha, control)

    def judge(
        self,
        scores: Float[np.ndarray | jax.Array, " images"],
        alpha: float = 0.05,
        control: Control = "false-alarms",
    ) -> Bool[np.ndarray, " images"]:
        """Returns whether each score is flagged: `predict` for scores that are already computed."""
        if control == "false-alarms":
            return np.asarray(scores) > self.threshold(alpha)
        if control == "fdr":
            self._check_calibration(alpha)
            return np.asarray(benjamini_hochberg(self.p_values(scores), alpha))
        raise ValueError(f"control: expected 'false-alarms' or 'fdr', got {control!r}")

    def explain(
        self, images: Images, words: int = 5, *, maps: bool = False
    ) -> tuple[Explanation, ...]:
        """Returns the nearest normal class, both parts of the score and the nearest phrases of each image.

        With a score other than BLISS, the score and the p-value are those of the detector, and the rest is that of
        BLISS; `Explanation.note` says so.

        Args:
            images: Images or embeddings, as in `score`.
            words: Number of phrases per image; at most the size of the dictionary is used.
            maps: Whether to compute maps of the score, the parts of BLISS and the phrases (`AnomalyMaps`). They need
                images, a `Model` and a detector that was fitted to images. Image files are read twice.

        Raises:
            ValueError: `words` is below 1, maps cannot be computed, or one of the reasons listed in `score`.
        """
        if words < 1:
            raise ValueError(f"words: expected at least 1, got {words}")
        named = min(words, len(self.dictionary))
        fitted = bool(np.any(self.moments.count))
        if fitted:
            explain: Callable[..., Any] = partial(
                _explain, prepared=self.prepared, k=self.k, weight=self.weight, num_texts=named
            )
        else:
            texts = {"labels": self.label_embeddings, "dictionary": self.dictionary_embeddings}
            explain = partial(explain_texts, **texts, k=self.k, num_texts=named)
        if maps:
            check_maps(self, images)
        embeddings = self._known.snap(self._embeddings(images))
        why = _in_blocks(explain, embeddings)
        # Scores come from the program of `score`. Another program may round differently and lose ties.
        scores = self._scores(embeddings)
        scored = self.p_values(scores) if len(self.calibration_labels) else None
        located = (
            anomaly_maps(self, single_image(images), embeddings, named)
            if maps
            else (None,) * len(scores)
        )
        return tuple(
            Explanation(
                score=float(scores[i]),
                p_value=None if scored is None else float(scored[i]),
                nearest_class=self.class_names[why.nearest_class[i]],
                internal=float(why.internal[i]),
                external=float(why.external[i]),
                words=tuple(
                    (self.dictionary[text], float(z))
                    for text, z in zip(why.texts[i], why.z_scores[i], strict=True)
                ),
                maps=located[i],
                score_name=self.score_name,
                unit="z" if fitted else "cosine",
            )
            for i in range(len(scores))
        )

    def compare(
        self,
        images: Images,
        is_anomaly: Sequence[bool] | np.ndarray | jax.Array,
        scores: Sequence[ScoreLike] | None = None,
        *,
        reference: str | None = None,
        confidence: float = 0.95,
    ) -> ScoreComparison:
        """Ranks scores by their AUROC on a labelled sample, with DeLong's paired tests, as in `compare_scores`.

        All scores are computed from the state of this detector. Its encoder embeds the prompts of `mcm` and `clip_ad`.
        The sample must be new: images of the fit look more normal than they are.

        Args:
            images: Images or embeddings, as in `score`.
            is_anomaly: True for anomalous images [images].
            scores: Scores to compare. None for the score of this detector and the default scores of an evaluation.
                Those that cannot be computed from this detector are left out, and a note below the table says why.
            reference: Name of the score to compare with. None for the best.
            confidence: Coverage of the intervals.

        Raises:
            ValueError: A given score cannot be computed, or one of the reasons listed in `score` and `compare_scores`.
        """
        embeddings = self._known.snap(self._embeddings(images))
        if scores is None:
            records = {self._record.name: self._record} | {
                name: record for name, record in score_table().items() if record.default
            }
        else:
            records = {record.name: record for record in map(record_of, scores)}
        computed, notes = {}, []
        for name, record in records.items():
            state = self._with_texts_of(record)
            if scores is not None:
                check_score(record, state)
            elif (reason := why_not(record, state)) is not None:
                notes.append(f"{name} is left out: {reason}.")
                continue
            computed[name] = state._scores(embeddings, record)
        found = compare_scores(
            computed, np.asarray(is_anomaly, bool), reference=reference, confidence=confidence
        )
        return replace(found, notes=tuple(notes))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        inputs: Inputs = "images",
        platforms: Sequence[str] = DEFAULT_PLATFORMS,
        batch_size: int | None = None,
    ) -> None:
        """Writes the detector as a program that runs with JAX alone, without this library (`export.py`).

        The program returns scores, p-values (NaN without calibration images) and the position of the nearest class in
        `class_names` (-1 for a score of NaN, and for all images if the score is not BLISS).

        Args:
            path: The file, a zip archive that `numpy.load` reads.
            inputs: "images": uint8 RGB [n, size, size, 3] as `resize_on_host` returns them, for any n. The file
                then contains the image tower. "embeddings": unit-norm float32 [n, dim].
            platforms: Platforms on which the program runs: "cpu", "cuda", "rocm", "tpu".
            batch_size: Number of inputs that are computed at once, which bounds the memory. None for the detector's.

        Raises:
            ValueError, OSError: The score cannot be exported (e.g. a score of one's own that calls Python), the
                detector has no `Model` for images, an option is unknown, or the file cannot be written.
            ModuleNotFoundError: The package flatbuffers is missing.
        """
        export_detector(self, Path(path), inputs=inputs, platforms=platforms, batch_size=batch_size)

    @cached_property
    def prepared(self) -> PreparedBliss:
        """Statistics of all texts for `bliss_score_prepared`, computed on first use."""
        return _prepare(
            self.label_embeddings,
            self.dictionary_embeddings,
            self.moments,
            shrinkage=self.shrinkage,
        )

    @cached_property
    def prepared_score(self) -> PreparedScore:
        """Prepared arrays of a score other than BLISS, computed on first use (`prepared_score.py`)."""
        return self._prepare_score(self._record)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return fitted_arrays(self)

    def _prepare_score(self, record: Score) -> PreparedScore:
        return prepare_score(
            record,
            self._arrays,
            k=self.k,
            weight=self.weight,
            shrinkage=self.shrinkage,
            table=None if self.shrinkage else lambda: self.prepared,
        )

    @cached_property
    def calibration_scores(self) -> Float[np.ndarray, " calibration"]:
        """Scores of the calibration images, computed on first use.

        Raises:
            ValueError: The detector has no calibration images.
        """
        self._check_calibration()
        return self.score(self.calibration_embeddings)

    @property
    def images_per_device(self) -> int:
        """Number of images per device and call of the encoder, which decides the last bits of embeddings.

        It is that of the fit, if the detector runs on the platform of the fit.
        """
        recorded = self.provenance.get("embedding")
        if isinstance(recorded, dict) and recorded.get("platform") == jax.default_backend():
            number = recorded.get("images_per_device")
            if isinstance(number, int) and number > 0:
                return number
        return default_images_per_device()

    @property
    def decoding(self) -> Decoding:
        """Background and bit depth with which image files are read: those of the fit."""
        images = self.provenance.get("images")
        recorded = images.get("decoding") if isinstance(images, dict) else None
        recorded = recorded if isinstance(recorded, dict) else {}
        background, depth = recorded.get("background"), recorded.get("bit_depth")
        try:
            return Decoding(
                background if isinstance(background, str) and " " not in background else AUTO,
                depth if isinstance(depth, int) else None,
            )
        except ValueError:
            return Decoding()

    def _with_texts_of(self, record: Score) -> "DetectorAnswers":
        """Returns the detector with the embeddings of the further texts of a score, if it has an encoder."""
        texts = texts_of(record, self.class_names)
        missing = {name: own for name, own in texts.items() if name not in self.score_arrays}
        if self.model is None or not missing:
            return self
        embedded = {name: self._embed_texts(own) for name, own in missing.items()}
        return replace(self, score_arrays={**self.score_arrays, **score_arrays(record, embedded)})

    def _scores(
        self, embeddings: Float[np.ndarray, "images dim"], record: Score | None = None
    ) -> Float[np.ndarray, " images"]:
        """Returns scores of embeddings: those of the detector, or of another record."""
        record = record or self._record
        if record.name == BLISS:
            score = partial(_score, prepared=self.prepared, k=self.k, weight=self.weight)
        else:
            own = record == (self.own_score or score_table().get(self.score_name))
            prepared = self.prepared_score if own else self._prepare_score(record)
            score = partial(score_embeddings, score=prepared)
        return _in_blocks(score, embeddings)

    @property
    def _record(self) -> Score:
        """The record of the detector's score.

        Raises:
            ValueError: It is a user's own score that was not passed to `load`.
        """
        if self.own_score is not None:
            return self.own_score
        if self.score_name not in score_table():
            raise own_score_error(self)
        return score_table()[self.score_name]

    @cached_property
    def _known(self) -> KnownEmbeddings:
        """Calibration embeddings, with which equal images get equal scores in spite of rounding."""
        return KnownEmbeddings(self.calibration_embeddings, rounding_of(self.provenance))

    def _embeddings(self, images: Images) -> Float[np.ndarray, "images dim"]:
        """Returns the embeddings of images. Embeddings are checked and returned."""
        if are_embeddings(images):
            embeddings = float32("embeddings", images)
            if embeddings.shape[1] != self.embedding_dim:
                raise ValueError(
                    f"embeddings: expected [n, {self.embedding_dim}], got {list(embeddings.shape)}"
                )
            return embeddings
        items = single_image(images)
        model = self._encoder("images")
        if not len(items):
            return np.empty((0, self.embedding_dim), np.float32)
        embedded = embed_dataset_images(
            model,
            unlabelled(items, self.decoding),
            preprocess=self.preprocess,
            images_per_device=self.images_per_device,
        )
        if embedded.unreadable:
            raise unreadable_error(embedded.unreadable)
        return embedded.embeddings

    def _embed_prompts(
        self, labels: Sequence[str], *, allow_repeats: bool = False
    ) -> Float[np.ndarray, "labels dim"]:
        model = self._encoder("texts")
        return embed_prompts(model, self.prompt, labels, allow_repeats=allow_repeats)

    def _embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        return embed_texts(self._encoder("texts"), texts)

    def _encoder(self, what: str) -> AnyEncoder:
        if self.model is None:
            raise ValueError(
                f"this detector has no encoder for {what}: pass embeddings, or add an encoder with "
                "with_model(load_model(...))"
            )
        return self.model

    def _check_calibration(self, alpha: float | None = None) -> None:
        m = len(self.calibration_labels)
        if not m:
            raise ValueError(
                "this detector has no calibration images, which thresholds and p-values need: fit it with "
                "calibration=0.2, or pass normal images that were not fitted to calibrate()"
            )
        if alpha is not None:
            check_calibration_size(m, alpha)


def own_score_error(state: DetectorState) -> ValueError:
    """Returns the error for a detector whose score is a user's own and was not passed to `load`."""
    facts = state.provenance.get("score")
    place = facts.get("function") if isinstance(facts, dict) else None
    return ValueError(
        f"the score of this detector, {state.score_name!r}, is not a score of this library: pass its function"
        + (f" ({place})" if place else "")
        + " to Detector.load(path, score=...), or --score MODULE:FUNCTION on the command line"
    )


def _in_blocks(function: Callable[[np.ndarray], Any], rows: Float[np.ndarray, "images ..."]) -> Any:
    """Returns function(rows), a pytree of NumPy arrays with one row per input row.

    The function sees padded blocks of one shape. It is therefore compiled once for all numbers of rows.
    """
    check_process()
    blocks = []
    for start in range(0, max(1, len(rows)), _BLOCK):
        block = rows[start : start + _BLOCK]
        padding = [(0, _BLOCK - len(block))] + [(0, 0)] * (rows.ndim - 1)
        computed = function(np.pad(block, padding))
        blocks.append(jax.tree.map(_first(len(block)), computed))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)


def _first(n: int) -> Callable[[jax.Array], np.ndarray]:
    return lambda leaf: np.asarray(leaf)[:n]
