"""A fitted detector that a user keeps: fit, score, threshold, explain, save, load.

    det = Detector.fit(model, images, labels, class_names)     normal images; a fifth is held out
    det.score(images)              BLISS, higher = more anomalous (`scores/bliss.py` has the equation)
    det.predict(images, alpha=0.05)      at most 5 % of normal images are flagged (`conformal.py`)
    det.explain(images)            nearest normal class, both parts, the words
    det.save("det.safetensors")    one file (`detector_file.py`)

A detector does not change: what adds images, classes or words returns another one. Its arrays are open:
`det.moments`, `det.label_embeddings`, `det.prepared`, ... feed the pure functions of `bliss_jax.scores`.

Where images are asked for, embeddings by the same model will do: a floating [n, dim] array is taken for them.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bliss_jax.detection.changes import CALIBRATION, DetectorChanges, image_counts, model_facts
from bliss_jax.detection.file_format import decode_detector, encode_detector, state_of
from bliss_jax.detection.inputs import (
    Phrases,
    Source,
    embed,
    float32,
    hold_out,
    labelled,
    phrases_of,
    prompts,
)
from bliss_jax.embedding import BATCH_SIZE, Track, embed_texts
from bliss_jax.models import Model, load_model
from bliss_jax.scores import fit_moments
from bliss_jax.storage import package_versions, replacing
from bliss_jax.text import PROMPT, dictionary_hash, fill_prompt, find_overlap
from bliss_jax.text import exclude_labels as without_labels


@dataclass(frozen=True, eq=False)
class Detector(DetectorChanges):
    """A fitted detector: its state, and the encoder where it has one."""

    @classmethod
    def fit(
        cls,
        model: Model,
        images: Source,
        labels: np.ndarray | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        *,
        dictionary: Phrases = "imagenet1k",
        prompt: str = PROMPT,
        preprocess: str | None = None,
        exclude_labels: bool = False,
        k: int = 10,
        weight: float = 0.5,
        shrinkage: float = 0.0,
        calibration: float = CALIBRATION,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        skip_unreadable: bool = False,
        cache: Path | None = None,
        track: Track = lambda what, total: nullcontext(lambda done: None),
    ) -> "Detector":
        """Fits a detector to normal images.

        Args:
            model: The encoder.
            images: Normal images, see `Source`. A data set or folder brings labels and class names.
            labels: Class of each image, a position in `class_names`; may be left out for one class.
            class_names: What the classes are called, for the prompt.
            dictionary: Phrases that stand for any text, see `Phrases`.
            prompt: Template with `{label}`, for classes and phrases alike.
            preprocess: As `Model.encode_images`.
            exclude_labels: Leave phrases that equal a class name out of the dictionary.
            k: Phrases per image.
            weight: lambda, of the external score.
            shrinkage: n0 of `bliss_score`: for few images per class, 20 is a good choice.
            calibration: Share of the images, drawn at random, that is held out of the fit so that
                thresholds have a meaning; 0 fits all. A class all of whose images are drawn keeps them.
            seed: Of that draw.
            batch_size: As `embed_images`.
            skip_unreadable: Go on without images that cannot be read, and list them in the provenance.
            cache: As `embed_images`.
            track: Opens a progress display for each stage.

        Warns:
            Where the images of a class do not differ (one image, say) and nothing is shrunk: its deviations
            are then 1e-8, and scores are differences of cosines times 1e8.

        Raises:
            ValueError: images that are neither, labels or names that do not fit, a class without images, k
                larger than the dictionary, images that cannot be read (all named) unless they are skipped.
        """
        known = labelled(images, labels, class_names)
        phrases, dictionary_name = phrases_of(dictionary)
        overlap = sorted(find_overlap(phrases, known.class_names))
        if exclude_labels:
            phrases = without_labels(phrases, known.class_names)
        # Texts first: a prompt that is too long should not cost the images.
        texts = (*fill_prompt(prompt, known.class_names), *prompts(prompt, phrases))
        with track("texts", len(texts)) as progress:
            embedded_texts = embed_texts(model, texts, cache=cache, progress=progress)
        with track("images", len(known.labels)) as progress:
            embeddings, rows, unreadable = embed(
                model, known.images, preprocess, batch_size, skip_unreadable, cache, progress
            )
        classes = len(known.class_names)
        return cls._fitted(
            embeddings,
            known.labels[rows],
            calibration=calibration,
            seed=seed,
            made_with={
                "model": model_facts(model, preprocess),
                "dictionary": {
                    "name": dictionary_name,
                    "sha256": dictionary_hash(phrases),
                    "labels_found": overlap,
                    "labels_excluded": exclude_labels,
                },
                "images": {"source": known.source, "unreadable": list(unreadable)},
            },
            class_names=known.class_names,
            label_embeddings=embedded_texts[:classes],
            dictionary=phrases,
            dictionary_embeddings=embedded_texts[classes:],
            k=k,
            weight=float(weight),
            shrinkage=float(shrinkage),
            prompt=prompt,
            preprocess=preprocess,
            model=model,
        )

    @classmethod
    def fit_embeddings(
        cls,
        embeddings: Float[np.ndarray | jax.Array, "images dim"],
        labels: np.ndarray | Sequence[int] | None,
        class_names: Sequence[str],
        label_embeddings: Float[np.ndarray | jax.Array, "classes dim"],
        dictionary: Phrases,
        dictionary_embeddings: Float[np.ndarray | jax.Array, "texts dim"],
        *,
        prompt: str = PROMPT,
        k: int = 10,
        weight: float = 0.5,
        shrinkage: float = 0.0,
        calibration: float = CALIBRATION,
        seed: int = 0,
        made_with: Mapping[str, Any] | None = None,
    ) -> "Detector":
        """Fits a detector to embeddings that were made elsewhere; it takes embeddings only.

        Args:
            embeddings: Of normal images [images, dim], rows of unit norm.
            labels: As `fit`.
            class_names: What the classes are called.
            label_embeddings: Of each class's prompt.
            dictionary: The phrases, for explanations.
            dictionary_embeddings: Of each phrase's prompt.
            prompt: The template that they were made with, for the record.
            k: Phrases per image.
            weight: lambda.
            shrinkage: n0.
            calibration: As `fit`.
            seed: As `fit`.
            made_with: For the provenance; JSON values.

        Raises:
            ValueError: as `fit`; embeddings that are not finite or not of unit norm.
        """
        known = labelled(embeddings, labels, class_names)
        phrases, dictionary_name = phrases_of(dictionary)
        return cls._fitted(
            float32("embeddings", embeddings),
            known.labels,
            calibration=calibration,
            seed=seed,
            made_with={
                "model": None,
                "dictionary": {"name": dictionary_name, "sha256": dictionary_hash(phrases)},
                "images": {"source": known.source, "unreadable": []},
                **(made_with or {}),
            },
            class_names=known.class_names,
            label_embeddings=float32("label_embeddings", label_embeddings),
            dictionary=phrases,
            dictionary_embeddings=float32("dictionary_embeddings", dictionary_embeddings),
            k=k,
            weight=float(weight),
            shrinkage=float(shrinkage),
            prompt=prompt,
        )

    @classmethod
    def _fitted(
        cls,
        embeddings: Float[np.ndarray, "images dim"],
        labels: np.ndarray,
        *,
        calibration: float,
        seed: int,
        made_with: dict[str, Any],
        **fields: Any,
    ) -> "Detector":
        classes = len(fields["class_names"])
        _check_every_class(labels, fields["class_names"])
        held_out = hold_out(labels, classes, calibration, seed)
        made_with = made_with | {
            "fitted": image_counts(labels[~held_out], fields["class_names"]),
            "calibration": {"share": calibration, "seed": seed, "images": int(held_out.sum())},
            "changes": [],
            "versions": package_versions(),
        }
        detector = cls(
            moments=fit_moments(embeddings[~held_out], labels[~held_out], num_classes=classes),
            calibration_embeddings=embeddings[held_out],
            calibration_labels=labels[held_out],
            provenance=made_with,
            **fields,
        )
        detector._warn_of_no_spread()
        return detector

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the detector's file (`detector_file.py`), whole or not at all.

        Raises:
            ValueError, OSError: it cannot be written; an earlier file of that name stays.
        """
        with replacing(Path(path)) as file:
            file.write(encode_detector(self))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model | str | Path | None = None,
        *,
        embeddings_only: bool = False,
    ) -> "Detector":
        """Reads a detector's file, and its encoder.

        Args:
            path: What `save` wrote.
            model: The encoder, or where to load it from; by default what the file names.
            embeddings_only: Load no encoder: the detector then takes embeddings.

        Raises:
            ValueError: the file is damaged or no detector; the encoder is not the one that was fitted with
                (says what differs) or cannot be found.
            OSError: the file cannot be read.
        """
        state = decode_detector(Path(path).read_bytes(), os.fspath(path))
        detector = cls(**state_of(state))
        facts = state.provenance.get("model")
        if embeddings_only or (model is None and not isinstance(facts, dict)):
            return detector
        if not isinstance(model, Model):
            recorded = facts if isinstance(facts, dict) else {}
            # A name given is that of another place; the revision belongs to the name recorded.
            revision = recorded.get("revision") if model is None else None
            name = recorded["name"] if model is None else model
            if revision is not None and Path(name).is_dir():
                revision = None
            model = load_model(name, dtype=recorded.get("dtype", "float32"), revision=revision)
        return detector.with_model(model)

    def describe(self) -> dict[str, Any]:
        """What the detector is, as JSON values."""
        calibrated = image_counts(self.calibration_labels, self.class_names)
        return {
            "classes": [
                {"name": name, "fitted": int(n), "calibration": calibrated[name]}
                for name, n in zip(self.class_names, np.asarray(self.moments.count), strict=True)
            ],
            "dictionary": len(self.dictionary),
            "embedding_dim": self.embedding_dim,
            "k": self.k,
            "lambda": self.weight,
            "shrinkage": self.shrinkage,
            "prompt": self.prompt,
            "preprocess": self.preprocess,
            "smallest_alpha": 1 / (len(self.calibration_labels) + 1),
            "provenance": dict(self.provenance),
        }


def _check_every_class(labels: np.ndarray, class_names: Sequence[str]) -> None:
    empty = [name for name, n in image_counts(labels, class_names).items() if not n]
    if empty:
        raise ValueError(f"expected normal images of every class, got none of {', '.join(empty)}")
