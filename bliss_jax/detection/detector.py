"""The detector: fit, score, threshold, explain, save, load.

    det = Detector.fit(model, images, labels, class_names)    normal images; a fifth is held out
    det.score(images)                   BLISS, higher = more anomalous (equation in `scores/bliss.py`); `fit` takes
                                        score=NAME for another score
    det.predict(images, alpha=0.05)     at most 5 % of normal images are flagged (`scores/conformal.py`)
    det.explain(images)                 nearest normal class, both parts of the score, nearest phrases
    det.save("det.safetensors")         one file (`file_format.py`)
    det.export("det.npz")               a program that runs with JAX alone (`export.py`)

A detector is immutable: methods that add images, classes or phrases return another detector. Its arrays are
public: `det.moments`, `det.label_embeddings`, `det.prepared`, ... are arguments of the pure functions of
`bliss_jax.scores`.

Every method that takes images also takes embeddings by the same model: a floating [n, dim] array.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bliss_jax.datasets import AUTO, Decoding, ImageDataset
from bliss_jax.detection.calibration import (
    near_duplicate_warning,
    near_duplicates,
    split_for_calibration,
)
from bliss_jax.detection.changes import CALIBRATION, DetectorChanges, image_counts, model_facts
from bliss_jax.detection.chosen_score import (
    BLISS,
    WITHOUT_IMAGES,
    ScoreLike,
    check_score,
    is_of_library,
    needs_images,
    record_of,
    score_arrays,
    score_facts,
    texts_of,
)
from bliss_jax.detection.encoding import default_images_per_device
from bliss_jax.detection.file_format import decode_detector, encode_detector, state_of
from bliss_jax.detection.fit_checks import check_fit
from bliss_jax.detection.fit_images import (
    check_every_class,
    decoding_of_fit,
    embed_labelled,
    with_class_names,
)
from bliss_jax.detection.inputs import (
    Labelled,
    Phrases,
    Source,
    float32,
    labelled,
    phrases_of,
    without_images,
)
from bliss_jax.detection.state import given_score
from bliss_jax.detection.tuned import Tune, tuned_settings
from bliss_jax.embedding import AnyEncoder, Track, embed_prompts, embed_texts
from bliss_jax.scores import Score, fit_moments
from bliss_jax.storage import package_versions, replacing
from bliss_jax.text import (
    PROMPT,
    Prompt,
    as_prompt,
    dictionary_hash,
    find_overlap,
    prompt_as_json,
)
from bliss_jax.text import exclude_labels as without_labels

_HeldOut = tuple[np.ndarray, np.ndarray, str]
"""Embeddings and labels of calibration images, and their source."""


@dataclass(frozen=True, eq=False, repr=False)
class Detector(DetectorChanges):
    """A fitted detector: its state and, optionally, its encoder."""

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (", ..." if self.num_classes > 3 else "")
        encoder = "no encoder" if self.model is None else f"encoder {self.model.name!r}"
        return (
            f"Detector({self.num_classes} classes ({names}), {int(np.sum(self.moments.count)):,} fitted and "
            f"{len(self.calibration_labels):,} calibration images, {len(self.dictionary):,} phrases, "
            f"score {self.score_name!r}, k={self.k}, "
            f"weight={self.weight:g}, shrinkage={self.shrinkage:g}, {encoder})"
        )

    @classmethod
    def fit(
        cls,
        model: AnyEncoder,
        images: Source | None,
        labels: np.ndarray | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        *,
        score: ScoreLike | None = None,
        dictionary: Phrases = "imagenet1k",
        prompt: Prompt = PROMPT,
        preprocess: str | None = None,
        exclude_labels: bool = False,
        k: int = 10,
        weight: float = 0.5,
        shrinkage: float = 0.0,
        tune: Tune | None = None,
        calibration: float | Source = CALIBRATION,
        groups: Sequence[Hashable] | str | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        background: str = AUTO,
        bit_depth: int | None = None,
        skip_unreadable: bool = False,
        cache: Path | None = None,
        track: Track = lambda what, total: nullcontext(lambda done: None),
    ) -> "Detector":
        """Fits a detector to normal images.

        Args:
            model: A `Model` or another `Encoder`.
            images: Normal images; see `Source`. A data set or folder has its own labels and class names. None fits a
                detector from texts alone, with a score that needs no images.
            labels: Class of each image, a position in `class_names`. Optional for a single class.
            class_names: Names of the classes, as the prompt spells them.
            score: Name of a score of the library, a `Score`, or a function whose parameters are names of
                `bliss_jax.scores.INPUTS`. None for "bliss", or "text_bliss" without images.
            dictionary: Phrases that represent text in general; see `Phrases`.
            prompt: Template with `{label}`, for class names and phrases; the name of a set of templates, "clip-7" or
                "clip-80"; or several of these. The embeddings of several templates are averaged (`embed_prompts`).
            preprocess: Name of the preprocessing statistics, as in `Model.encode_images`.
            exclude_labels: Whether to remove phrases that equal a class name from the dictionary.
            k: Number of dictionary phrases per image.
            weight: lambda, the weight of the external score.
            shrinkage: n0 of `bliss_score`; 20 is a good choice for few images per class.
            tune: Function that chooses k, weight and shrinkage from the fitted images: `bliss_jax.tune`, which keeps
                the given values if no others are clearly better, or another one with its signature. The provenance
                has the choice and its estimates.
            calibration: Share of the images that is held out of the fit, chosen at random, to calibrate
                thresholds. 0 fits all images. If all images of a class are chosen, the class keeps them.
                Alternatively, normal images that are not in `images`: a data set or a folder with classes of the
                same names, or, for a single class, images of any kind. Without images there is no share to hold out,
                so thresholds and p-values need such images, or a later call of `calibrate`.
            groups: Group of each image, e.g. its scene, camera or patient; "folder" for the folder of its
                file; or a regular expression that finds the group in its file name. Groups are held out as a
                whole, and one image of each held-out group calibrates. Without groups, near-duplicates such
                as the frames of a video make thresholds too low.
            seed: Seed of the random choice of held-out images or groups.
            batch_size: Images per device and call of the encoder. The detector always uses this number,
                because it decides the last bits of a score. None for 16 on accelerators, and half the number
                of cores (at most 16) on CPUs.
            background: Colour behind transparent pixels of image files, as in `read_image`.
            bit_depth: Significant bits of 16-bit image files, as in `read_image`.
            skip_unreadable: Whether to continue without images that cannot be read; the provenance lists
                them.
            cache: Folder for finished embeddings, as in `embed_images`.
            track: Opens a progress display for each stage.

        Warns:
            UserWarning: All images of a class are identical (e.g. there is one image) and there is no
                shrinkage. The class's standard deviations are then 1e-8, and scores are differences of
                cosines times 1e8.
            UserWarning: 1 % or more of the calibration images are near-duplicates of fitted images.

        Raises:
            ValueError: The score is unknown or cannot be computed from these images; the images are of an unknown
                kind; labels or names do not match them; a class has no
                images; k is larger than the dictionary; or images cannot be read and `skip_unreadable` is
                false (the message names all of them).
        """
        decoding = Decoding(background, bit_depth)
        known = (
            without_images(class_names)
            if images is None
            else labelled(
                images, labels, class_names, decoding=decoding, skip_unreadable=skip_unreadable
            )
        )
        record = record_of(
            score or (WITHOUT_IMAGES if images is None else BLISS), images=len(known.labels) > 0
        )
        phrases, dictionary_name = phrases_of(dictionary)
        overlap = sorted(find_overlap(phrases, known.class_names))
        if exclude_labels:
            phrases = without_labels(phrases, known.class_names)
        groups = check_fit(
            phrases=len(phrases),
            k=k,
            weight=weight,
            shrinkage=shrinkage,
            calibration=calibration,
            groups=groups,
            images=known.images,
            labels=known.labels,
            classes=len(known.class_names),
        )
        # Texts first, so that a prompt that is too long is an error before the images are embedded.
        texts = (*known.class_names, *phrases)
        of_score = texts_of(record, known.class_names)
        with track("texts", len(texts)) as progress:
            embedded_texts = embed_prompts(
                model, prompt, texts, allow_repeats=True, cache=cache, progress=progress
            )
        further_texts = {name: embed_texts(model, own) for name, own in of_score.items()}
        number = default_images_per_device() if batch_size is None else batch_size
        if number < 1:
            raise ValueError(f"batch_size: expected at least 1, got {number}")

        def embed(of: Labelled, what: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
            return embed_labelled(
                model,
                of,
                what,
                preprocess=preprocess,
                images_per_device=number,
                skip_unreadable=skip_unreadable,
                cache=cache,
                track=track,
            )

        embeddings, rows, unreadable = embed(known, "images")
        classes = len(known.class_names)
        share_or_images: float | _HeldOut
        if isinstance(calibration, float | int):
            share_or_images = calibration
        else:
            own = (
                None
                if isinstance(calibration, ImageDataset | str | os.PathLike)
                else known.class_names
            )
            other = labelled(
                calibration, None, own, decoding=decoding, skip_unreadable=skip_unreadable
            )
            other = with_class_names(other, known.class_names)
            calibrating, positions, failed = embed(other, "calibration images")
            unreadable += failed
            share_or_images = calibrating, other.labels[positions], other.source
        return cls._fitted(
            embeddings,
            known.labels[rows],
            calibration=share_or_images,
            groups=None if groups is None else [groups[i] for i in rows],
            seed=seed,
            tune=tune,
            record=record,
            texts=further_texts,
            made_with={
                "model": model_facts(model, preprocess),
                "embedding": {"images_per_device": number, "platform": jax.default_backend()},
                "dictionary": {
                    "name": dictionary_name,
                    "sha256": dictionary_hash(phrases),
                    "labels_found": overlap,
                    "labels_excluded": exclude_labels,
                },
                "images": {
                    "source": known.source,
                    "decoding": decoding_of_fit(known.images, decoding).describe(),
                    "unreadable": unreadable,
                },
            },
            class_names=known.class_names,
            label_embeddings=embedded_texts[:classes],
            dictionary=phrases,
            dictionary_embeddings=embedded_texts[classes:],
            k=k,
            weight=float(weight),
            shrinkage=float(shrinkage),
            prompt=as_prompt(prompt),
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
        score: ScoreLike = BLISS,
        prompt: Prompt = PROMPT,
        k: int = 10,
        weight: float = 0.5,
        shrinkage: float = 0.0,
        tune: Tune | None = None,
        calibration: float = CALIBRATION,
        groups: Sequence[Hashable] | None = None,
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
            score: Score, as in `fit`. 0 embeddings are allowed if it needs no images.
            prompt: Template or templates of the prompts, for the provenance.
            k: Number of dictionary phrases per image.
            weight: lambda, the weight of the external score.
            shrinkage: n0 of `bliss_score`.
            tune: Function that chooses k, weight and shrinkage, as in `fit`.
            calibration: Share of the rows that is held out of the fit, as in `fit`.
            groups: Group of each row, as in `fit`.
            seed: Seed of the random choice of held-out rows or groups.
            made_with: Further provenance; JSON values.

        Raises:
            ValueError: Embeddings are not finite or not of unit norm, or one of the reasons listed in `fit`.
        """
        known = labelled(embeddings, labels, class_names)
        record = record_of(score, images=len(known.labels) > 0)
        phrases, dictionary_name = phrases_of(dictionary)
        return cls._fitted(
            float32("embeddings", embeddings),
            known.labels,
            calibration=calibration,
            groups=groups,
            seed=seed,
            tune=tune,
            record=record,
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
            prompt=as_prompt(prompt),
        )

    @classmethod
    def _fitted(
        cls,
        embeddings: Float[np.ndarray, "images dim"],
        labels: np.ndarray,
        *,
        calibration: "float | _HeldOut",
        groups: Sequence[Hashable] | None,
        seed: int,
        tune: Tune | None,
        record: Score,
        made_with: dict[str, Any],
        texts: Mapping[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> "Detector":
        names = fields["class_names"]
        if len(labels):
            check_every_class(labels, names)
        if isinstance(calibration, tuple):
            held_out, held_out_labels, source = calibration
            fitted = np.ones(len(labels), bool)
            facts: dict[str, Any] = {"source": source}
        else:
            split = split_for_calibration(labels, len(names), calibration, seed, groups)
            fitted, facts = split.fitted, split.facts
            held_out, held_out_labels = embeddings[split.calibration], labels[split.calibration]
        if tune is not None:
            of_fit = embeddings[fitted], labels[fitted]
            settings, made_with["tuning"] = tuned_settings(tune, record.name, *of_fit, fields)
            fields |= settings
        moments = fit_moments(embeddings[fitted], labels[fitted], num_classes=len(names))
        spread = np.trace(np.asarray(moments.cov), axis1=1, axis2=2)
        facts |= {"images": len(held_out)}
        facts |= near_duplicates(held_out, held_out_labels, embeddings[fitted], spread)
        if not is_of_library(record):
            fields["own_score"] = record
        made_with = made_with | {
            **score_facts(record),
            "fitted": image_counts(labels[fitted], names),
            "calibration": facts,
            "changes": [],
            "versions": package_versions(),
        }
        detector = cls(
            moments=moments,
            calibration_embeddings=held_out,
            calibration_labels=held_out_labels,
            score_name=record.name,
            score_arrays=score_arrays(record, texts or {}, embeddings[fitted], labels[fitted]),
            provenance=made_with,
            **fields,
        )
        check_score(record, detector)
        if needs_images(record):
            detector._warn_of_no_spread()
        if (warning := near_duplicate_warning(facts)) is not None:
            warnings.warn(warning, NearDuplicateWarning, stacklevel=3)
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
        model: AnyEncoder | str | Path | None = None,
        *,
        embeddings_only: bool = False,
        score: Score | Callable[..., Any] | None = None,
    ) -> "Detector":
        """Reads a detector's file and loads its encoder.

        Args:
            path: A file that `save` wrote.
            model: The encoder, or the name or directory to load it from. None loads the encoder that the
                file names.
            embeddings_only: Whether to load no encoder; the detector then accepts embeddings only.
            score: The function or record of the score, if it is not a score of the library. The file contains its
                name only, because reading a file must not run code that the file names.

        Raises:
            ValueError: The file is damaged or is not a detector; or the encoder cannot be found or is not
                the encoder of the fit (the message says what differs); or the score is not the score of the fit.
            OSError: The file cannot be read.
        """
        state = decode_detector(Path(path).read_bytes(), os.fspath(path))
        detector = cls(**state_of(state), own_score=given_score(state, score))
        facts = state.provenance.get("model")
        if not embeddings_only:
            _ = detector._record  # raises for a score that is neither given nor of the library
        if embeddings_only or (model is None and not isinstance(facts, dict)):
            return detector
        if model is None or isinstance(model, str | Path):
            from bliss_jax.models import load_model

            recorded = facts if isinstance(facts, dict) else {}
            if model is None and "fingerprint" in recorded:
                raise ValueError(
                    f"{os.fspath(path)}: fitted with the encoder {recorded.get('name')!r}, which is not a model "
                    "of this library: pass it to Detector.load(path, model=...)"
                )
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
            "score": self.score_name,
            "dictionary": len(self.dictionary),
            "embedding_dim": self.embedding_dim,
            "k": self.k,
            "lambda": self.weight,
            "shrinkage": self.shrinkage,
            "prompt": prompt_as_json(self.prompt),
            "preprocess": self.preprocess,
            "smallest_alpha": 1 / (len(self.calibration_labels) + 1),
            "provenance": dict(self.provenance),
        }


class NearDuplicateWarning(UserWarning):
    """Warning that calibration images are near-duplicates of fitted images."""
