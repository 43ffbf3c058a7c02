"""The state of a fitted detector: moments, texts, calibration images, score, settings and provenance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bliss_jax import _checks
from bliss_jax.detection.chosen_score import BLISS, STORED, is_of_library, needs_images
from bliss_jax.scores import ClassMoments, Score, as_score, check_moments, score_table
from bliss_jax.text import PROMPT, fill_prompt, prompt_templates


@dataclass(frozen=True, eq=False)
class DetectorState:
    """All fields of a detector except its encoder, checked on construction.

    Every class is normal. Every class has fitted images, or, with a score that needs none, no class has any.
    Embeddings are float32 rows of unit norm.

    Raises:
        ValueError: Shapes or dtypes of the fields do not match, embeddings are not finite or not of unit
            norm, or names are repeated or empty. The message names the field.
    """

    class_names: tuple[str, ...]
    """Names of the normal classes."""
    moments: ClassMoments
    """Moments of the fitted images of each class."""
    label_embeddings: Float[np.ndarray, "classes dim"]
    """Embedding of each class's prompt."""
    dictionary: tuple[str, ...]
    """Dictionary phrases; repeated phrases count repeatedly."""
    dictionary_embeddings: Float[np.ndarray, "texts dim"]
    """Embedding of each phrase's prompt."""
    calibration_embeddings: Float[np.ndarray, "calibration dim"]
    """Embeddings of normal images that were held out of the fit; may be empty."""
    calibration_labels: Int[np.ndarray, " calibration"]
    """Class of each calibration image, int32."""
    k: int = 10
    """Number of dictionary phrases per image."""
    weight: float = 0.5
    """lambda, the weight of the external score."""
    shrinkage: float = 0.0
    """n0 of `bliss_score`; 0 is the paper's score."""
    prompt: str | tuple[str, ...] = PROMPT
    """Prompt template of class names and phrases, or the templates whose embeddings are averaged."""
    preprocess: str | None = None
    """Name of the preprocessing statistics, as in `Model.encode_images`; None for the model's own."""
    score_name: str = BLISS
    """Name of the score."""
    score_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further arrays that the score needs, by the names of `chosen_score.STORED`. Empty for BLISS."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Encoder, dictionary, images, settings and versions of the fit, and later changes; JSON values."""

    def __post_init__(self):
        template, *_ = prompt_templates(self.prompt)
        fill_prompt(template, self.class_names)
        fill_prompt(template, self.dictionary, allow_repeats=True)
        classes = len(self.class_names)
        # A 0-d array has no length. The sizes default to 0, and the comparison below rejects it.
        dim = next(iter(np.shape(self.moments.mean)[-1:]), 0)
        held_out = next(iter(np.shape(self.calibration_labels)), 0)
        shapes = {
            "moments.count": ((classes,), self.moments.count, "float32"),
            "moments.mean": ((classes, dim), self.moments.mean, "float32"),
            "moments.cov": ((classes, dim, dim), self.moments.cov, "float32"),
            "label_embeddings": ((classes, dim), self.label_embeddings, "float32"),
            "dictionary_embeddings": (
                (len(self.dictionary), dim),
                self.dictionary_embeddings,
                "float32",
            ),
            "calibration_embeddings": (
                (held_out, dim),
                self.calibration_embeddings,
                "float32",
            ),
            "calibration_labels": ((held_out,), self.calibration_labels, "int32"),
        }
        shapes |= self._shapes_of_score(classes, dim)
        for name, (shape, array, dtype) in shapes.items():
            if np.shape(array) != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name}: expected {dtype} {list(shape)}, got {array.dtype} {list(np.shape(array))}"
                )
        labels = _checks.embeddings_as_float("label_embeddings", self.label_embeddings)
        for name in ("dictionary_embeddings", "calibration_embeddings"):
            _checks.embeddings_as_float(name, getattr(self, name))
        for name, array in self.score_arrays.items():
            if name != "train_labels":
                _checks.embeddings_as_float(name, np.atleast_2d(array))
        if (fitted := self.score_arrays.get("train_labels")) is not None:
            _checks.class_labels("train_labels", fitted, len(fitted), classes)
        _checks.class_labels(
            "calibration_labels", self.calibration_labels, len(self.calibration_labels), classes
        )
        count = np.asarray(self.moments.count)
        if count.min() < 1 and (count.any() or self._needs_images()):
            empty = self.class_names[int(count.argmin())]
            raise ValueError(f"moments: expected images of every class, got none of {empty!r}")
        for name in ("mean", "cov"):
            if not np.isfinite(np.asarray(getattr(self.moments, name))).all():
                raise ValueError(f"moments.{name}: holds NaN or infinite values")
        checks = _checks.ValueChecks()
        if count.any():
            check_moments(checks, self.moments, embeddings=labels, labels=labels)
        checks.run()
        _checks.top_k_size(self.k, len(self.dictionary), "the dictionary's texts")
        _checks.scalar("weight", self.weight)
        _checks.scalar("shrinkage", self.shrinkage, minimum=0.0)

    def _shapes_of_score(
        self, classes: int, dim: int
    ) -> dict[str, tuple[tuple[int, ...], Any, str]]:
        """Returns the expected shape, the array and the expected dtype of each array of the score.

        Raises:
            ValueError: There is an unknown array, or images without labels or labels without images.
        """
        arrays = self.score_arrays
        if unknown := sorted({*arrays} - {*STORED}):
            raise ValueError(
                f"score_arrays: expected names among {', '.join(STORED)}, got {', '.join(unknown)}"
            )
        fitted = next(iter(np.shape(arrays.get("train_labels", ()))), 0)
        shapes = {
            "train_embeddings": (fitted, dim),
            "train_labels": (fitted,),
            "mcm_label_embeddings": (classes, dim),
            "something_embedding": (dim,),
        }
        return {
            name: (shapes[name], array, "int32" if name == "train_labels" else "float32")
            for name, array in arrays.items()
        }

    def _needs_images(self) -> bool:
        known = score_table().get(self.score_name)
        return known is not None and needs_images(known)

    @property
    def num_classes(self) -> int:
        """Number of normal classes, C."""
        return len(self.class_names)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embeddings."""
        return self.label_embeddings.shape[1]


def given_score(state: DetectorState, score: Score | Callable[..., Any] | None) -> Score | None:
    """Returns the record of a user's own score that is passed to `load`.

    Raises:
        ValueError: It is not the score of the detector.
    """
    if score is None:
        return None
    record = as_score(score)
    if record.name != state.score_name:
        raise ValueError(
            f"score: expected the score {state.score_name!r} of the fit, got {record.name!r}"
        )
    return None if is_of_library(record) else record
