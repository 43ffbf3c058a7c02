"""All scores on all splits of a protocol, computed in one jitted call.

The scores are mapped over the splits' masks of normal classes. Everything that does not depend on the split
(moments, the nearest texts, the nearest images of each class) is computed once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import scores
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.settings import Settings
from bliss_jax.scores import Facts, Score, block_map

_SHRUNK = 2**25
"""Approximate number of statistics of texts in a block of splits, for scores with shrinkage: 134 MB."""


class Choices(NamedTuple):
    """Static arguments of the jitted evaluation."""

    scores: tuple[Score, ...]
    num_classes: int
    k: int
    shrinkages: tuple[float, ...]
    neighbours: int


class Arrays(NamedTuple):
    """Arrays of an embedding set that the scores read."""

    train: Float[jax.Array, "train dim"]
    train_labels: Int[jax.Array, " train"]
    test: Float[jax.Array, "test dim"]
    test_labels: Int[jax.Array, " test"]
    labels: Float[jax.Array, "classes dim"]
    dictionary: Float[jax.Array, "texts dim"]
    mcm_labels: Float[jax.Array, "classes dim"]
    something: Float[jax.Array, " dim"] | None


def arrays_of(e: EmbeddingSet) -> Arrays:
    """Returns the arrays of an embedding set that the scores read."""
    mcm = e.label_embeddings if e.mcm_label_embeddings is None else e.mcm_label_embeddings
    arrays = (
        e.train_embeddings,
        e.train_labels.astype(np.int32),
        e.test_embeddings,
        e.test_labels.astype(np.int32),
        e.label_embeddings,
        e.dictionary_embeddings,
        mcm,
        e.something_embedding,
    )
    return Arrays(*(None if array is None else jnp.asarray(array) for array in arrays))  # pyright: ignore[reportArgumentType]


class _Inputs:
    """The inputs of scores (`bliss_jax.scores.INPUTS`). Each is computed when a score first needs it."""

    def __init__(self, a: Arrays, weight: Any, key: jax.Array, choices: Choices):
        self._choices = choices
        self._known: dict[str, Any] = {
            "embeddings": a.test,
            "label_embeddings": a.labels,
            "mcm_label_embeddings": a.mcm_labels,
            "something_embedding": a.something,
            "dictionary_embeddings": a.dictionary,
            "train_embeddings": a.train,
            "train_labels": a.train_labels,
            "key": key,
            "weight": weight,
            "k": choices.k,
            "neighbours": choices.neighbours,
            "num_classes": choices.num_classes,
        }
        self._computed: dict[str, Callable[[], Any]] = {
            "moments": self._moments,
            "internal": self._internal,
            "external": self._external,
            "nearest_images": self._nearest_images,
        }

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._computed[name]()
        return self._known[name]

    def _moments(self) -> scores.ClassMoments:
        x, y = self["train_embeddings"], self["train_labels"]
        return scores.fit_moments(x, y, num_classes=self._choices.num_classes)

    def _internal(self) -> jax.Array:
        return scores.internal_class_score(
            self["embeddings"], self["label_embeddings"], self["moments"]
        )

    def _external(self) -> jax.Array:
        return scores.external_text_score(
            self["embeddings"], self["dictionary_embeddings"], self["moments"], self._choices.k
        )

    def _nearest_images(self) -> jax.Array:
        return scores.nearest_of_class(
            self["embeddings"],
            self["train_embeddings"],
            self["train_labels"],
            self._choices.neighbours,
            num_classes=self._choices.num_classes,
        )


def score_splits(
    a: Arrays,
    normal: Bool[jax.Array, "splits classes"],
    counted: Bool[jax.Array, "splits test"],
    weight: Float[jax.Array, ""] | float,
    key: jax.Array,
    choices: Choices,
) -> Float[jax.Array, "columns splits test"]:
    """Computes the score of every column of `columns_of` on all splits."""
    inputs = _Inputs(a, weight, key, choices)
    columns = [
        _on_all_splits(score, n0, inputs, normal, counted)
        for score, n0 in columns_of(choices.scores, choices.shrinkages)
    ]
    dtype = jnp.promote_types(jnp.float32, columns[0].dtype)
    return jnp.stack([column.astype(dtype) for column in columns])


def _on_all_splits(
    score: Score,
    n0: float,
    inputs: _Inputs,
    normal: Bool[jax.Array, "splits classes"],
    counted: Bool[jax.Array, "splits test"],
) -> Float[jax.Array, "splits test"]:
    """Maps a score over the masks of the splits' normal classes and test images."""
    images = counted.shape[1]
    fixed = {
        name: n0 if name == "shrinkage" else inputs[name]
        for name in score.needs
        if name not in ("normal", "counted")
    }

    def of_split(
        mask: Bool[jax.Array, " classes"], in_test: Bool[jax.Array, " test"]
    ) -> Float[jax.Array, " test"]:
        of_mask = {"normal": mask, "counted": in_test}
        masked = {name: value for name, value in of_mask.items() if name in score.needs}
        found = score.function(**fixed, **masked)
        if jnp.shape(found) != (images,):
            raise ValueError(
                f"score {score.name!r}: expected its function to return scores [{images}], one per image, got "
                f"{list(jnp.shape(found))}"
            )
        return jnp.asarray(found)

    if score.one_split_at_a_time:
        return lax.map(lambda split: of_split(*split), (normal, counted))
    if n0:
        # Shrinkage pools the variances over the normal classes of a split. The nearest texts and the variances before
        # pooling are computed once for the splits of a block, but each split has a table of its own.
        size = 2 * normal.shape[1] * (images + len(inputs["dictionary_embeddings"]))
        return _in_equal_blocks(of_split, normal, counted, rows=max(1, _SHRUNK // size))
    return block_map(of_split, normal, counted, size=images * normal.shape[1])


def _in_equal_blocks(
    function: Callable[..., jax.Array], *masks: Bool[jax.Array, "splits _"], rows: int
) -> Float[jax.Array, "splits test"]:
    """Computes `vmap(function)(*masks)` in blocks of at most `rows` splits.

    The last split is repeated until all blocks are equal, because another size would be compiled separately.
    """
    splits = len(masks[0])
    blocks = -(-splits // rows)
    size = -(-splits // blocks)
    masks = tuple(jnp.pad(m, ((0, blocks * size - splits), (0, 0)), mode="edge") for m in masks)
    return lax.map(lambda split: function(*split), masks, batch_size=size)[:splits]


jitted_scores = jax.jit(score_splits, static_argnames="choices")


def columns_of(records: Sequence[Score], shrinkages: Sequence[float]) -> list[tuple[Score, float]]:
    """Returns the score and the shrinkage of each row of the result."""
    return [
        (score, n0)
        for score in records
        for n0 in (shrinkages if "shrinkage" in score.needs else (0.0,))
    ]


def row_settings(
    score: Score, n0: float, settings: Settings, choices: Choices, embeddings: EmbeddingSet
) -> dict[str, Any]:
    """Returns the settings on which a score depends, for its row of the result."""
    needs, own = {*score.needs}, {"shots": settings.shots, "draws": settings.draws}
    if needs & {"k", "external"}:
        own["k"] = choices.k
    if needs & {"neighbours", "nearest_images"}:
        own["k"] = choices.neighbours
    if "weight" in needs:
        own["lambda"] = settings.weight
    if "shrinkage" in needs:
        own["shrinkage"] = n0
    if "mcm_label_embeddings" in needs:
        own["prompt"] = "mcm" if embeddings.mcm_label_embeddings is not None else "labels"
    return own | dict(score.settings)


def neighbours_of(
    embeddings: EmbeddingSet,
    normal: Bool[np.ndarray, "splits classes"],
    rows: Int[np.ndarray, "draws chosen"],
    settings: Settings,
) -> int:
    """Returns the number of neighbours, reduced to the number of normal images of the smallest split if necessary."""
    count = np.bincount(embeddings.train_labels[rows[0]], minlength=embeddings.num_classes)
    return int(min(settings.neighbours, (normal @ count).min()))


def left_out_of(
    embeddings: EmbeddingSet, rows: Int[np.ndarray, "draws chosen"], settings: Settings
) -> dict[str, str]:
    """Returns the scores that cannot be computed from these embeddings, each with the reason."""
    largest = np.bincount(embeddings.train_labels[rows[0]]).max()
    facts = Facts(images_per_class=int(largest), texts=len(embeddings.dictionary))
    reasons = {}
    for score in settings.records:
        reason = score.unavailable(facts) if score.unavailable is not None else None
        if "something_embedding" in score.needs and embeddings.something_embedding is None:
            reason = "the embeddings have no array something_embedding"
        if reason is not None:
            reasons[score.name] = reason
    return reasons
