"""The score of a detector: the arrays that it needs beside the state of BLISS, and its computation.

A detector computes one score of the library's table, BLISS by default, or a user's own. As in an evaluation, the names
of the parameters of the score's function are its inputs (`bliss_jax.scores.INPUTS`). The inputs here are those of one
split in which all classes of the detector are normal.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bliss_jax import scores
from bliss_jax.scores import Facts, Score, as_score, score_table
from bliss_jax.text import CLIP_AD_ANOMALY, MCM_PROMPT, fill_prompt

if TYPE_CHECKING:
    from bliss_jax.detection.state import DetectorState

BLISS = "bliss"
WITHOUT_IMAGES = "text_bliss"
"""Default score of a detector that is fitted without images."""
NEIGHBOURS = 10
"""Neighbours of scores that use the nearest images; fewer if fewer images were fitted."""

STORED = ("train_embeddings", "train_labels", "mcm_label_embeddings", "something_embedding")
"""Inputs of scores that a detector stores if its score needs them. The others are computed from its state."""
_OF_IMAGES = frozenset(
    ("moments", "internal", "external", "train_embeddings", "train_labels", "nearest_images")
)

ScoreLike = str | Score | Callable[..., Any]
"""A score of the library by its name, a record, or a function whose parameters are names of `INPUTS`."""


def record_of(score: ScoreLike, *, images: bool = True) -> Score:
    """Returns the record of a score.

    Args:
        score: Name, record or function.
        images: Whether there are normal images to fit.

    Raises:
        ValueError: The score is unknown, or needs normal images and there are none.
    """
    record = as_score(score)
    if not images and needs_images(record):
        known = (name for name, other in score_table().items() if not needs_images(other))
        raise ValueError(
            f"score: {record.name!r} needs normal images, and there are none; scores without images: "
            + ", ".join(known)
        )
    return record


def needs_images(record: Score) -> bool:
    """Returns whether a score needs normal images."""
    return not _OF_IMAGES.isdisjoint(record.needs)


def is_of_library(record: Score) -> bool:
    """Returns whether a record is in the library's table of scores."""
    return score_table().get(record.name) is record


def stored_by(record: Score) -> tuple[str, ...]:
    """Returns the names of the arrays that a detector stores for a score."""
    needs = {*record.needs}
    if "nearest_images" in needs:
        needs |= {"train_embeddings", "train_labels"}
    return tuple(name for name in STORED if name in needs)


def texts_of(record: Score, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the further texts that a score needs embeddings of, by the name of the array."""
    texts = {
        "mcm_label_embeddings": fill_prompt(MCM_PROMPT, class_names),
        "something_embedding": (CLIP_AD_ANOMALY,),
    }
    return {name: tuple(texts[name]) for name in stored_by(record) if name in texts}


def score_arrays(
    record: Score,
    texts: Mapping[str, Float[np.ndarray, "texts dim"]],
    embeddings: Float[np.ndarray, "images dim"] | None = None,
    labels: Int[np.ndarray, " images"] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the arrays that a detector stores for a score, as far as they are known.

    Args:
        record: The score.
        texts: Embeddings of `texts_of`. If MCM's prompts are missing, the labels' prompts replace them.
        embeddings: Embeddings of the fitted images.
        labels: Class of each of them.
    """
    arrays: dict[str, np.ndarray] = dict(texts)
    if "something_embedding" in arrays:
        arrays["something_embedding"] = arrays["something_embedding"].reshape(-1)
    if embeddings is not None and labels is not None:
        arrays |= {"train_embeddings": embeddings, "train_labels": labels.astype(np.int32)}
    return {name: arrays[name] for name in stored_by(record) if name in arrays}


def check_score(record: Score, state: "DetectorState") -> None:
    """Raises ValueError, with the reason, if a score cannot be computed from the state of a detector."""
    if (reason := why_not(record, state)) is not None:
        raise ValueError(f"score: {record.name!r} cannot be computed: {reason}")


def why_not(record: Score, state: "DetectorState") -> str | None:
    """Returns the reason why a score cannot be computed from the state of a detector, or None."""
    count = np.asarray(state.moments.count)
    if needs_images(record) and not count.any():
        return "it needs normal images, and the detector was fitted without any"
    missing = [
        name
        for name in stored_by(record)
        if name not in state.score_arrays and name != "mcm_label_embeddings"
    ]
    if "train_embeddings" in missing:
        return (
            "it needs the embeddings of the fitted images, which a detector keeps only if it is fitted with "
            f"score={record.name!r}"
        )
    if missing:
        return f"it needs the prompt {CLIP_AD_ANOMALY!r}, so the detector must have an encoder when it is fitted"
    if record.unavailable is None:
        return None
    return record.unavailable(Facts(int(count.max(initial=0)), len(state.dictionary)))


def compute(
    record: Score, state: "DetectorState"
) -> Callable[[Float[np.ndarray, "images dim"]], Float[jax.Array, " images"]]:
    """Returns the jitted function from embeddings to scores."""
    arrays = {
        "label_embeddings": state.label_embeddings,
        "dictionary_embeddings": state.dictionary_embeddings,
        "moments": state.moments,
        **state.score_arrays,
    }
    return partial(
        _computed,
        arrays=arrays,
        weight=state.weight,
        record=record,
        k=state.k,
        shrinkage=state.shrinkage,
        neighbours=min(NEIGHBOURS, max(1, len(state.score_arrays.get("train_labels", ())))),
    )


@partial(jax.jit, static_argnames=("record", "k", "shrinkage", "neighbours"))
def _computed(
    embeddings: Float[jax.Array, "images dim"],
    *,
    arrays: Mapping[str, Any],
    weight: Any,
    record: Score,
    k: int,
    shrinkage: float,
    neighbours: int,
) -> Float[jax.Array, " images"]:
    labels, texts, moments = (
        arrays[name] for name in ("label_embeddings", "dictionary_embeddings", "moments")
    )
    classes = len(labels)
    computed: dict[str, Callable[[], Any]] = {
        "embeddings": lambda: embeddings,
        "mcm_label_embeddings": lambda: arrays.get("mcm_label_embeddings", labels),
        "internal": lambda: scores.internal_class_score(embeddings, labels, moments),
        "external": lambda: scores.external_text_score(embeddings, texts, moments, k),
        "nearest_images": lambda: scores.nearest_of_class(
            embeddings,
            arrays["train_embeddings"],
            arrays["train_labels"],
            neighbours,
            num_classes=classes,
        ),
        "normal": lambda: jnp.ones(classes, bool),
        "key": lambda: jax.random.key(0),
        "num_classes": lambda: classes,
        "k": lambda: k,
        "weight": lambda: weight,
        "shrinkage": lambda: shrinkage,
        "neighbours": lambda: neighbours,
    }
    inputs = {name: computed[name]() if name in computed else arrays[name] for name in record.needs}
    found = jnp.asarray(record.function(**inputs))
    if found.shape != embeddings.shape[:1]:
        raise ValueError(
            f"score {record.name!r}: expected its function to return scores [{len(embeddings)}], one per image, "
            f"got {list(found.shape)}"
        )
    return found.astype(jnp.float32)
