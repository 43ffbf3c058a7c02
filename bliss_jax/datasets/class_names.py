"""Class names of the named data sets, which identify the data set of a file of embeddings.

The ids of a data set's own splits (`split_tables.py`) are positions in these names. The names are those of
the official archives: CIFAR-10's order, CIFAR-100's fine labels in alphabetical order, and TinyImageNet's
labels in the order of their sorted wnids, as `tiny_imagenet_classes.csv` spells them.
"""

import csv
import io
from collections.abc import Sequence
from functools import cache
from importlib import resources

_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)


def class_table() -> dict[str, str]:
    """Returns TinyImageNet's label of each wnid, in the order of the sorted wnids."""
    file = resources.files("bliss_jax.datasets") / "tiny_imagenet_classes.csv"
    rows = csv.DictReader(io.StringIO(file.read_text("utf-8")))
    return {row["wnid"]: row["label"].replace("_", " ") for row in rows}


@cache
def class_names_of(dataset: str) -> tuple[str, ...] | None:
    """Returns the class names of a data set that has splits of its own, or None for any other name."""
    from bliss_jax.datasets.glyphs import glyph_names

    if dataset == "tiny-imagenet":
        return tuple(class_table().values())
    if dataset == "glyphs":
        return glyph_names()
    return {
        "cifar10": _CIFAR10,
        "cifar100": _CIFAR100,
        "cifar10+cifar100": _CIFAR10 + _CIFAR100,
    }.get(dataset)


def recognise_dataset(class_names: Sequence[str]) -> str | None:
    """Returns the named data set with these class names, or None if there is none.

    The names may be in any order. Upper and lower case are not distinguished, and neither are underscores,
    hyphens and blanks. Only data sets with splits of their own are recognised: cifar10, cifar100,
    cifar10+cifar100, tiny-imagenet and glyphs.

    Args:
        class_names: Class names, e.g. those of a file of embeddings.
    """
    for dataset in ("cifar10", "cifar100", "cifar10+cifar100", "tiny-imagenet", "glyphs"):
        if class_positions(dataset, class_names) is not None:
            return dataset
    return None


def class_positions(dataset: str, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the position in `class_names` of each class of a data set.

    Args:
        dataset: Name of a data set.
        class_names: The data set's class names, in any order and spelling that `recognise_dataset` accepts.

    Returns:
        Positions by class id: 0, 1, 2, ... if the order is that of the data set. None if these are not the
        class names of this data set, or if the names of the data set are not known.
    """
    known = class_names_of(dataset)
    if known is None or len(known) != len(class_names):
        return None
    positions = {_normalised(name): i for i, name in enumerate(class_names)}
    names = [_normalised(name) for name in known]
    return tuple(positions[name] for name in names) if positions.keys() == set(names) else None


def misplaced_class(dataset: str, class_names: Sequence[str]) -> tuple[int, int] | None:
    """Returns the position of the first class name that has another id in a data set, and this id.

    None if every class name has the same position in the data set, or is not one of its names.
    """
    ids = {_normalised(name): i for i, name in enumerate(class_names_of(dataset) or ())}
    for position, name in enumerate(class_names):
        if ids.get(_normalised(name), position) != position:
            return position, ids[_normalised(name)]
    return None


def _normalised(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
