"""The table of scores, with one record for each score.

A record contains the name of a score, its function and its source. The names of the function's parameters are the
inputs that it needs from an evaluation (`INPUTS`). A new score is therefore one file: a module of this package that
defines a function and a `SCORE`. `Score` describes a user's own function in the same way.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

INPUTS = {
    "embeddings": "embeddings of the test images [images, dim]",
    "label_embeddings": "embedding of each class's prompt [classes, dim]",
    "mcm_label_embeddings": "embedding of each class's MCM prompt, or of its prompt [classes, dim]",
    "something_embedding": "embedding of `a photo of something` [dim]",
    "dictionary_embeddings": "embeddings of the dictionary's prompts [texts, dim]",
    "train_embeddings": "embeddings of the training images [train, dim]",
    "train_labels": "class of each training image [train]",
    "moments": "`ClassMoments` of the training images",
    "internal": "internal(x, c) without shrinkage [images, classes]",
    "external": "external(x, c) without shrinkage [images, classes]",
    "nearest_images": "the largest cosines to the training images of each class [images, classes, neighbours]",
    "normal": "mask of the split's normal classes [classes]",
    "counted": "mask of the split's test images, those of its normal and anomalous classes [images]",
    "key": "random key of the evaluation's seed",
    "num_classes": "number of classes",
    "k": "dictionary texts per image",
    "weight": "lambda",
    "shrinkage": "n0; the score has one row for each value in the settings",
    "neighbours": "neighbours per image",
}
"""Names of the parameters that a score's function may have, and the value that an evaluation passes for each."""

OF_IMAGES = ("embeddings", "internal", "external", "nearest_images", "counted")
"""Inputs that depend on the test images."""


class Facts(NamedTuple):
    """Facts of an evaluation that may make a score unavailable."""

    images_per_class: int
    """Training images of the largest class."""
    texts: int
    """Texts in the dictionary."""


@dataclass(frozen=True)
class Score:
    """A score that `evaluate` can run on all splits of a protocol.

    Raises:
        ValueError: The name is empty, or a required parameter of the function is not one of `INPUTS`.
    """

    name: str
    """Name in settings, tables and results."""
    function: Callable[..., Any]
    """Returns scores [images], higher = more anomalous. JAX must be able to trace it. Its parameters are names of
    `INPUTS`; other parameters keep their defaults."""
    label: str = ""
    """Label in tables; the name by default."""
    source: str = ""
    """Publication of the score."""
    default: bool = False
    """Whether an evaluation computes the score if its settings name no scores."""
    order: int = 1000
    """Position in tables."""
    one_split_at_a_time: bool = False
    """Whether splits are mapped over one after the other, because their temporaries are large. By default several
    splits are computed together (`vmap`), and results that do not depend on the mask are computed once."""
    transductive: bool = False
    """Whether the score of an image depends on the other images. Its input `counted` then marks the images that it may
    adapt to; a function with this input is always transductive. Detectors refuse such scores, because conformal
    p-values and thresholds are not valid for them."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further settings of the function, for the results; JSON values."""
    unavailable: Callable[[Facts], str | None] | None = None
    """Returns the reason why the score cannot be computed, or None."""
    prepare: Callable[..., Any] | None = None
    """Computes a pytree of arrays once for each detector, before it sees images. Its parameters are names of `INPUTS`
    that do not depend on test images. JAX must be able to trace it."""
    from_prepared: Callable[..., Any] | None = None
    """Returns the scores of `function`, up to rounding. Its parameters are `prepared`, the result of `prepare`, and
    names of `INPUTS`. A detector uses the two functions in place of `function`; an evaluation does not."""

    def __post_init__(self):
        if not self.name:
            raise ValueError("name: expected a name, got an empty one")
        if (self.prepare is None) != (self.from_prepared is None):
            raise ValueError(
                f"score {self.name!r}: expected both prepare and from_prepared, or neither"
            )
        self._check("function", self.function, INPUTS)
        if self.prepare is not None and self.from_prepared is not None:
            self._check("prepare", self.prepare, [n for n in INPUTS if n not in OF_IMAGES])
            self._check("from_prepared", self.from_prepared, ["prepared", *INPUTS])
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "transductive", self.transductive or "counted" in self.needs)

    def _check(self, field: str, function: Any, inputs: Collection[str]) -> None:
        """Raises ValueError if a function is not callable, or requires a parameter that is not one of the inputs."""
        if not callable(function):
            what = "a function" if field == "function" else f"a function as {field}"
            raise ValueError(
                f"score {self.name!r}: expected {what}, got a {type(function).__name__}"
            )
        required = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        for name in required:
            if name not in inputs:
                near = get_close_matches(name, inputs)
                hint = f" (did you mean {' or '.join(near)}?)" if near else ""
                whose = "its function" if field == "function" else field
                raise ValueError(
                    f"score {self.name!r}: the parameter {name!r} of {whose} is not an input of an "
                    f"evaluation{hint}; inputs: {', '.join(inputs)}"
                )

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the inputs that the function takes."""
        return inputs_of(self.function)

    @property
    def needs_of_detector(self) -> tuple[str, ...]:
        """Names of the inputs that `function`, `prepare` and `from_prepared` take."""
        functions = (self.function, self.prepare, self.from_prepared)
        names = (name for f in functions if f is not None for name in inputs_of(f))
        return tuple(dict.fromkeys(names))

    @property
    def place(self) -> str:
        """MODULE:NAME of the function, or of the class of another callable object, e.g. a `functools.partial`."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}:{named.__qualname__}"


def inputs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the names of the inputs that a function takes."""
    return tuple(name for name in inspect.signature(function).parameters if name in INPUTS)


@cache
def score_table() -> Mapping[str, Score]:
    """Returns the library's scores by name, in the order of tables.

    They are the `SCORE` and the `SCORES` of the modules of this package.
    """
    records: list[Score] = []
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem.startswith("_"):
            continue
        module = import_module(f"{__package__}.{file.stem}")
        records += [value for value in vars(module).get("SCORES", ()) if isinstance(value, Score)]
        if isinstance(vars(module).get("SCORE"), Score):
            records.append(module.SCORE)
    return {record.name: record for record in sorted(records, key=lambda record: record.order)}


def as_score(score: "str | Score | Callable[..., Any]") -> Score:
    """Returns the record of a score that is given by its name, by its function or as a record.

    The record of a function has the function's name.

    Raises:
        ValueError: There is no score of that name. The message lists similar names.
    """
    if isinstance(score, Score):
        return score
    if not isinstance(score, str):
        return Score(getattr(score, "__name__", ""), score)
    known = score_table()
    if score not in known:
        near = get_close_matches(score, known)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"scores: unknown score {score!r}{hint}; known: {', '.join(known)}")
    return known[score]
