"""BLISS in plain NumPy: similarity matrices, a full sort, and statistics over all normal images.

    S = X_train D^T             similarities of the normal images; mu_{c,d}, sigma_{c,d}: mean and
                                standard deviation of its columns over the rows of class c
    rank = argsort(-X_test D^T) whole rows are sorted, the first k are used
    score = min over normal c of internal(x, c) + lambda * mean of the k z-scores of x

All arrays are float32. The code was written from the equations (arXiv 2407.17083, section 4) and from the
description of the reference procedure. It copies no other code. There are two forms:

* `split_by_split`: every split is a run of its own, like an evaluation script that is run once per split.
* `shared`: one run for all splits. Similarities, ranks, and the statistics and scores of each class are
  computed once, and each split only takes its minimum. This is the fastest form of this procedure without
  other mathematics.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score

from benchmarks.synthetic import Embeddings

EPSILON = 1e-8


class Run(NamedTuple):
    """Results of a procedure, and the seconds of its stages `fit`, `score` and `auroc`."""

    scores: Float[np.ndarray, "splits test"]
    aurocs: Float[np.ndarray, " splits"]
    seconds: dict[str, float]


class Stopwatch(dict[str, float]):
    """Seconds by stage. A stage that is entered again adds to its sum."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the `with` block to the stage `name`."""
        start = time.perf_counter()
        yield
        self[name] = self.get(name, 0.0) + time.perf_counter() - start


def split_by_split(
    e: Embeddings, normal: Bool[np.ndarray, "splits classes"], k: int = 10, weight: float = 0.5
) -> Run:
    """Computes each split from its own normal images, without results of earlier splits."""
    watch, scores, aurocs = Stopwatch(), [], []
    for mask in normal:
        with watch.stage("fit"):
            chosen = mask[e.train_labels]
            train, y = e.train[chosen], e.train_labels[chosen]
            to_labels, to_words = train @ e.labels.T, train @ e.dictionary.T
            statistics = {
                c: (*_moments(to_labels[y == c, c]), *_moments(to_words[y == c]))
                for c in np.flatnonzero(mask)
            }
        with watch.stage("score"):
            to_labels, to_words = e.test @ e.labels.T, e.test @ e.dictionary.T
            nearest = np.argsort(-to_words, axis=1)[:, :k]
            combined = []
            for c, (label_mean, label_std, word_mean, word_std) in statistics.items():
                internal = -(to_labels[:, c] - label_mean) / label_std
                z = (to_words - word_mean) / word_std
                external = np.take_along_axis(z, nearest, axis=1).mean(axis=1)
                combined.append(internal + weight * external)
            scores.append(np.min(combined, axis=0))
        with watch.stage("auroc"):
            aurocs.append(roc_auc_score(~mask[e.test_labels], scores[-1]))
    return Run(np.stack(scores), np.array(aurocs), dict(watch))


def shared(
    e: Embeddings, normal: Bool[np.ndarray, "splits classes"], k: int = 10, weight: float = 0.5
) -> Run:
    """Computes all splits at once. Everything that does not depend on the split is computed once."""
    watch = Stopwatch()
    with watch.stage("fit"):
        to_labels, to_words = e.train @ e.labels.T, e.train @ e.dictionary.T
        of_class = [e.train_labels == c for c in range(len(e.labels))]
        statistics = [
            (*_moments(to_labels[rows, c]), *_moments(to_words[rows]))
            for c, rows in enumerate(of_class)
        ]
    with watch.stage("score"):
        to_labels, to_words = e.test @ e.labels.T, e.test @ e.dictionary.T
        nearest = np.argsort(-to_words, axis=1)[:, :k]
        values = np.take_along_axis(to_words, nearest, axis=1)
        combined = np.empty_like(to_labels)
        for c, (label_mean, label_std, word_mean, word_std) in enumerate(statistics):
            internal = -(to_labels[:, c] - label_mean) / label_std
            external = ((values - word_mean[nearest]) / word_std[nearest]).mean(axis=1)
            combined[:, c] = internal + weight * external
        scores = np.stack([combined[:, mask].min(axis=1) for mask in normal])
    with watch.stage("auroc"):
        aurocs = [
            roc_auc_score(~mask[e.test_labels], score)
            for mask, score in zip(normal, scores, strict=True)
        ]
    return Run(scores, np.array(aurocs), dict(watch))


def _moments(similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation over the images."""
    return similarities.mean(axis=0), similarities.std(axis=0) + EPSILON
