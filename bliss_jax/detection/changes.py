"""Methods that derive a new detector from a fitted one: more images, other classes, texts or settings."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bliss_jax.datasets import ImageDataset
from bliss_jax.detection.answers import DetectorAnswers
from bliss_jax.detection.calibration import split_for_calibration
from bliss_jax.detection.chosen_score import (
    ScoreLike,
    check_score,
    is_of_library,
    record_of,
    score_arrays,
    score_facts,
    texts_of,
)
from bliss_jax.detection.inputs import (
    Images,
    Phrases,
    Source,
    float32,
    labelled,
    phrases_of,
)
from bliss_jax.embedding import AnyEncoder, encoder_facts, preprocessing_facts
from bliss_jax.scores import fit_moments, merge_moments
from bliss_jax.text import MCM_PROMPT, PROMPT, dictionary_hash, fill_prompt

Changed = TypeVar("Changed", bound="DetectorChanges")
"""Type of the returned detector, equal to the type of the original."""

CALIBRATION = 0.2
"""Default share of the images that `fit` holds out for calibration."""


@dataclass(frozen=True, eq=False)
class DetectorChanges(DetectorAnswers):
    """The methods of a detector that return a changed copy. The original stays as it is."""

    def update(
        self: Changed, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> Changed:
        """Returns a detector fitted to more normal images of the same classes.

        The result equals a fit to all images at once, up to rounding. None of the new images is held out,
        and the calibration images stay.

        Args:
            images: Normal images, as in `fit`. The classes of a data set or folder are matched by name.
            labels: Class of each image, a position in `class_names`. Optional for a single class.

        Raises:
            ValueError: An image has a class that the detector lacks, or one of the reasons listed in `fit`.
        """
        embeddings, labels, source = self._of_own_classes(images, labels)
        more = fit_moments(embeddings, labels, num_classes=self.num_classes)
        moments = merge_moments(self.moments, more)
        self._check_every_class_has_images(moments.count)
        change = {"update": image_counts(labels, self.class_names), "source": source}
        arrays = self._with_fitted(embeddings, labels)
        return self._changed(change, moments=moments, score_arrays=arrays)

    def calibrate(
        self: Changed, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> Changed:
        """Returns a detector with other calibration images.

        Args:
            images: Normal images that were not fitted, sampled like the images to be scored. They replace
                the present calibration images.
            labels: Class of each image, as in `update`.

        Raises:
            ValueError: One of the reasons listed in `update`.
        """
        embeddings, labels, source = self._of_own_classes(images, labels)
        change = {"calibrate": image_counts(labels, self.class_names), "source": source}
        return self._changed(change, calibration_embeddings=embeddings, calibration_labels=labels)

    def add_class(
        self: Changed,
        name: str,
        images: Images | None = None,
        *,
        label_embedding: Float[np.ndarray | jax.Array, " dim"] | None = None,
        calibration: float = CALIBRATION,
        seed: int = 0,
    ) -> Changed:
        """Returns a detector with one more normal class, appended to `class_names`.

        Args:
            name: Name of the class.
            images: Normal images of the class. None for a detector that was fitted without images.
            label_embedding: Embedding of the class's prompt; None computes it with the encoder.
            calibration: Share of these images that is held out for calibration, as in `fit`. With 0 the
                false-alarm rate is bounded for the other classes only.
            seed: Seed of the random choice of held-out images.

        Raises:
            ValueError: The detector has a class of that name; images are given to a detector that was fitted without
                images, or not given to another detector; or one of the reasons listed in `fit`.
        """
        if name in self.class_names:
            raise ValueError(
                f"the detector already has a class {name!r}; update() adds images to a class"
            )
        self._check_images_of_class(name, images)
        if label_embedding is None:
            labels = self._embed_prompts([name])
        else:
            labels = float32("label_embedding", np.asarray(label_embedding)[None])
        embeddings = self._embeddings(images if images is not None else labels[:0])
        split = split_for_calibration(np.zeros(len(embeddings), np.int32), 1, calibration, seed)
        held_out, fitted = split.calibration, embeddings[split.fitted]
        new = fit_moments(fitted, np.zeros(len(fitted), np.int32), num_classes=1)
        own = np.full(int(held_out.sum()), self.num_classes, np.int32)
        arrays = self._with_fitted(fitted, np.full(len(fitted), self.num_classes, np.int32))
        names = (*self.class_names, name)
        detector = self._changed(
            {"add_class": name, "fitted": int(new.count[0]), "calibration": len(own)},
            class_names=names,
            score_arrays=arrays | self._texts_of_score(names),
            moments=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self.moments, new),
            label_embeddings=np.concatenate([self.label_embeddings, labels]),
            calibration_embeddings=np.concatenate(
                [self.calibration_embeddings, embeddings[held_out]]
            ),
            calibration_labels=np.concatenate([self.calibration_labels, own]),
        )
        if images is not None:
            detector._warn_of_no_spread()
        return detector

    def remove_class(self: Changed, name: str) -> Changed:
        """Returns a detector without a class and without its calibration images.

        Images of the class are no longer normal.

        Raises:
            ValueError: The detector has no such class, or no other class.
        """
        c = self._class_id(name)
        if self.num_classes == 1:
            raise ValueError(f"cannot remove {name!r}: it is the only class of the detector")
        kept = np.arange(self.num_classes) != c
        calibration = self.calibration_labels != c
        labels = self.calibration_labels[calibration]
        arrays = dict(self.score_arrays)
        if (fitted := arrays.get("train_labels")) is not None:
            own = fitted != c
            arrays["train_embeddings"] = arrays["train_embeddings"][own]
            arrays["train_labels"] = (fitted[own] - (fitted[own] > c)).astype(np.int32)
        if (prompts_of_mcm := arrays.get("mcm_label_embeddings")) is not None:
            arrays["mcm_label_embeddings"] = prompts_of_mcm[kept]
        return self._changed(
            {"remove_class": name},
            score_arrays=arrays,
            class_names=tuple(other for other in self.class_names if other != name),
            moments=jax.tree.map(lambda leaf: jnp.asarray(leaf)[kept], self.moments),
            label_embeddings=self.label_embeddings[kept],
            calibration_embeddings=self.calibration_embeddings[calibration],
            calibration_labels=(labels - (labels > c)).astype(np.int32),
        )

    def with_dictionary(
        self: Changed,
        dictionary: Phrases,
        dictionary_embeddings: Float[np.ndarray | jax.Array, "texts dim"] | None = None,
    ) -> Changed:
        """Returns a detector with another dictionary, without a new fit.

        Args:
            dictionary: Name, text file or phrases; see `Phrases`.
            dictionary_embeddings: Embeddings of the phrases' prompts; None computes them with the encoder.

        Raises:
            ValueError: There are fewer phrases than k, or neither an encoder nor embeddings.
        """
        phrases, name = phrases_of(dictionary)
        if dictionary_embeddings is None:
            embedded = self._embed_prompts(phrases, allow_repeats=True)
        else:
            embedded = float32("dictionary_embeddings", dictionary_embeddings)
        facts = {"name": name, "sha256": dictionary_hash(phrases)}
        return self._changed(
            {"with_dictionary": facts}, dictionary=phrases, dictionary_embeddings=embedded
        )

    def with_labels(
        self: Changed,
        class_names: Sequence[str],
        label_embeddings: Float[np.ndarray | jax.Array, "classes dim"] | None = None,
    ) -> Changed:
        """Returns a detector with other names for the same classes, without a new fit.

        Args:
            class_names: One name per class, in the present order.
            label_embeddings: Embeddings of the names' prompts; None computes them with the encoder.

        Raises:
            ValueError: The number of names differs from the number of classes, or there are neither an
                encoder nor embeddings.
        """
        names = tuple(class_names)
        fill_prompt(PROMPT, names)  # raises for names that are empty or repeated
        if len(names) != self.num_classes:
            raise ValueError(
                f"class_names: expected one name per class ({self.num_classes}), got {len(names)}"
            )
        if label_embeddings is None:
            embedded = self._embed_prompts(names)
        else:
            embedded = float32("label_embeddings", label_embeddings)
        return self._changed(
            {"with_labels": list(class_names)},
            class_names=names,
            score_arrays={**self.score_arrays} | self._texts_of_score(names),
            label_embeddings=embedded,
        )

    def with_settings(
        self: Changed,
        *,
        k: int | None = None,
        weight: float | None = None,
        shrinkage: float | None = None,
    ) -> Changed:
        """Returns a detector with another k, weight (lambda) or shrinkage, without a new fit.

        Raises:
            ValueError: A value is out of range.
        """
        given = {"k": k, "weight": weight, "shrinkage": shrinkage}
        given = {name: value for name, value in given.items() if value is not None}
        return self._changed({"with_settings": given}, **given)

    def with_score(self: Changed, score: ScoreLike) -> Changed:
        """Returns a detector with another score, without a new fit.

        Args:
            score: Name of a score of the library, a `Score`, or a function whose parameters are names of
                `bliss_jax.scores.INPUTS`.

        Raises:
            ValueError: The score is unknown, or cannot be computed from this detector. Scores that need the embeddings
                of the fitted images must be chosen in `fit`.
        """
        record = record_of(score)
        known = self.score_arrays
        texts = {
            name: known[name] for name in known if name.endswith(("_embedding", "label_embeddings"))
        }
        if self.model is not None:
            texts |= {
                name: self._embed_texts(own)
                for name, own in texts_of(record, self.class_names).items()
            }
        facts = {name: fact for name, fact in self.provenance.items() if name != "score"}
        changed = replace(self, provenance=facts | score_facts(record))._changed(
            {"with_score": record.name},
            score_name=record.name,
            score_arrays=score_arrays(
                record, texts, known.get("train_embeddings"), known.get("train_labels")
            ),
            own_score=None if is_of_library(record) else record,
        )
        check_score(record, changed)
        return changed

    def with_model(self: Changed, model: AnyEncoder) -> Changed:
        """Returns a detector with an encoder, which must be the encoder of the fit.

        Raises:
            ValueError: It is another encoder. The message says what differs.
        """
        self._check_model(model)
        return replace(self, model=model)

    def _changed(self: Changed, change: dict[str, Any], **fields: Any) -> Changed:
        changes = [*self.provenance.get("changes", []), change]
        return replace(self, provenance={**self.provenance, "changes": changes}, **fields)

    def _with_fitted(
        self, embeddings: Float[np.ndarray, "images dim"], labels: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of the score with more fitted images, if the score keeps them."""
        arrays = dict(self.score_arrays)
        if "train_labels" in arrays:
            arrays["train_embeddings"] = np.concatenate([arrays["train_embeddings"], embeddings])
            arrays["train_labels"] = np.concatenate(
                [arrays["train_labels"], labels.astype(np.int32)]
            )
        return arrays

    def _texts_of_score(self, class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Returns the embeddings of MCM's prompts of other class names, if the score keeps them.

        Raises:
            ValueError: It does, and the detector has no encoder.
        """
        if "mcm_label_embeddings" not in self.score_arrays:
            return {}
        prompts = fill_prompt(MCM_PROMPT, class_names)
        return {"mcm_label_embeddings": self._embed_texts(prompts)}

    def _check_images_of_class(self, name: str, images: Images | None) -> None:
        fitted = bool(np.any(self.moments.count))
        if fitted and images is None:
            raise ValueError(
                f"images: expected normal images of {name!r}, because the other classes were fitted to images, got none"
            )
        if not fitted and images is not None:
            raise ValueError(
                "images: expected None, because this detector was fitted without images, so its classes have none; "
                f"add the class with add_class({name!r}), and images of every class with update()"
            )

    def _check_every_class_has_images(self, count: jax.Array) -> None:
        missing = [
            n
            for n, of_class in zip(self.class_names, np.asarray(count), strict=True)
            if not of_class
        ]
        if missing:
            raise ValueError(
                "this detector was fitted without images, so the first update needs images of every class, got none "
                f"of {', '.join(missing)}"
            )

    def _of_own_classes(
        self, images: Source, labels: np.ndarray | Sequence[int] | None
    ) -> tuple[Float[np.ndarray, "images dim"], np.ndarray, str]:
        """Returns embeddings, labels as positions in `class_names`, and the source for the provenance."""
        own = None if isinstance(images, ImageDataset | str | os.PathLike) else self.class_names
        known = labelled(images, labels, own, decoding=self.decoding)
        used = sorted(set(known.labels.tolist()))
        position = {c: self._class_id(known.class_names[c]) for c in used}
        mapped = np.array([position[c] for c in known.labels.tolist()], np.int32)
        return self._embeddings(known.images), mapped, known.source

    def _class_id(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(
                f"this detector has no class {name!r}; its classes are {', '.join(self.class_names)}"
            )
        return self.class_names.index(name)

    def _check_model(self, model: AnyEncoder) -> None:
        fitted = self.provenance.get("model")
        if not isinstance(fitted, dict):
            if model.embedding_dim != self.embedding_dim:
                raise ValueError(
                    f"{model.name} has embeddings of dimension {model.embedding_dim}, the detector was "
                    f"fitted to dimension {self.embedding_dim}"
                )
            return
        found = model_facts(model, self.preprocess)
        decisive = ("weights_sha256", "dtype", "preprocessing", "fingerprint")
        differs = [
            f"  {name}: fitted with {fitted.get(name)}, got {found.get(name)}"
            for name in decisive
            if fitted.get(name) != found.get(name)
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
                f"the fitted images of {', '.join(alike[:5])} are identical, so their standard deviations "
                "are 0 and scores are differences of cosines times 1e8; add images, or with several classes "
                "set shrinkage=20",
                stacklevel=4,
            )


_NO_SPREAD = 1e-10
"""Mean squared distance of embeddings to their mean below which it is rounding error."""


def image_counts(labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
    """Returns the number of images of each class, by name."""
    counts = np.bincount(labels, minlength=len(class_names))
    return dict(zip(class_names, counts.tolist(), strict=True))


def model_facts(model: AnyEncoder, preprocess: str | None) -> dict[str, Any]:
    """Returns the properties of the encoder that decide an embedding, as JSON values."""
    return encoder_facts(model) | {"preprocessing": preprocessing_facts(model, preprocess)}
