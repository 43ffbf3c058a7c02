"""The computation of a detector's score, with everything that does not depend on images prepared once.

    p = prepare_score(record, arrays, ...)      once for each detector and score
    scores = score_embeddings(embeddings, p)    jitted; detectors of the same sizes share the compiled programs

The prepared arrays are the result of the record's `prepare`, if it has one, and the statistics of the texts, if the
score needs the inputs `internal` or `external`. They are not in the detector's file. In a detector all classes are
normal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bliss_jax.scores import (
    OF_IMAGES,
    PreparedBliss,
    Score,
    class_scores_prepared,
    inputs_of,
    nearest_of_class,
    prepare_bliss,
)

NEIGHBOURS = 10
"""Neighbours of scores that use the nearest images; fewer if fewer images were fitted."""


class Numbers(NamedTuple):
    """Settings of a score that are static in compiled programs."""

    num_classes: int
    k: int
    shrinkage: float
    neighbours: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreparedScore:
    """A score and its prepared arrays; a pytree. The arrays are the leaves, and the rest is static."""

    inputs: Mapping[str, Any]
    """Inputs of the score that do not depend on images, by name."""
    prepared: Any
    """Result of the record's `prepare`; None if it has none."""
    table: PreparedBliss | None
    """Statistics of the texts without shrinkage; None if the score needs neither `internal` nor `external`."""
    weight: Float[jax.Array, "*mapped"]
    """lambda."""
    record: Score = field(metadata={"static": True})
    numbers: Numbers = field(metadata={"static": True})


def prepare_score(
    record: Score,
    arrays: Mapping[str, Any],
    *,
    k: int,
    weight: float,
    shrinkage: float,
    table: Callable[[], PreparedBliss] | None = None,
) -> PreparedScore:
    """Returns a score with its prepared arrays.

    Args:
        record: The score.
        arrays: Fitted arrays by the names of `bliss_jax.scores.INPUTS`.
        k: Texts per image.
        weight: lambda.
        shrinkage: n0.
        table: Returns the statistics of all texts without shrinkage, if they are known.
    """
    numbers = Numbers(
        num_classes=len(arrays["label_embeddings"]),
        k=k,
        # A static number that the score does not use would compile the program again for each value.
        shrinkage=shrinkage if "shrinkage" in record.needs_of_detector else 0.0,
        neighbours=min(NEIGHBOURS, max(1, len(arrays.get("train_labels", ())))),
    )
    scale = jnp.asarray(weight, jnp.float32)
    prepared = None
    if record.prepare is not None:
        needed = {name: arrays[name] for name in inputs_of(record.prepare) if name in arrays}
        prepared = _prepared(needed, scale, record=record, numbers=numbers)
    names = {*inputs_of(_scoring(record))}
    if "nearest_images" in names:
        names |= {"train_embeddings", "train_labels"}
    found = None
    if "external" in names and table is not None:
        found = table()
    elif names & {"internal", "external"}:
        labels = arrays["label_embeddings"]
        # The internal part uses the statistics of the labels only, so one text is enough.
        texts = arrays["dictionary_embeddings"] if "external" in names else labels[:1]
        found = _table(labels, texts, arrays["moments"])
    return PreparedScore(
        inputs={name: arrays[name] for name in sorted(names) if name in arrays},
        prepared=prepared,
        table=found,
        weight=scale,
        record=record,
        numbers=numbers,
    )


_table = jax.jit(prepare_bliss)


def _scoring(record: Score) -> Callable[..., Any]:
    """Returns the function of images."""
    return record.function if record.from_prepared is None else record.from_prepared


def _constants(weight: jax.Array, numbers: Numbers) -> dict[str, Callable[[], Any]]:
    """Returns the inputs that are neither arrays of the fit nor computed from images."""
    return {
        "normal": lambda: jnp.ones(numbers.num_classes, bool),
        "key": lambda: jax.random.key(0),
        "weight": lambda: weight,
        **{name: partial(getattr, numbers, name) for name in Numbers._fields},
    }


@partial(jax.jit, static_argnames=("record", "numbers"))
def _prepared(
    arrays: Mapping[str, Any], weight: jax.Array, *, record: Score, numbers: Numbers
) -> Any:
    assert record.prepare is not None  # noqa: S101 (checked by the caller)
    known: dict[str, Callable[[], Any]] = _constants(weight, numbers)
    known |= {name: partial(arrays.__getitem__, name) for name in arrays}
    names = (name for name in inputs_of(record.prepare) if name not in OF_IMAGES)
    return record.prepare(**{name: known[name]() for name in names})


def score_images(
    embeddings: Float[jax.Array, "images dim"], score: PreparedScore
) -> Float[jax.Array, " images"]:
    """Computes the scores of embeddings, float32; for use inside jitted functions.

    Raises:
        ValueError: The function of the score returns another shape.
    """
    record, numbers, table = score.record, score.numbers, score.table

    def part(position: int) -> jax.Array:
        assert table is not None  # noqa: S101 (prepared if a part is needed)
        k = min(numbers.k, len(table.dictionary_embeddings))
        return class_scores_prepared(embeddings, table, k)[position]

    known = _constants(score.weight, numbers) | {
        "embeddings": lambda: embeddings,
        "internal": partial(part, 0),
        "external": partial(part, 1),
        "nearest_images": lambda: nearest_of_class(
            embeddings,
            score.inputs["train_embeddings"],
            score.inputs["train_labels"],
            numbers.neighbours,
            num_classes=numbers.num_classes,
        ),
    }
    function = _scoring(record)
    given = {
        name: score.inputs[name] if name in score.inputs else known[name]()
        for name in inputs_of(function)
    }
    if record.from_prepared is not None:
        given["prepared"] = score.prepared
    found = jnp.asarray(function(**given))
    if found.shape != embeddings.shape[:1]:
        raise ValueError(
            f"score {record.name!r}: expected its function to return scores [{len(embeddings)}], one per image, "
            f"got {list(found.shape)}"
        )
    return found.astype(jnp.float32)


score_embeddings = jax.jit(score_images)


def arrays_by_name(score: PreparedScore) -> dict[str, np.ndarray]:
    """Returns the arrays of a score by name, for a file.

    Raises:
        ValueError: An array is not one of numbers, e.g. random keys.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(score)[0]:
        name = "/".join(map(_plain, path))
        if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
            raise ValueError(
                f"score {score.record.name!r} cannot be exported: expected arrays of numbers, but {name} has the dtype "
                f"{leaf.dtype}"
            )
        named[f"{name}-{len(named)}" if name in named else name] = np.asarray(leaf)
    return named


def _plain(key: Any) -> str:
    """Returns one step of a path in a pytree as a part of a file name."""
    text = str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
