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
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.conformal import (
    benjamini_hochberg,
    check_calibration_size,
    conformal_p_values,
    conformal_threshold,
)
from bliss_jax.datasets import ImageDataset
from bliss_jax.detector_file import decode_detector, encode_detector, state_of
from bliss_jax.detector_inputs import (
    Images,
    Phrases,
    Source,
    are_embeddings,
    embed,
    float32,
    hold_out,
    labelled,
    phrases_of,
    prompts,
    unlabelled,
)
from bliss_jax.detector_state import DetectorState
from bliss_jax.embed import BATCH_SIZE, Track, embed_texts
from bliss_jax.files import replacing
from bliss_jax.models import Model, load_model
from bliss_jax.scores import (
    PreparedBliss,
    bliss_score_prepared,
    explain_bliss_prepared,
    fit_moments,
    merge_moments,
    prepare_bliss,
)
from bliss_jax.text import (
    PROMPT,
    dictionary_hash,
    fill_prompt,
    find_overlap,
)
from bliss_jax.text import exclude_labels as without_labels
from bliss_jax.versions import versions

Control = Literal["false-alarms", "fdr"]

CALIBRATION = 0.2
"""Share of the images that `fit` holds out for thresholds."""

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
class Detector(DetectorState):
    """A fitted detector: its state, and the encoder where it has one."""

    model: Model | None = None
    """Without it the detector takes embeddings only."""

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
                "model": _model_facts(model, preprocess),
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
            "fitted": _counts(labels[~held_out], fields["class_names"]),
            "calibration": {"share": calibration, "seed": seed, "images": int(held_out.sum())},
            "changes": [],
            "versions": versions(),
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

    # What is asked of a detector.

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
        `bliss_jax.conformal` has the source.

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

    # What makes another detector of it.

    def update(
        self, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> "Detector":
        """With more normal images of its classes: as if they had been fitted at once, up to rounding.

        None of them is held out, and the calibration images stay.

        Args:
            images: As `fit`; the classes of a data set or folder are found by their names.
            labels: Positions in `class_names`; may be left out for one class.

        Raises:
            ValueError: as `fit`; a class that the detector does not have.
        """
        embeddings, labels, source = self._of_own_classes(images, labels)
        more = fit_moments(embeddings, labels, num_classes=self.num_classes)
        change = {"update": _counts(labels, self.class_names), "source": source}
        return self._changed(change, moments=merge_moments(self.moments, more))

    def calibrate(
        self, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> "Detector":
        """With other calibration images: normal ones, drawn like those to come, that were not fitted.

        Args:
            images: As `update`. They replace those that were held out.
            labels: As `update`.

        Raises:
            ValueError: as `update`.
        """
        embeddings, labels, source = self._of_own_classes(images, labels)
        change = {"calibrate": _counts(labels, self.class_names), "source": source}
        return self._changed(change, calibration_embeddings=embeddings, calibration_labels=labels)

    def add_class(
        self,
        name: str,
        images: Images,
        *,
        label_embedding: Float[np.ndarray | jax.Array, " dim"] | None = None,
        calibration: float = CALIBRATION,
        seed: int = 0,
    ) -> "Detector":
        """With one more normal class, the last in order.

        Args:
            name: Of the class.
            images: Normal images of it.
            label_embedding: Of its prompt; without it the encoder makes it.
            calibration: As `fit`, of these images: without any of them the rate of false alarms is kept for
                the other classes only.
            seed: As `fit`.

        Raises:
            ValueError: the detector has a class of that name; as `fit`.
        """
        if name in self.class_names:
            raise ValueError(f"there is a class {name!r} already; update adds images to it")
        if label_embedding is None:
            labels = self._embed_texts(fill_prompt(self.prompt, [name]))
        else:
            labels = float32("label_embedding", np.asarray(label_embedding)[None])
        embeddings = self._embeddings(images)
        held_out = hold_out(np.zeros(len(embeddings), np.int32), 1, calibration, seed)
        new = fit_moments(
            embeddings[~held_out], np.zeros(int((~held_out).sum()), np.int32), num_classes=1
        )
        own = np.full(int(held_out.sum()), self.num_classes, np.int32)
        detector = self._changed(
            {"add_class": name, "fitted": int(new.count[0]), "calibration": len(own)},
            class_names=(*self.class_names, name),
            moments=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self.moments, new),
            label_embeddings=np.concatenate([self.label_embeddings, labels]),
            calibration_embeddings=np.concatenate(
                [self.calibration_embeddings, embeddings[held_out]]
            ),
            calibration_labels=np.concatenate([self.calibration_labels, own]),
        )
        detector._warn_of_no_spread()
        return detector

    def remove_class(self, name: str) -> "Detector":
        """Without a class: its images are no longer normal, nor are they among the calibration images.

        Raises:
            ValueError: there is no such class, or no other.
        """
        c = self._class_id(name)
        if self.num_classes == 1:
            raise ValueError(f"{name!r} is the only class; a detector needs one")
        kept = np.arange(self.num_classes) != c
        calibration = self.calibration_labels != c
        labels = self.calibration_labels[calibration]
        return self._changed(
            {"remove_class": name},
            class_names=tuple(other for other in self.class_names if other != name),
            moments=jax.tree.map(lambda leaf: jnp.asarray(leaf)[kept], self.moments),
            label_embeddings=self.label_embeddings[kept],
            calibration_embeddings=self.calibration_embeddings[calibration],
            calibration_labels=(labels - (labels > c)).astype(np.int32),
        )

    def with_dictionary(
        self,
        dictionary: Phrases,
        dictionary_embeddings: Float[np.ndarray | jax.Array, "texts dim"] | None = None,
    ) -> "Detector":
        """With other phrases; nothing is fitted anew.

        Args:
            dictionary: See `Phrases`.
            dictionary_embeddings: Of their prompts; without them the encoder makes them.

        Raises:
            ValueError: fewer phrases than k; no encoder and no embeddings.
        """
        phrases, name = phrases_of(dictionary)
        if dictionary_embeddings is None:
            embedded = self._embed_texts(prompts(self.prompt, phrases))
        else:
            embedded = float32("dictionary_embeddings", dictionary_embeddings)
        facts = {"name": name, "sha256": dictionary_hash(phrases)}
        return self._changed(
            {"with_dictionary": facts}, dictionary=phrases, dictionary_embeddings=embedded
        )

    def with_labels(
        self,
        class_names: Sequence[str],
        label_embeddings: Float[np.ndarray | jax.Array, "classes dim"] | None = None,
    ) -> "Detector":
        """With other names of the same classes, in their order; nothing is fitted anew.

        Args:
            class_names: One for each class.
            label_embeddings: Of their prompts; without them the encoder makes them.

        Raises:
            ValueError: another number of names; no encoder and no embeddings.
        """
        prompts = fill_prompt(self.prompt, tuple(class_names))
        if len(prompts) != self.num_classes:
            raise ValueError(
                f"class_names: expected a name for each of the {self.num_classes} classes, "
                f"got {len(prompts)}"
            )
        if label_embeddings is None:
            embedded = self._embed_texts(prompts)
        else:
            embedded = float32("label_embeddings", label_embeddings)
        return self._changed(
            {"with_labels": list(class_names)},
            class_names=tuple(class_names),
            label_embeddings=embedded,
        )

    def with_settings(
        self,
        *,
        k: int | None = None,
        weight: float | None = None,
        shrinkage: float | None = None,
    ) -> "Detector":
        """With other k, lambda or shrinkage; nothing is fitted anew.

        Raises:
            ValueError: a value out of range.
        """
        given = {"k": k, "weight": weight, "shrinkage": shrinkage}
        given = {name: value for name, value in given.items() if value is not None}
        return self._changed({"with_settings": given}, **given)

    def with_model(self, model: Model) -> "Detector":
        """With an encoder, which must be the one that the detector was fitted with.

        Raises:
            ValueError: it is another one; says what differs.
        """
        self._check_model(model)
        return replace(self, model=model)

    # One file.

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
        calibrated = _counts(self.calibration_labels, self.class_names)
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

    # What the methods above share.

    def _changed(self, change: dict[str, Any], **fields: Any) -> "Detector":
        changes = [*self.provenance.get("changes", []), change]
        return replace(self, provenance={**self.provenance, "changes": changes}, **fields)

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

    def _of_own_classes(
        self, images: Source, labels: np.ndarray | Sequence[int] | None
    ) -> tuple[Float[np.ndarray, "images dim"], np.ndarray, str]:
        """Embeddings, labels as positions in `class_names`, and where they came from."""
        own = None if isinstance(images, ImageDataset | str | os.PathLike) else self.class_names
        known = labelled(images, labels, own)
        used = sorted(set(known.labels.tolist()))
        position = {c: self._class_id(known.class_names[c]) for c in used}
        mapped = np.array([position[c] for c in known.labels.tolist()], np.int32)
        return self._embeddings(known.images), mapped, known.source

    def _class_id(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(f"no class {name!r} in this detector: {', '.join(self.class_names)}")
        return self.class_names.index(name)

    def _check_calibration(self, alpha: float | None = None) -> None:
        m = len(self.calibration_labels)
        if not m:
            raise ValueError(
                "this detector has no calibration images, so that its scores have no threshold: fit it with "
                "calibration=0.2, or give it normal images that were not fitted (calibrate)"
            )
        if alpha is not None:
            check_calibration_size(m, alpha)

    def _check_model(self, model: Model) -> None:
        fitted = self.provenance.get("model")
        if not isinstance(fitted, dict):
            if model.embedding_dim != self.embedding_dim:
                raise ValueError(
                    f"{model.name} makes embeddings of {model.embedding_dim} numbers, the detector was "
                    f"fitted with {self.embedding_dim}"
                )
            return
        found = _model_facts(model, self.preprocess)
        decisive = ("weights_sha256", "dtype", "preprocessing")
        differs = [
            f"  {name}: fitted with {fitted.get(name)}, given {found[name]}"
            for name in decisive
            if fitted.get(name) != found[name]
        ]
        if differs:
            raise ValueError(
                f"{model.name} is not the encoder that the detector was fitted with, "
                f"{fitted.get('name')!r}:\n" + "\n".join(differs)
            )

    def _warn_of_no_spread(self) -> None:
        spread = np.trace(np.asarray(self.moments.cov), axis1=1, axis2=2)
        alike = [n for n, s in zip(self.class_names, spread, strict=True) if s < _NO_SPREAD]
        if alike and (not self.shrinkage or len(alike) == self.num_classes):
            warnings.warn(
                f"the fitted images of {', '.join(alike[:5])} do not differ from each other, so that their "
                "deviations are 0 and scores are differences of cosines times 1e8; give more images, or "
                "with several classes shrinkage=20",
                stacklevel=4,
            )


_NO_SPREAD = 1e-10
"""Mean squared distance of embeddings to their mean that is rounding, not spread."""


def _check_every_class(labels: np.ndarray, class_names: Sequence[str]) -> None:
    empty = [name for name, n in _counts(labels, class_names).items() if not n]
    if empty:
        raise ValueError(f"expected normal images of every class, got none of {', '.join(empty)}")


def _counts(labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(class_names))
    return dict(zip(class_names, counts.tolist(), strict=True))


def _model_facts(model: Model, preprocess: str | None) -> dict[str, Any]:
    """What an embedding depends on, as JSON values."""
    return {
        "name": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_hash,
        "dtype": model.dtype,
        "preprocessing": model.preprocessing_with(preprocess).describe(),
    }


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
