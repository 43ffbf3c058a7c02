"""The detector: fit, score, threshold, explain, save, load.

    det = Detector.fit(model, images, labels, class_names)    normal images; a fifth is held out
    det.score(images)                   BLISS, higher = more anomalous (equation in `scores/bliss.py`)
    det.predict(images, alpha=0.05)     at most 5 % of normal images are flagged (`scores/conformal.py`)
    det.explain(images)                 nearest normal class, both parts of the score, nearest phrases
    det.save("det.safetensors")         one file (`file_format.py`)

A detector is immutable: methods that add images, classes or phrases return another detector. Its arrays are
public: `det.moments`, `det.label_embeddings`, `det.prepared`, ... are arguments of the pure functions of
`bliss_jax.scores`.

Every method that takes images also takes embeddings by the same model: a floating [n, dim] array.
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
    """A fitted detector: its state and, optionally, its encoder."""

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
            images: Normal images; see `Source`. A data set or folder has its own labels and class names.
            labels: Class of each image, a position in `class_names`. Optional for a single class.
            class_names: Names of the classes, as the prompt spells them.
            dictionary: Phrases that represent text in general; see `Phrases`.
            prompt: Template with `{label}`, for class names and phrases.
            preprocess: Name of the preprocessing statistics, as in `Model.encode_images`.
            exclude_labels: Whether to remove phrases that equal a class name from the dictionary.
            k: Number of dictionary phrases per image.
            weight: lambda, the weight of the external score.
            shrinkage: n0 of `bliss_score`; 20 is a good choice for few images per class.
            calibration: Share of the images that is held out of the fit, chosen at random, to calibrate
                thresholds. 0 fits all images. If all images of a class are chosen, the class keeps them.
            seed: Seed of that random choice.
            batch_size: Images per call of the encoder, as in `embed_images`.
            skip_unreadable: Whether to continue without images that cannot be read; the provenance lists
                them.
            cache: Folder for finished embeddings, as in `embed_images`.
            track: Opens a progress display for each stage.

        Warns:
            UserWarning: All images of a class are identical (e.g. there is one image) and there is no
                shrinkage. The class's standard deviations are then 1e-8, and scores are differences of
                cosines times 1e8.

        Raises:
            ValueError: The images are of an unknown kind; labels or names do not match them; a class has no
                images; k is larger than the dictionary; or images cannot be read and `skip_unreadable` is
                false (the message names all of them).
        """
        known = labelled(images, labels, class_names)
        phrases, dictionary_name = phrases_of(dictionary)
        overlap = sorted(find_overlap(phrases, known.class_names))
        if exclude_labels:
            phrases = without_labels(phrases, known.class_names)
        # Texts first, so that a prompt that is too long is an error before the images are embedded.
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
        """Fits a detector to precomputed embeddings. The detector has no encoder.

        Args:
            embeddings: Embeddings of normal images [images, dim], rows of unit norm.
            labels: Class of each row, as in `fit`.
            class_names: Names of the classes.
            label_embeddings: Embedding of each class's prompt [classes, dim].
            dictionary: Phrases, as explanations print them.
            dictionary_embeddings: Embedding of each phrase's prompt [texts, dim].
            prompt: Template of the prompts, for the provenance.
            k: Number of dictionary phrases per image.
            weight: lambda, the weight of the external score.
            shrinkage: n0 of `bliss_score`.
            calibration: Share of the rows that is held out of the fit, as in `fit`.
            seed: Seed of that random choice.
            made_with: Further provenance; JSON values.

        Raises:
            ValueError: Embeddings are not finite or not of unit norm, or one of the reasons listed in `fit`.
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
        """Writes the detector to a file (`file_format.py`), completely or not at all.

        Raises:
            ValueError, OSError: The file cannot be written. An earlier file of that name stays.
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
        """Reads a detector's file and loads its encoder.

        Args:
            path: A file that `save` wrote.
            model: The encoder, or the name or directory to load it from. None loads the encoder that the
                file names.
            embeddings_only: Whether to load no encoder; the detector then accepts embeddings only.

        Raises:
            ValueError: The file is damaged or is not a detector; or the encoder cannot be found or is not
                the encoder of the fit (the message says what differs).
            OSError: The file cannot be read.
        """
        state = decode_detector(Path(path).read_bytes(), os.fspath(path))
        detector = cls(**state_of(state))
        facts = state.provenance.get("model")
        if embeddings_only or (model is None and not isinstance(facts, dict)):
            return detector
        if not isinstance(model, Model):
            recorded = facts if isinstance(facts, dict) else {}
            # The recorded revision belongs to the recorded name, not to a name that the caller gives.
            revision = recorded.get("revision") if model is None else None
            name = recorded["name"] if model is None else model
            if revision is not None and Path(name).is_dir():
                revision = None
            model = load_model(name, dtype=recorded.get("dtype", "float32"), revision=revision)
        return detector.with_model(model)

    def describe(self) -> dict[str, Any]:
        """Returns the detector's classes, sizes, settings and provenance as JSON values."""
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
        raise ValueError(f"expected images of every normal class, got none of {', '.join(empty)}")
