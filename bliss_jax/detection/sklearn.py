"""BLISS, or another score, as a scikit-learn outlier detector over embeddings, for pipelines and grid searches.

    score_samples(x) = -score(x), -BLISS(x) by default          scikit-learn's sign: higher is more normal
    decision_function(x) = score_samples(x) - offset_           offset_: a quantile over the fitted rows
    predict(x) = 1 if decision_function(x) >= 0, otherwise -1   1 is normal, -1 is an outlier

Everywhere else in this library higher is more anomalous. The offset follows scikit-learn and bounds no error
rate; `scores/conformal.py` has thresholds that do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.detection.chosen_score import BLISS, TRANSDUCTIVE
from bliss_jax.detection.prepared_score import PreparedScore, prepare_score, score_embeddings
from bliss_jax.scores import (
    ClassMoments,
    Facts,
    PreparedBliss,
    Score,
    as_score,
    bliss_score_prepared,
    fit_moments,
    internal_class_score,
    min_over_classes,
    prepare_bliss,
)

_BLOCK = 256
"""Rows per call of the compiled score. All matrix products have one shape, so the score of a row does not
depend on the other rows."""

_FLOATS = [np.float64, np.float32]
"""Accepted dtypes. Arrays of any other dtype are converted to the first."""

_NO_DIRECTION = 1e-6
"""Norm below which a mean of unit vectors is zero up to float32 rounding."""


class BlissOutlierDetector(OutlierMixin, BaseEstimator):
    """BLISS as an outlier detector over embeddings.

    BLISS(x) = min over classes c of [ internal(x, c) + lambda external(x, c) ]

    The detector is fitted to embeddings of normal images. The embeddings of the class prompts and of the
    dictionary are parameters. `score_samples` is -BLISS: by scikit-learn's convention higher is more normal,
    contrary to the rest of this library.

    Rows of X, `label_embeddings` and `dictionary_embeddings` may have any norm: each row is divided by its
    norm in float64 and scored in float32. A row of zeros is an error.

    **Without texts this is not BLISS.** Without `label_embeddings`, the normalised mean of each class's rows
    replaces the embedding of its prompt. Without `dictionary_embeddings`, there is no external part, and `k`
    and `weight` have no effect. This image-only mode exists so that the detector runs on any X; no result of
    the paper holds for it.

    Args:
        label_embeddings: Embedding of each class's prompt [classes, dim], or None.
        dictionary_embeddings: Embeddings of the dictionary's prompts [texts, dim], or None.
        anomaly_score: Name of a score of the library, a `Score`, or a function whose parameters are names of
            `bliss_jax.scores.INPUTS`. Scores other than "bliss" are described in `bliss_jax.scores`; replace BLISS by
            this score in the rest of this text. `clip_ad` needs a text that this class does not have.
            (scikit-learn reserves the name `score` for a method.)
        k: Number of dictionary texts per row, 1 <= k <= texts.
        weight: lambda, the weight of the external part.
        shrinkage: n0 >= 0 of `bliss_score`; 0 is the paper's score.
        contamination: Share of the fitted rows for which `predict` returns -1, in (0, 0.5]. It does not
            bound the share of new normal rows that are flagged; `Detector.predict(alpha=...)` does.

    Attributes:
        offset_: The `contamination` quantile of `score_samples` of the fitted rows.
        normal_classes_: Classes with rows, as values of y in increasing order [normal].
        moments_: `ClassMoments` of the rows of these classes.
        label_embeddings_: Unit-norm label embedding of each of these classes [normal, dim], either given or
            a normalised mean.
        n_features_in_: dim.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 8)) + 4
        >>> detector = BlissOutlierDetector(contamination=0.05).fit(x)
        >>> detector.predict(np.stack([x[0], -x[0]]))
        array([ 1, -1])
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's name and form)
        "label_embeddings": ["array-like", None],
        "dictionary_embeddings": ["array-like", None],
        "anomaly_score": [str, callable, Score],
        "k": [Interval(Integral, 1, None, closed="left")],
        "weight": [Interval(Real, None, None, closed="neither")],
        "shrinkage": [Interval(Real, 0, None, closed="left")],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(
        self,
        label_embeddings=None,
        dictionary_embeddings=None,
        *,
        anomaly_score=BLISS,
        k=10,
        weight=0.5,
        shrinkage=0.0,
        contamination=0.1,
    ):
        self.label_embeddings = label_embeddings
        self.dictionary_embeddings = dictionary_embeddings
        self.anomaly_score = anomaly_score
        self.k = k
        self.weight = weight
        self.shrinkage = shrinkage
        self.contamination = contamination

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> "BlissOutlierDetector":  # noqa: N803
        """Computes the moments of each class's rows, the statistics of the texts, and the offset.

        Args:
            X: Embeddings of images [n, dim], array-like.
            y: Class of each row [n], integers: a row of `label_embeddings`, or -1 for a known anomaly.
                Anomalies are excluded from the fit; they serve scorers, which receive the same y. A class
                without rows in X is not normal. None assigns all rows to one class.

        Returns:
            The detector itself.

        Raises:
            ValueError: X or the texts are not finite matrices of one dimension, or have a row of zeros; y
                has another length, is not of integers or is out of range; y is None and there are several
                labels; there is no normal row; k > texts; the mean of a class without a label is zero; or the
                score is unknown, depends on the other rows, or needs texts or images that are missing.
            sklearn.utils._param_validation.InvalidParameterError: A parameter is out of range (a ValueError).
        """
        record = as_score(self.anomaly_score)
        if record.transductive:
            raise ValueError(f"anomaly_score: {record.name!r} cannot be computed: {TRANSDUCTIVE}")
        if y is None:
            X = validate_data(self, X, dtype=_FLOATS)  # noqa: N806
        else:
            X, y = validate_data(self, X, y, dtype=_FLOATS)  # noqa: N806
        _refuse_zero_rows("X", X)
        labels = self._texts("label_embeddings", X.shape[1])
        dictionary = self._texts("dictionary_embeddings", X.shape[1])
        if dictionary is not None:
            _checks.top_k_size(self.k, len(dictionary), "the texts of the dictionary")
        y = _class_of_rows(y, len(X), None if labels is None else len(labels))

        normal = np.flatnonzero(y >= 0)
        if not len(normal):
            raise ValueError(
                f"y: expected at least one normal row, got -1 (a known anomaly) for all {len(y)}"
            )
        self.normal_classes_, class_of_row = np.unique(y[normal], return_inverse=True)
        x = np.concatenate([block for block, _ in _unit_blocks(X[normal])])
        self.moments_ = _fit(
            x,
            np.pad(class_of_row.astype(np.int32), (0, len(x) - len(normal))),
            where=np.arange(len(x)) < len(normal),
            num_classes=len(self.normal_classes_),
        )
        self.label_embeddings_ = (
            self._directions() if labels is None else labels[self.normal_classes_]
        )
        if record.name == BLISS:
            self._fitted = self._prepared_bliss(dictionary)
        else:
            rows = {"train_embeddings": x[: len(normal)], "train_labels": class_of_row}
            self._fitted = self._prepared_score(record, dictionary, rows)
        self.offset_ = np.quantile(_score_rows(X[normal], self._fitted), self.contamination)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Int[np.ndarray, " images"]:  # noqa: N803  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns `fit(X, y).predict(X)`. Unlike scikit-learn's own detectors, it uses y.

        Arguments and errors are those of `fit`.
        """
        return self.fit(X, y).predict(X)

    def score_samples(self, X: Any) -> Float[np.ndarray, " images"]:  # noqa: N803
        """Returns -BLISS(x) of each row; higher is more normal.

        The score of a row does not depend on the other rows of X.

        Args:
            X: Embeddings of images [n, dim], array-like.

        Returns:
            Scores [n], computed in float32, returned as float64.

        Raises:
            ValueError: X is not a finite matrix of the fitted dimension, or has a row of zeros.
            sklearn.exceptions.NotFittedError: The detector is not fitted.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)  # noqa: N806
        _refuse_zero_rows("X", X)
        return _score_rows(X, self._fitted)

    def decision_function(self, X: Any) -> Float[np.ndarray, " images"]:  # noqa: N803
        """Returns `score_samples(X) - offset_`, which is negative for outliers.

        Arguments and errors are those of `score_samples`.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Int[np.ndarray, " images"]:  # noqa: N803
        """Returns 1 for rows with a non-negative `decision_function`, -1 for outliers.

        Arguments and errors are those of `score_samples`.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _prepared_bliss(self, dictionary: np.ndarray | None) -> "_Fitted":
        shrinkage, shrunk = jnp.asarray(self.shrinkage, jnp.float32), self.shrinkage > 0
        prepared = None
        if dictionary is not None:
            prepared = _prepare(
                self.label_embeddings_, dictionary, self.moments_, shrinkage, shrunk=shrunk
            )
        return _Fitted(
            jnp.asarray(self.label_embeddings_),
            self.moments_,
            prepared,
            jnp.asarray(self.weight, jnp.float32),
            shrinkage,
            k=int(self.k),
            shrunk=shrunk,
        )

    def _prepared_score(
        self, record: Score, dictionary: np.ndarray | None, rows: dict[str, np.ndarray]
    ) -> PreparedScore:
        """Returns a score other than BLISS, with its prepared arrays.

        Raises:
            ValueError: The score needs texts or more rows.
        """
        needs = {*record.needs_of_detector}
        if dictionary is None and needs & {"dictionary_embeddings", "external"}:
            raise ValueError(
                f"dictionary_embeddings: expected the embeddings of a dictionary, which the score {record.name!r} "
                "needs, got None"
            )
        if "something_embedding" in needs:
            raise ValueError(
                f"anomaly_score: expected a score of labels, a dictionary and images, got {record.name!r}, which needs "
                "the embedding of another text; use Detector.fit"
            )
        texts = 0 if dictionary is None else len(dictionary)
        largest = int(np.asarray(self.moments_.count).max())
        reason = record.unavailable and record.unavailable(Facts(largest, texts))
        if reason:
            raise ValueError(f"anomaly_score: {record.name!r} cannot be computed: {reason}")
        arrays = {
            "label_embeddings": jnp.asarray(self.label_embeddings_),
            "mcm_label_embeddings": jnp.asarray(self.label_embeddings_),
            "moments": self.moments_,
            "train_embeddings": jnp.asarray(rows["train_embeddings"]),
            "train_labels": jnp.asarray(rows["train_labels"].astype(np.int32)),
        }
        if dictionary is not None:
            arrays["dictionary_embeddings"] = jnp.asarray(dictionary)
        return prepare_score(
            record, arrays, k=int(self.k), weight=self.weight, shrinkage=float(self.shrinkage)
        )

    def _texts(self, name: str, dim: int) -> Float[np.ndarray, "texts dim"] | None:
        """Returns the normalised rows of a text parameter, or None if it is not set."""
        given = getattr(self, name)
        if given is None:
            return None
        texts = check_array(given, dtype=_FLOATS, input_name=name)  # pyright: ignore[reportArgumentType]
        if texts.shape[1] != dim:
            raise ValueError(
                f"{name}: expected embeddings of the dimension of X, {dim}, got {list(texts.shape)}"
            )
        _refuse_zero_rows(name, texts)
        return _unit(texts)

    def _directions(self) -> Float[np.ndarray, "normal dim"]:
        """Returns m_c / |m_c|, which replaces the label embeddings if there are none."""
        mean = np.asarray(self.moments_.mean)
        short = np.flatnonzero(np.linalg.norm(mean, axis=1) < _NO_DIRECTION)
        if len(short):
            raise ValueError(
                f"X: the normalised rows of class {self.normal_classes_[short[0]]} have the mean zero, which "
                "cannot replace the embedding of the class's label; pass label_embeddings"
            )
        return _unit(mean)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Fitted:
    """Fitted arrays as a pytree. Changing the estimator's parameters after `fit` does not change it."""

    label_embeddings: Float[Array, "*mapped classes dim"]
    moments: ClassMoments
    prepared: PreparedBliss | None
    """Statistics of the texts; None without a dictionary."""
    weight: Float[Array, "*mapped"]
    shrinkage: Float[Array, "*mapped"]
    k: int = field(metadata={"static": True})
    shrunk: bool = field(metadata={"static": True})
    """Whether shrinkage is positive."""


_fit = jax.jit(fit_moments, static_argnames="num_classes")


@partial(jax.jit, static_argnames="shrunk")
def _prepare(labels, dictionary, moments, shrinkage, *, shrunk):
    """Calls `prepare_bliss`. A positive n0 is traced, so that a grid of values compiles once."""
    return prepare_bliss(labels, dictionary, moments, shrinkage=shrinkage if shrunk else 0.0)


@jax.jit
def _anomaly(x, fitted):
    """Returns BLISS of a block of rows, or its internal part if there is no dictionary."""
    if fitted.prepared is not None:
        return bliss_score_prepared(x, fitted.prepared, fitted.k, weight=fitted.weight)
    return min_over_classes(
        internal_class_score(
            x,
            fitted.label_embeddings,
            fitted.moments,
            shrinkage=fitted.shrinkage if fitted.shrunk else 0.0,
        )
    )


def _score_rows(rows: np.ndarray, fitted: _Fitted | PreparedScore) -> Float[np.ndarray, " images"]:
    score = _anomaly if isinstance(fitted, _Fitted) else score_embeddings
    blocks = (np.asarray(score(x, fitted))[:length] for x, length in _unit_blocks(rows))
    return -np.concatenate(list(blocks)).astype(np.float64)


def _unit_blocks(rows: np.ndarray) -> Iterator[tuple[Float[np.ndarray, "block dim"], int]]:
    """Yields normalised rows in blocks of one size, with the number of rows of each that are not padding."""
    for start in range(0, len(rows), _BLOCK):
        block = _unit(rows[start : start + _BLOCK])
        yield np.pad(block, ((0, _BLOCK - len(block)), (0, 0)), mode="edge"), len(block)


def _unit(rows: np.ndarray) -> Float[np.ndarray, "rows dim"]:
    """Returns each row divided by its norm, computed in float64 and rounded to float32."""
    x = rows.astype(np.float64)
    # Dividing by the largest entry first avoids an overflow of its square.
    x /= np.abs(x).max(axis=1, keepdims=True)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _refuse_zero_rows(name: str, rows: np.ndarray) -> None:
    zero = np.flatnonzero(~rows.any(axis=1))
    if len(zero):
        raise ValueError(f"{name}: row {zero[0]} is zero, so it cannot be normalised")


def _class_of_rows(y: Any, rows: int, num_classes: int | None) -> Int[np.ndarray, " rows"]:
    """Returns the class of each row, -1 for known anomalies; zeros if y is None."""
    if y is None:
        if num_classes not in (None, 1):
            raise ValueError(
                f"y: expected the class of each row, because label_embeddings has {num_classes} rows; got "
                "None"
            )
        return np.zeros(rows, np.int64)
    whole = y.dtype.kind in "iu" or (y.dtype.kind == "f" and bool((y == np.floor(y)).all()))
    if not whole:
        raise ValueError(
            "y: expected integers, the class of each row or -1 for a known anomaly. Unknown label type: "
            f"{y.dtype}, {y[:3].tolist()}"
        )
    if y.min() < -1 or (num_classes is not None and y.max() >= num_classes):
        bound = "of at least -1" if num_classes is None else f"in -1..{num_classes - 1}"
        raise ValueError(f"y: expected integers {bound}, got {y.min():g}..{y.max():g}")
    return y.astype(np.int64)
