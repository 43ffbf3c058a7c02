"""The score of a detector and the arrays that it needs beside the state of BLISS; `prepared_score.py` computes it.

A detector computes one score of the library's table, BLISS by default, or a user's own. As in an evaluation, the names
of the parameters of the score's function are its inputs (`bliss_jax.scores.INPUTS`). The inputs here are those of one
split in which all classes of the detector are normal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bliss_jax.scores import Facts, Score, as_score, score_table
from bliss_jax.text import CLIP_AD_ANOMALY, MCM_PROMPT, fill_prompt

if TYPE_CHECKING:
    from bliss_jax.detection.state import DetectorState

BLISS = "bliss"
WITHOUT_IMAGES = "text_bliss"
"""Default score of a detector that is fitted without images."""

STORED = ("train_embeddings", "train_labels", "mcm_label_embeddings", "something_embedding")
"""Inputs of scores that a detector stores if its score needs them. The others are computed from its state."""
_OF_FIT = frozenset(
    ("moments", "internal", "external", "train_embeddings", "train_labels", "nearest_images")
)

TRANSDUCTIVE = (
    "it depends on the other images that are scored, so conformal p-values and thresholds are not valid for it; choose "
    "another score, or call its functions on batches or streams (bliss_jax.update_proxies, update_ood_queue, ...)"
)
"""Reason why a detector does not compute a transductive score."""

ScoreLike = str | Score | Callable[..., Any]
"""A score of the library by its name, a record, or a function whose parameters are names of `INPUTS`."""


def record_of(score: ScoreLike, *, images: bool = True) -> Score:
    """Returns the record of a score.

    Args:
        score: Name, record or function.
        images: Whether there are normal images to fit.

    Raises:
        ValueError: The score is unknown, depends on the other images that are scored, or needs normal images and there
            are none.
    """
    record = as_score(score)
    if record.transductive:
        raise ValueError(f"score: {record.name!r} cannot be computed: {TRANSDUCTIVE}")
    if not images and needs_images(record):
        known = (
            name
            for name, other in score_table().items()
            if not needs_images(other) and not other.transductive
        )
        raise ValueError(
            f"score: {record.name!r} needs normal images, and there are none; scores without images: "
            + ", ".join(known)
        )
    return record


def needs_images(record: Score) -> bool:
    """Returns whether a score needs normal images."""
    return not _OF_FIT.isdisjoint(record.needs_of_detector)


def is_of_library(record: Score) -> bool:
    """Returns whether a record is in the library's table of scores."""
    return score_table().get(record.name) is record


def score_facts(record: Score) -> dict[str, Any]:
    """Returns the entry of the provenance about a score of a user: its name, function, source and settings.

    It is empty for a score of the library.
    """
    if is_of_library(record):
        return {}
    facts: dict[str, Any] = {"name": record.name, "function": record.place}
    if record.source:
        facts["source"] = record.source
    if record.settings:
        facts["settings"] = dict(record.settings)
    return {"score": facts}


def stored_by(record: Score) -> tuple[str, ...]:
    """Returns the names of the arrays that a detector stores for a score."""
    needs = {*record.needs_of_detector}
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
    if record.transductive:
        return TRANSDUCTIVE
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


def fitted_arrays(state: "DetectorState") -> dict[str, Any]:
    """Returns the arrays of a detector as JAX arrays, by the names of the inputs of scores."""
    labels = jnp.asarray(state.label_embeddings)
    return {
        "label_embeddings": labels,
        "mcm_label_embeddings": labels,
        "dictionary_embeddings": jnp.asarray(state.dictionary_embeddings),
        "moments": jax.tree.map(jnp.asarray, state.moments),
        **{name: jnp.asarray(array) for name, array in state.score_arrays.items()},
    }
