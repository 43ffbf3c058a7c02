"""Protocols: the normal and anomalous classes of each split.

    name            normal and anomalous classes                       data sets
    one-class       each class normal once, all others anomalous       all
    leave-one-out   each class anomalous once, all others normal       all
    zoc             the splits of the family zoc for the data set      cifar10, cifar100, tiny-imagenet
    zoc-6           6 of 10 classes normal                             cifar10
    cac             the splits of the family cac for the data set      cifar10, tiny-imagenet
    cifar+10-zoc    4 normal of CIFAR-10, 10 anomalous of CIFAR-100    cifar10+cifar100
    cifar+50-zoc    4 normal of CIFAR-10, 50 anomalous of CIFAR-100    cifar10+cifar100
    cifar+10-cac    as cifar+10-zoc, with the classes of family cac    cifar10+cifar100
    glyphs-...      six protocols of symbols, see `glyph_splits.py`    glyphs
    FILE.json       {"name": ..., "splits": [[ids of the normal classes], ...]}

A split ignores the images of classes that are neither normal nor anomalous in it. Split families are not
interchangeable, because the same benchmark has different classes in each family. A result therefore always
names its family. The tables and their sources are in `split_tables.py`.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bliss_jax.datasets import glyph_splits
from bliss_jax.datasets import split_tables as tables
from bliss_jax.datasets.class_names import class_positions, misplaced_class

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
        ValueError: A side is empty or contains values other than distinct ids, or both sides overlap.
    """

    normal: tuple[int, ...]
    anomalous: tuple[int, ...]

    def __post_init__(self):
        for side, ids in (("normal", self.normal), ("anomalous", self.anomalous)):
            if not ids:
                raise ValueError(f"a split has no {side} classes, expected at least one")
            if any(type(i) is not int or i < 0 for i in ids):
                raise ValueError(f"{side} classes are {ids!r}, expected ids (integers from 0)")
            if repeated := sorted({i for i in ids if ids.count(i) > 1}):
                raise ValueError(f"{side} classes contain {_listed(repeated)} more than once")
        if both := sorted(set(self.normal) & set(self.anomalous)):
            raise ValueError(f"classes {_listed(both)} are both normal and anomalous")


@dataclass(frozen=True)
class Protocol:
    """The splits over which a benchmark averages.

    Attributes:
        name: Name of the protocol: one of `protocol_names()`, or the name in a JSON file.
        family: `"zoc"`, `"cac"`, `"one-class"`, `"leave-one-out"`, `"glyphs"`, or `"custom"` for a
            JSON file.
        dataset: Data set to which the class ids belong; None if the protocol fits any data set.
        splits: The splits, at least one.

    Raises:
        ValueError: There is no split.
    """

    name: str
    family: str
    dataset: str | None
    splits: tuple[Split, ...]

    def __post_init__(self):
        if not self.splits:
            raise ValueError(f"protocol {self.name!r} has no splits, expected at least one")


def protocol_names() -> tuple[str, ...]:
    """Returns the names of the protocols that `load_protocol` can load by name."""
    return (*_GENERATED, *_NORMAL, *_PLUS_ANOMALOUS, *glyph_splits.GLYPH_PROTOCOLS)


def load_protocol(
    name_or_json: str | Path,
    *,
    dataset: str,
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> Protocol:
    """Loads a protocol: the splits of the classes of a data set.

    Args:
        name_or_json: One of `protocol_names()`, or a JSON file as in the module's docstring. A `Path` is
            always a file.
        dataset: Name of the data set. For names that are not in `dataset_names()` only `one-class`,
            `leave-one-out` and JSON files are available.
        num_classes: Number of classes of the data set.
        class_names: Class names by class id, if these ids may differ from those of the data set, e.g. in a
            file of embeddings. The data set's own splits are mapped to these ids by class name. Names that
            are not known leave the ids as they are. JSON files and the generated protocols are not mapped.

    Raises:
        ValueError: The name is unknown or belongs to another data set, `num_classes` is not that of the
            data set, the JSON file is not a protocol for this number of classes, or the class names
            contradict the ids of the data set.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2")
    if num_classes != _CLASSES.get(dataset, num_classes):
        raise ValueError(
            f"num_classes is {num_classes}, but {dataset} has {_CLASSES[dataset]} classes"
        )
    if isinstance(name_or_json, str) and name_or_json in protocol_names():
        protocol = _named(name_or_json, dataset, num_classes)
        return protocol if class_names is None else _mapped(protocol, class_names)

    from bliss_jax.datasets.protocol_file import read_protocol

    path = Path(name_or_json)
    if isinstance(name_or_json, Path) or path.suffix.lower() == ".json" or path.is_file():
        name, rows = read_protocol(path, num_classes=num_classes, reserved=protocol_names())
        splits = tuple(normal_against_rest(row, num_classes) for row in rows)
        return Protocol(name, "custom", None, splits)
    near = difflib.get_close_matches(name_or_json.lower(), protocol_names(), n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"{name_or_json!r} is neither a JSON file nor one of the protocols "
        f"{', '.join(protocol_names())}{hint}"
    )


def normal_against_rest(normal: Iterable[int], num_classes: int) -> Split:
    """Returns the split in which the given classes are normal and all other classes anomalous."""
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


def _mapped(protocol: Protocol, class_names: Sequence[str]) -> Protocol:
    """Maps a protocol's ids, those of its data set, to positions in `class_names`.

    Raises:
        ValueError: If some class names, but not all, are those of other classes of the data set.
    """
    if protocol.dataset is None:
        return protocol
    positions = class_positions(protocol.dataset, class_names)
    if positions is None:
        if (misplaced := misplaced_class(protocol.dataset, class_names)) is not None:
            position, own = misplaced
            raise ValueError(
                f"protocol {protocol.name!r}: expected the classes of {protocol.dataset}, got class names "
                f"that are not all of them, in another order: {class_names[position]!r} is class {own} of "
                f"{protocol.dataset} and class {position} here; rename the classes, or give the splits as a "
                "JSON file"
            )
        return protocol
    splits = tuple(
        Split(*(tuple(positions[i] for i in side) for side in (split.normal, split.anomalous)))
        for split in protocol.splits
    )
    return replace(protocol, splits=splits)


def protocols_of(dataset: str) -> tuple[str, ...]:
    """Returns the names of the protocols for a data set: its own first, then those for all data sets."""
    own = [name for name, data in _NORMAL.items() if dataset in data]
    own += _PLUS_ANOMALOUS if dataset == _PLUS else []
    own += glyph_splits.GLYPH_PROTOCOLS if dataset == "glyphs" else []
    return (*own, *_GENERATED)


def classes_of(dataset: str) -> int:
    """Returns the number of classes of a named data set."""
    return _CLASSES[dataset]


def _of_another_dataset(name: str, owners: tuple[str, ...], dataset: str) -> str:
    return (
        f"protocol {name!r} has splits for {', '.join(owners)}, but not for {dataset!r}; "
        f"choose one of {', '.join(protocols_of(dataset))}"
    )


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))
