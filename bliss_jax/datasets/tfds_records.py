"""Any image-classification data set that tensorflow-datasets (tfds) has prepared as ArrayRecord, without TensorFlow.

A prepared folder describes itself: its splits, its features and its label names. It is read without the code of its
builder. Preparing most data sets needs TensorFlow, so a data set that is missing leads to an error with the command
that prepares it on a machine with TensorFlow; the folder can then be copied.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import list_imported_builders

from bliss_jax.datasets.image_dataset import ImageDataset
from bliss_jax.datasets.load import TFDS_PREFIX as PREFIX
from bliss_jax.datasets.records import INDEXED_AT_ONCE, RecordImages

UNLABELLED = "image"
"""Class of the images of a data set without labels."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SPLITS = {"train": ("train",), "test": ("test", "validation", "val"), "val": ("validation", "val")}


def load_tfds(
    name: str, split: str, data_dir: Path | None, *, need_labels: bool = True
) -> ImageDataset:
    """Opens one split of a prepared data set. Its images are decoded when they are accessed.

    Args:
        name: `NAME` or `NAME/CONFIG`, without the prefix `tfds:`.
        split: `"train"`, `"test"` (the split `validation` if there is no `test`) or `"val"`.
        data_dir: Folder of prepared data sets; None means the default of tfds.
        need_labels: Whether a data set without labels is an error. If not, its images are of one class.

    Returns:
        The split in the order in which tfds stores it.

    Raises:
        ValueError: The data set is not prepared or in a file format without random access, has no such split, or its
            features do not say which is the image and which the label.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))
    builder: Any = tfds.builder_from_directory(_prepared(name, root.expanduser()))
    info: Any = builder.info
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        found = getattr(info.file_format, "value", info.file_format)
        raise ValueError(
            f"{PREFIX}{name} was prepared in the format {found}, expected array_record, which has random access. "
            + _how_to_prepare(name, root)
        )
    own = next((s for s in _SPLITS[split] if s in info.splits), None)
    if own is None:
        raise ValueError(
            f"{PREFIX}{name} has no split {' or '.join(_SPLITS[split])}; its splits are {', '.join(info.splits)}"
        )
    image, label = _keys(name, info)
    if label is None and need_labels:
        raise ValueError(
            f"{PREFIX}{name} has no label: expected a feature of type ClassLabel, found {_described(info)}"
        )
    records: Any = builder.as_data_source(own, decoders={image: tfds.decode.SkipDecoding()})
    labels = np.zeros(len(records), np.int32) if label is None else _labels(records, label)
    names = (UNLABELLED,) if label is None else tuple(info.features[label].names)
    return ImageDataset(
        name=f"{PREFIX}{name}",
        images=RecordImages(records, np.arange(len(records)), f"{PREFIX}{name} {own}", image),
        labels=labels,
        class_names=names,
        source=f"tfds {info.full_name} {own}",
    )


def _prepared(name: str, root: Path) -> Path:
    """Returns the folder of the newest prepared version.

    Raises:
        ValueError: There is none, or several configurations and the name chooses none.
    """
    folder = root / name
    versions = _versions(folder)
    if not versions and folder.is_dir() and "/" not in name:
        configs = sorted(entry.name for entry in folder.iterdir() if _versions(entry))
        if len(configs) > 1:
            raise ValueError(
                f"{PREFIX}{name} has the configurations {', '.join(configs)}: name one, e.g. "
                f"{PREFIX}{name}/{configs[0]}"
            )
        versions = [version for config in configs for version in _versions(folder / config)]
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    known = list_imported_builders()  # tfds.list_builders needs TensorFlow
    plain = name.split("/")[0]
    near = difflib.get_close_matches(plain, known, n=2) if plain not in known else []
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"{PREFIX}{name} is not prepared in {root}{hint}. {_how_to_prepare(name, root)}"
    )


def _versions(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (entry for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
    return [entry for entry in found if (entry / "dataset_info.json").is_file()]


def _how_to_prepare(name: str, root: Path) -> str:
    return (
        'Prepare it on a machine with TensorFlow: pip install tensorflow tensorflow-datasets; python -c "import '
        f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='prepared').download_and_prepare("
        f"file_format='array_record')\"; then copy the folder prepared/{name.split('/')[0]} to {root}, or pass the "
        "folder 'prepared' as --data-dir (data_dir= in Python)"
    )


def _keys(name: str, info: Any) -> tuple[str, str | None]:
    """Returns the names of the image and of the label among the features.

    Those of `supervised_keys` come first; otherwise there must be a single one of the type.

    Raises:
        ValueError: No or several features are images, or several are labels, and `supervised_keys` chooses none.
    """
    supervised = [key for key in info.supervised_keys or () if isinstance(key, str)]
    chosen: list[str | None] = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        of_kind = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        keys = [key for key in supervised if key in of_kind] or of_kind
        is_label = kind is tfds.features.ClassLabel
        if len(keys) > 1 or (not keys and not is_label):
            raise ValueError(
                f"{PREFIX}{name}: expected one feature of type {kind.__name__}, found {_described(info)}"
            )
        chosen.append(keys[0] if keys else None)
    image, label = chosen
    assert image is not None  # noqa: S101 (checked above)
    return image, label


def _described(info: Any) -> str:
    return ", ".join(f"{key} ({type(feature).__name__})" for key, feature in info.features.items())


def _labels(records: Any, key: str) -> np.ndarray:
    labels: list[int] = []
    for start in range(0, len(records), INDEXED_AT_ONCE):
        rows = range(start, min(start + INDEXED_AT_ONCE, len(records)))
        labels += [example[key] for example in records.__getitems__(rows)]
    return np.array(labels, np.int32)
