"""Changes of a fitted detector: images, classes, words, settings. Each returns another detector."""

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
from bliss_jax.detection.inputs import (
    Images,
    Phrases,
    Source,
    float32,
    hold_out,
    labelled,
    phrases_of,
    prompts,
)
from bliss_jax.models import Model
from bliss_jax.scores import fit_moments, merge_moments
from bliss_jax.text import dictionary_hash, fill_prompt

Changed = TypeVar("Changed", bound="DetectorChanges")
"""The type of the detector that a change returns: that of the detector it started from."""

CALIBRATION = 0.2
"""Share of the images that `fit` holds out for thresholds."""


@dataclass(frozen=True, eq=False)
class DetectorChanges(DetectorAnswers):
    """The methods of a detector that return another one."""

    def update(
        self: Changed, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> Changed:
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
        change = {"update": image_counts(labels, self.class_names), "source": source}
        return self._changed(change, moments=merge_moments(self.moments, more))

    def calibrate(
        self: Changed, images: Source, labels: np.ndarray | Sequence[int] | None = None
    ) -> Changed:
        """With other calibration images: normal ones, drawn like those to come, that were not fitted.

        Args:
            images: As `update`. They replace those that were held out.
            labels: As `update`.

        Raises:
            ValueError: as `update`.
        """
        embeddings, labels, source = self._of_own_classes(images, labels)
        change = {"calibrate": image_counts(labels, self.class_names), "source": source}
        return self._changed(change, calibration_embeddings=embeddings, calibration_labels=labels)

    def add_class(
        self: Changed,
        name: str,
        images: Images,
        *,
        label_embedding: Float[np.ndarray | jax.Array, " dim"] | None = None,
        calibration: float = CALIBRATION,
        seed: int = 0,
    ) -> Changed:
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

    def remove_class(self: Changed, name: str) -> Changed:
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
        self: Changed,
        dictionary: Phrases,
        dictionary_embeddings: Float[np.ndarray | jax.Array, "texts dim"] | None = None,
    ) -> Changed:
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
        self: Changed,
        class_names: Sequence[str],
        label_embeddings: Float[np.ndarray | jax.Array, "classes dim"] | None = None,
    ) -> Changed:
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
        self: Changed,
        *,
        k: int | None = None,
        weight: float | None = None,
        shrinkage: float | None = None,
    ) -> Changed:
        """With other k, lambda or shrinkage; nothing is fitted anew.

        Raises:
            ValueError: a value out of range.
        """
        given = {"k": k, "weight": weight, "shrinkage": shrinkage}
        given = {name: value for name, value in given.items() if value is not None}
        return self._changed({"with_settings": given}, **given)

    def with_model(self: Changed, model: Model) -> Changed:
        """With an encoder, which must be the one that the detector was fitted with.

        Raises:
            ValueError: it is another one; says what differs.
        """
        self._check_model(model)
        return replace(self, model=model)

    def _changed(self: Changed, change: dict[str, Any], **fields: Any) -> Changed:
        changes = [*self.provenance.get("changes", []), change]
        return replace(self, provenance={**self.provenance, "changes": changes}, **fields)

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

    def _check_model(self, model: Model) -> None:
        fitted = self.provenance.get("model")
        if not isinstance(fitted, dict):
            if model.embedding_dim != self.embedding_dim:
                raise ValueError(
                    f"{model.name} makes embeddings of {model.embedding_dim} numbers, the detector was "
                    f"fitted with {self.embedding_dim}"
                )
            return
        found = model_facts(model, self.preprocess)
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


def image_counts(labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
    """Returns the number of images of each class, by name."""
    counts = np.bincount(labels, minlength=len(class_names))
    return dict(zip(class_names, counts.tolist(), strict=True))


def model_facts(model: Model, preprocess: str | None) -> dict[str, Any]:
    """What an embedding depends on, as JSON values."""
    return {
        "name": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_hash,
        "dtype": model.dtype,
        "preprocessing": model.preprocessing_with(preprocess).describe(),
    }
