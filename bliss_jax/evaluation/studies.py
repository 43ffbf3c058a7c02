"""Studies: the AUROC of BLISS as a function of one setting, with all values in one compiled call.

parts_study        internal class score, external text score, and both (ablation)
weight_study       lambda
k_study            k, the number of dictionary texts per image
grid_studies       lambda and k
dictionary_study   size of the dictionary, by random subsets
few_shot_study     number of images per normal class, with and without shrinkage
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.runner import provenance
from bliss_jax.evaluation.settings import Settings
from bliss_jax.evaluation.split_aurocs import (
    Aurocs,
    Nearest,
    Splits,
    fit_images,
    fit_similarities,
    nearest_in_subsets,
    split_aurocs,
    splits_of,
)
from bliss_jax.evaluation.splits import training_rows
from bliss_jax.evaluation.study import Study as Study
from bliss_jax.evaluation.study import join_repeats as join_repeats
from bliss_jax.scores import similarity, top_k_similar

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
KS = (1, 2, 5, 10, 20, 50, 100)
SHOTS = (1, 2, 5, 10, 20, 50)


def parts_study(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    *,
    k: int = 10,
    weight: float = 0.5,
    shrinkage: float = 0.0,
) -> Study:
    """Computes the ablation: internal class score, external text score, and both at one lambda.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        k: Dictionary texts per image.
        weight: lambda. It is the only value of the study.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Raises:
        ValueError: Under the same conditions as `evaluate`.
    """
    study = weight_study(embeddings, protocol, (weight,), k=k, shrinkage=shrinkage)
    return replace(study, name="parts")


def weight_study(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    weights: Sequence[float] = WEIGHTS,
    *,
    k: int = 10,
    shrinkage: float = 0.0,
) -> Study:
    """Computes the AUROC of BLISS for several lambda. lambda = 0 is the internal class score alone.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        weights: Values of lambda.
        k: Dictionary texts per image.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Raises:
        ValueError: Under the same conditions as `evaluate`, or if there are no values.
    """
    grid = _grid(embeddings, weights, (k,), shrinkage)
    aurocs = _all_images(embeddings, protocol, grid, _whole_dictionary(embeddings))
    settings = {"k": k, "shrinkage": shrinkage}
    return _study(("lambda", "lambda", weights), aurocs, grid, embeddings, protocol, settings)


def k_study(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    ks: Sequence[int] = KS,
    *,
    weight: float = 0.5,
    shrinkage: float = 0.0,
) -> Study:
    """Computes the AUROC of BLISS and of the external text score for several k (texts per image).

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        ks: Values of k, none larger than the dictionary.
        weight: lambda.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Raises:
        ValueError: Under the same conditions as `evaluate`, or if there are no values.
    """
    grid = _grid(embeddings, (weight,), ks, shrinkage)
    aurocs = _all_images(embeddings, protocol, grid, _whole_dictionary(embeddings))
    axis = ("k", "dictionary texts per image", ks)
    settings = {"lambda": weight, "shrinkage": shrinkage}
    return _study(axis, aurocs, grid, embeddings, protocol, settings)


def grid_studies(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    weights: Sequence[float] = WEIGHTS,
    ks: Sequence[int] = KS,
    *,
    shrinkage: float = 0.0,
) -> dict[int, Study]:
    """Computes the AUROC of BLISS on a grid of lambda and k, in one compiled call.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        weights: Values of lambda.
        ks: Values of k, none larger than the dictionary.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Returns:
        The result of `weight_study` for each k.

    Raises:
        ValueError: Under the same conditions as `evaluate`, or if there are no values.
    """
    grid = _grid(embeddings, weights, ks, shrinkage)
    aurocs = _all_images(embeddings, protocol, grid, _whole_dictionary(embeddings))
    studies = {}
    for i, k in enumerate(ks):
        at_k = aurocs._replace(
            external=aurocs.external[..., i : i + 1], bliss=aurocs.bliss[..., i : i + 1]
        )
        settings = {"k": k, "shrinkage": shrinkage}
        axis = ("lambda", "lambda", weights)
        studies[k] = _study(axis, at_k, grid, embeddings, protocol, settings)
    return studies


def at_weight(grid: Mapping[int, Study], weight: float) -> Study:
    """Returns the `k_study` at one lambda of a grid computed by `grid_studies`.

    Raises:
        ValueError: If the grid does not contain this lambda.
    """
    first = next(iter(grid.values()))
    if weight not in first.values:
        raise ValueError(f"weight: expected one of {first.values}, got {weight}")
    place = first.values.index(weight)
    series = {
        score: np.stack([study.series[score][place] for study in grid.values()])
        for score in first.series
    }
    settings = first.provenance["settings"]
    of_k = {"study": "k", "lambda": weight, "shrinkage": settings["shrinkage"]}
    return replace(
        first,
        name="k",
        setting="dictionary texts per image",
        values=tuple(map(float, grid)),
        series=series,
        provenance={**first.provenance, "settings": of_k},
    )


def dictionary_study(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    sizes: Sequence[int] | None = None,
    *,
    repeats: int = 20,
    seed: int = 0,
    k: int = 10,
    weight: float = 0.5,
    shrinkage: float = 0.0,
) -> Study:
    """Computes the AUROC of BLISS for several sizes of the dictionary.

    For each size, the dictionary is replaced by random subsets of itself (see `dictionary_subsets`).

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        sizes: Numbers of texts in a subset, from k to the size of the dictionary. The default is those of
            10, 20, 50, 100, ... that are in this range, and the whole dictionary.
        repeats: Number of subsets of each size.
        seed: Seed of the subsets.
        k: Dictionary texts per image.
        weight: lambda.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Raises:
        ValueError: Under the same conditions as `evaluate`, or if there are no sizes, a size is out of
            range, or there are no repeats.
    """
    total = len(embeddings.dictionary)
    sizes = default_sizes(total, k) if sizes is None else sizes
    grid = _grid(embeddings, (weight,), (k,), shrinkage)
    _check_values("sizes", sizes)
    if not all(k <= size <= total for size in sizes):
        raise ValueError(f"sizes: expected k = {k} to {total} texts, got {tuple(sizes)}")
    subsets = dictionary_subsets(total, sizes, repeats=repeats, seed=seed)
    aurocs = _all_images(embeddings, protocol, grid, subsets.reshape(-1, total))
    axis = ("dictionary", "texts in the dictionary", sizes)
    settings = {"k": k, "lambda": weight, "shrinkage": shrinkage, "repeats": repeats, "seed": seed}
    return _study(axis, aurocs, grid, embeddings, protocol, settings)


def default_sizes(total: int, k: int) -> tuple[int, ...]:
    """Returns those of 10, 20, 50, 100, ... that are at least k and less than `total`, and `total`."""
    steps = (step * 10**power for power in range(1, 9) for step in (1, 2, 5))
    return (*(size for size in steps if k <= size < total), total)


def dictionary_subsets(
    total: int, sizes: Sequence[int], *, repeats: int, seed: int
) -> Bool[np.ndarray, "sizes repeats texts"]:
    """Draws random subsets of a dictionary, without replacement and independently of each other.

    Raises:
        ValueError: If `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    rng = np.random.default_rng(seed)
    subsets = np.zeros((len(sizes), repeats, total), bool)
    for of_size, size in zip(subsets, sizes, strict=True):
        for subset in of_size:
            subset[rng.choice(total, size, replace=False)] = True
    return subsets


def few_shot_study(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    shots: Sequence[int] = SHOTS,
    *,
    draws: int = 20,
    seed: int = 0,
    k: int = 10,
    weight: float = 0.5,
    shrinkage: float = 20.0,
) -> Study:
    """Computes the AUROC of BLISS for several numbers of normal images per class.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        shots: Numbers of normal images per class.
        draws: Number of random draws for each of them. The draws are those of `evaluate`.
        seed: Seed of the draws.
        k: Dictionary texts per image.
        weight: lambda.
        shrinkage: n0 of a further series, BLISS with shrunk variances. 0 adds no series.

    Raises:
        ValueError: Under the same conditions as `evaluate`, or if there are no values.
    """
    _check_values("shots", shots)
    for number in shots:
        Settings(shots=number, draws=draws)
    grid = _grid(embeddings, (weight,), (k,), shrinkage)
    own, splits = splits_of(embeddings, protocol)
    ever_normal = np.isin(np.arange(embeddings.num_classes), own)
    rows = np.zeros((len(shots), draws, len(own), max(shots)), np.int32)
    for i, number in enumerate(shots):
        drawn = training_rows(embeddings, ever_normal, shots=number, draws=draws, seed=seed)
        rows[i, ..., :number] = drawn.reshape(draws, len(own), number)
    aurocs = _aurocs_of_draws(
        jnp.asarray(embeddings.train_embeddings),
        jnp.asarray(rows.reshape(-1, len(own), max(shots))),
        jnp.asarray(np.repeat(np.asarray(shots, np.int32), draws)),
        _inputs(embeddings, own, splits),
        grid,
        k=k,
    )
    axis = ("shots", "normal images per class", shots)
    settings = {"k": k, "lambda": weight, "shrinkage": shrinkage, "draws": draws, "seed": seed}
    return _study(axis, aurocs, grid, embeddings, protocol, settings)


class _Grid(NamedTuple):
    """Settings that are axes of the arrays of `split_aurocs`."""

    weights: Float[jax.Array, " weights"]
    shrinkages: Float[jax.Array, " shrinkages"]
    """0, followed by n0 if the study has a series with shrinkage."""
    ks: Int[jax.Array, " ks"]


class _Inputs(NamedTuple):
    """Arrays that no setting of a study changes."""

    test: Float[jax.Array, "test dim"]
    labels: Float[jax.Array, "C dim"]
    """Label embeddings of the C classes that are normal in at least one split."""
    dictionary: Float[jax.Array, "texts dim"]
    splits: Splits


@partial(jax.jit, static_argnames="k")
def _aurocs_of_subsets(
    train: Float[jax.Array, "train dim"],
    train_labels: Int[jax.Array, " train"],
    subsets: Bool[jax.Array, "subsets texts"],
    inputs: _Inputs,
    grid: _Grid,
    *,
    k: int,
) -> Aurocs:
    """Computes `split_aurocs` for each subset of the dictionary. k is the largest k of the grid."""
    test, labels, dictionary, splits = inputs
    fit = fit_images(train, train_labels, labels, dictionary)
    to_labels = similarity(test, labels)

    def of_subset(subset_and_nearest):
        subset, nearest = subset_and_nearest
        mean = jnp.mean(fit.dictionary.variance, axis=0, where=subset[:, None])
        own = fit._replace(dictionary_mean=mean)
        return split_aurocs(to_labels, nearest, own, splits, **grid._asdict())

    return lax.map(of_subset, (subsets, nearest_in_subsets(test, dictionary, subsets, k)))


@partial(jax.jit, static_argnames="k")
def _aurocs_of_draws(
    train: Float[jax.Array, "train dim"],
    rows: Int[jax.Array, "draws C places"],
    shots: Int[jax.Array, " draws"],
    inputs: _Inputs,
    grid: _Grid,
    *,
    k: int,
) -> Aurocs:
    """Computes `split_aurocs` for each few-shot draw, which uses its first `shots` rows of each class."""
    test, labels, dictionary, splits = inputs
    nearest = Nearest(*top_k_similar(test, dictionary, k))
    to_labels = similarity(test, labels)
    texts = jnp.concatenate([labels, dictionary])

    def of_draw(rows_and_shots):
        rows, shots = rows_and_shots
        similarities = similarity(train[rows.reshape(-1)], texts).reshape(*rows.shape, -1)
        fit = fit_similarities(similarities, shots)
        return split_aurocs(to_labels, nearest, fit, splits, **grid._asdict())

    return lax.map(of_draw, (rows, shots))


def _all_images(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    grid: _Grid,
    subsets: Bool[np.ndarray, "subsets texts"],
) -> Aurocs:
    """Computes the AUROCs with a fit on all training images of the C classes."""
    own, splits = splits_of(embeddings, protocol)
    ever_normal = np.isin(np.arange(embeddings.num_classes), own)
    rows = training_rows(embeddings, ever_normal, shots=None, draws=1, seed=0)[0]
    return _aurocs_of_subsets(
        jnp.asarray(embeddings.train_embeddings[rows]),
        jnp.asarray(np.searchsorted(own, embeddings.train_labels[rows]).astype(np.int32)),
        jnp.asarray(subsets),
        _inputs(embeddings, own, splits),
        grid,
        k=int(grid.ks.max()),
    )


def _inputs(embeddings: EmbeddingSet, own: Int[np.ndarray, " C"], splits: Splits) -> _Inputs:
    return _Inputs(
        jnp.asarray(embeddings.test_embeddings),
        jnp.asarray(embeddings.label_embeddings[own]),
        jnp.asarray(embeddings.dictionary_embeddings),
        splits,
    )


def _whole_dictionary(embeddings: EmbeddingSet) -> Bool[np.ndarray, "1 texts"]:
    return np.ones((1, len(embeddings.dictionary)), bool)


def _grid(
    embeddings: EmbeddingSet, weights: Sequence[float], ks: Sequence[int], shrinkage: float
) -> _Grid:
    """Returns the axes as arrays.

    Raises:
        ValueError: If there are no values, a value is out of range, or k is larger than the dictionary.
    """
    _check_values("weights", weights)
    _check_values("ks", ks)
    for weight in weights:
        Settings(weight=weight, shrinkages=(0.0, shrinkage))
    for k in ks:
        _checks.top_k_size(k, len(embeddings.dictionary), "the texts of the dictionary")
    shrinkages = (0.0, shrinkage) if shrinkage else (0.0,)
    return _Grid(
        jnp.asarray(np.asarray(weights, np.float32)),
        jnp.asarray(np.asarray(shrinkages, np.float32)),
        jnp.asarray(np.asarray(ks, np.int32)),
    )


def _check_values(name: str, values: Sequence[int] | Sequence[float]) -> None:
    if not len(values):
        raise ValueError(f"{name}: expected at least one value, got none")


def _study(
    axis: tuple[str, str, Sequence[int] | Sequence[float]],
    aurocs: Aurocs,
    grid: _Grid,
    embeddings: EmbeddingSet,
    protocol: Protocol,
    settings: Mapping[str, Any],
) -> Study:
    """Returns the study with name, setting and values given by `axis`."""
    name, setting, values = axis
    return Study(
        name,
        setting,
        tuple(map(float, values)),
        _series(aurocs, grid, len(values)),
        protocol.name,
        provenance(embeddings, protocol, {"study": name, **settings}),
    )


def _series(
    aurocs: Aurocs, grid: _Grid, num_values: int
) -> dict[str, Float[np.ndarray, "values repeats splits"]]:
    """Returns the AUROCs by score. Only one of the mapped axis, lambda and k may have several values."""
    internal, external, bliss = (np.asarray(array, np.float64) for array in aurocs)
    bliss = np.moveaxis(bliss, 1, -1)  # mapped, weights, shrinkages, ks, splits
    by_score = {
        "internal": internal[:, None, None, :],
        "external": external.swapaxes(1, 2)[:, None],
        "bliss": bliss[:, :, 0],
    }
    for i, n0 in enumerate(np.asarray(grid.shrinkages)[1:].tolist(), start=1):
        by_score[f"bliss, shrinkage {n0:g}"] = bliss[:, :, i]
    shape = bliss[:, :, 0].shape
    return {
        score: np.broadcast_to(array, shape).reshape(num_values, -1, shape[-1])
        for score, array in by_score.items()
    }
