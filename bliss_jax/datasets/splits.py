"""Protocols: which classes are normal and which anomalous, split by split.

    one-class       each class normal once, all others anomalous       any data set
    leave-one-out   each class anomalous once, all others normal       any data set
    zoc             the data set's own splits of that family           cifar10, cifar100, tiny-imagenet
    zoc-6           6 of 10 normal                                     cifar10
    cac             the data set's own splits of that family           cifar10, tiny-imagenet
    cifar+10-zoc    4 normal of CIFAR-10, 10 anomalous of CIFAR-100    cifar10+cifar100
    cifar+50-zoc    the same with 50 anomalous classes                 cifar10+cifar100
    cifar+10-cac    CAC's ten                                          cifar10+cifar100
    glyphs-...      six protocols of symbols, see `glyph_splits.py`    glyphs
    FILE.json       {"name": ..., "splits": [[ids of the normal classes], ...]}

Images of classes that a split names neither normal nor anomalous take no part in it. Split families are
not interchangeable (the same benchmark has other classes in each), so a result always names its family.
The tables and their sources are in `split_tables.py`.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bliss_jax.datasets import glyph_splits
from bliss_jax.datasets import split_tables as tables

_PLUS = "cifar10+cifar100"
_CIFAR10_CLASSES = 10
_CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    _PLUS: 110,
    "tiny-imagenet": 200,
    "digits": 10,
    "glyphs": 259,
}

# The normal classes of each split, by family and data set; all other classes are anomalous.
_NORMAL: dict[str, dict[str, tables.Rows]] = {
    "zoc": {
        "cifar10": tables.CIFAR10_ZOC,
        "cifar100": tables.CIFAR100_ZOC,
        "tiny-imagenet": tables.TINY_IMAGENET_ZOC,
    },
    "zoc-6": {"cifar10": tables.CIFAR10_ZOC},
    "cac": {"cifar10": tables.CIFAR10_CAC, "tiny-imagenet": tables.TINY_IMAGENET_ZOC},
}
# The anomalous CIFAR-100 classes of each split.
_PLUS_ANOMALOUS: dict[str, tables.Rows] = {
    "cifar+10-zoc": tables.CIFAR_PLUS_10_ZOC,
    "cifar+50-zoc": tables.CIFAR_PLUS_50_ZOC,
    "cifar+10-cac": tables.CIFAR_PLUS_10_CAC,
}
_GENERATED = ("one-class", "leave-one-out")


@dataclass(frozen=True)
class Split:
    """One division of the classes.

    Attributes:
        normal: Ids of the classes whose images are normal.
        anomalous: Ids of the classes whose images are anomalies.

    Raises:
        ValueError: if either is empty, holds anything but distinct ids, or they overlap.
    """

    normal: tuple[int, ...]
    anomalous: tuple[int, ...]

    def __post_init__(self):
        for side, ids in (("normal", self.normal), ("anomalous", self.anomalous)):
            if not ids:
                raise ValueError(f"a split has no {side} classes")
            if any(type(i) is not int or i < 0 for i in ids):
                raise ValueError(f"{side} classes are {ids!r}, expected ids (integers from 0)")
            if repeated := sorted({i for i in ids if ids.count(i) > 1}):
                raise ValueError(f"{side} classes repeat {_listed(repeated)}")
        if both := sorted(set(self.normal) & set(self.anomalous)):
            raise ValueError(f"classes {_listed(both)} are both normal and anomalous")


@dataclass(frozen=True)
class Protocol:
    """The splits a benchmark averages over.

    Attributes:
        name: As it was asked for, or as a JSON file names it.
        family: `"zoc"`, `"cac"`, `"one-class"`, `"leave-one-out"`, `"glyphs"`, or `"custom"` for a
            JSON file.
        dataset: The data set its class ids belong to; None where they were made for any.
        splits: At least one.

    Raises:
        ValueError: if there is no split.
    """

    name: str
    family: str
    dataset: str | None
    splits: tuple[Split, ...]

    def __post_init__(self):
        if not self.splits:
            raise ValueError(f"protocol {self.name!r} has no splits")


def protocol_names() -> tuple[str, ...]:
    """The names that `load_protocol` knows."""
    return (*_GENERATED, *_NORMAL, *_PLUS_ANOMALOUS, *glyph_splits.GLYPH_PROTOCOLS)


def load_protocol(name_or_json: str | Path, *, dataset: str, num_classes: int) -> Protocol:
    """The splits of a data set's classes.

    Args:
        name_or_json: One of `protocol_names()`, or a JSON file (see above); a `Path` is always a file.
        dataset: The data set's name; any other than those of `dataset_names()` has the generated
            protocols and JSON files.
        num_classes: How many classes it has.

    Raises:
        ValueError: for an unknown name, a protocol of another data set, a number of classes that is not
            the data set's, or a JSON file that is not a protocol of this many classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2")
    if num_classes != _CLASSES.get(dataset, num_classes):
        raise ValueError(f"{dataset} has {_CLASSES[dataset]} classes, num_classes is {num_classes}")
    if isinstance(name_or_json, str) and name_or_json in protocol_names():
        return _named(name_or_json, dataset, num_classes)

    from bliss_jax.datasets.protocol_file import read_protocol

    path = Path(name_or_json)
    if isinstance(name_or_json, Path) or path.suffix.lower() == ".json" or path.is_file():
        name, rows = read_protocol(path, num_classes=num_classes, reserved=protocol_names())
        splits = tuple(normal_against_rest(row, num_classes) for row in rows)
        return Protocol(name, "custom", None, splits)
    near = difflib.get_close_matches(name_or_json.lower(), protocol_names(), n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"{name_or_json!r} is neither a protocol nor a JSON file: {', '.join(protocol_names())}{hint}"
    )


def normal_against_rest(normal: Iterable[int], num_classes: int) -> Split:
    """The split with these normal classes and all other classes anomalous."""
    normal = tuple(normal)
    return Split(normal, tuple(i for i in range(num_classes) if i not in normal))


def _named(name: str, dataset: str, num_classes: int) -> Protocol:
    everything = range(num_classes)
    if name == "one-class":
        splits = tuple(normal_against_rest((i,), num_classes) for i in everything)
        return Protocol(name, name, None, splits)
    if name == "leave-one-out":
        splits = tuple(Split(tuple(j for j in everything if j != i), (i,)) for i in everything)
        return Protocol(name, name, None, splits)

    if name in glyph_splits.GLYPH_PROTOCOLS:
        if dataset != "glyphs":
            raise ValueError(_of_another_dataset(name, ("glyphs",), dataset))
        rows = glyph_splits.glyph_splits(name)
        return Protocol(name, "glyphs", dataset, tuple(Split(*row) for row in rows))
    owners = tuple(_NORMAL[name]) if name in _NORMAL else (_PLUS,)
    if dataset not in owners:
        raise ValueError(_of_another_dataset(name, owners, dataset))
    if name in _NORMAL:
        splits = tuple(normal_against_rest(row, num_classes) for row in _NORMAL[name][dataset])
        return Protocol(name, name.removesuffix("-6"), dataset, splits)
    splits = tuple(
        Split(tables.CIFAR_PLUS_NORMAL, tuple(_CIFAR10_CLASSES + i for i in row))
        for row in _PLUS_ANOMALOUS[name]
    )
    return Protocol(name, name.rsplit("-", 1)[-1], dataset, splits)


def protocols_of(dataset: str) -> tuple[str, ...]:
    """The names of the protocols that a data set has: its own, then those that every data set has."""
    own = [name for name, data in _NORMAL.items() if dataset in data]
    own += _PLUS_ANOMALOUS if dataset == _PLUS else []
    own += glyph_splits.GLYPH_PROTOCOLS if dataset == "glyphs" else []
    return (*own, *_GENERATED)


def classes_of(dataset: str) -> int:
    """The number of classes of a named data set."""
    return _CLASSES[dataset]


def _of_another_dataset(name: str, owners: tuple[str, ...], dataset: str) -> str:
    return (
        f"protocol {name!r} has splits of {', '.join(owners)}, not of {dataset!r}, "
        f"for which there are {', '.join(protocols_of(dataset))}"
    )


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))
