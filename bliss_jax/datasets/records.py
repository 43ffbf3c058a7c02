"""Data sets that tensorflow-datasets prepares, read without TensorFlow.

tensorflow-datasets (tfds) downloads an archive, checks its size and SHA-256, and writes its images once
as ArrayRecord files, which are then read in any order. Three of its parts need TensorFlow or an
undeclared package, and the builders of this package go around them:

- Extracting archives and opening their files goes through `tf.io.gfile`: the builders take only the
  download, and read the archive in place (`archives.py`). So nothing is ever unpacked on disk.
- Encoding an array as PNG runs a TensorFlow graph: the builders hand over encoded bytes (the archive's
  own JPEGs; PNGs that Pillow wrote), and reading hands the stored bytes to `decode_image`.
- Looking up a builder's checksums imports `importlib_resources`, which tfds does not declare for the
  Python versions in use: the builders state their checksums themselves.

The public bucket of prepared data sets is never asked (`try_download_gcs=False`, and tfds from 4.9.8 on
no longer asks it for metadata either), so that a prepared data set loads without a network.

tfds stores examples in an order of its own (by a hash of their keys). Here they come in the archive's
order, by the examples' feature `id`.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from requests.exceptions import RequestException
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from bliss_jax.datasets.archives import OfficialArchive
from bliss_jax.datasets.decode import decode_image
from bliss_jax.datasets.image_dataset import ImageDataset, LazyImages

_FILE_FORMAT = "array_record"
_SHARDS = 16
"""Files written per split. Reading one record takes array_record longer the more its file holds: 61 us of
50,000, 10 us of 3,000. (tfds ignores the bounds on their size that one may give it.)"""

_INDEXED_AT_ONCE = 1000
"""Records held in memory while their ids and labels are read."""


class RecordImages(LazyImages):
    """The images of a prepared split; the readers beneath are safe for threads."""

    def __init__(self, records: Any, order: Int[np.ndarray, " images"], name: str):
        self._records = records
        self._order = order
        self._name = name

    def __len__(self) -> int:
        return len(self._order)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes one record's image."""
        content = self._records[int(self._order[position])]["image"]
        return decode_image(content, f"{self._name} {position}")

    def identity(self) -> Iterator[bytes | memoryview]:
        """The order of the records, and the pixels of a few."""
        yield np.ascontiguousarray(self._order, np.int64).tobytes()
        yield from super().identity()


def load_prepared(
    name: str,
    builder_class: Any,
    split: str,
    *,
    data_dir: Path | None,
    manual_dir: Path | None,
) -> ImageDataset:
    """Prepares a data set unless that was done before, and opens one split.

    Args:
        name: What the data set is called here.
        builder_class: A tfds builder; its `ARCHIVE` is the `OfficialArchive` it reads.
        split: `"train"` or `"test"`.
        data_dir: Where prepared data sets are kept; tfds's default (`~/tensorflow_datasets`, or
            `TFDS_DATA_DIR`) if None.
        manual_dir: A folder with the archive, or with what it unpacks to, to use instead of a download.

    Returns:
        The split in the archive's order; its images are decoded when they are asked for.

    Raises:
        ValueError: if the archive is not the official one, or the data set was prepared in a file format
            without random access.
        ConnectionError: if the archive can neither be found nor downloaded; says how to provide it.
    """
    builder = builder_class(data_dir=data_dir, file_format=_FILE_FORMAT)
    if not builder.is_prepared():
        _prepare(builder, builder_class.ARCHIVE, manual_dir)
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.info.full_name} was prepared in a file format without random access; "
            f"give another data_dir, where it is prepared as {_FILE_FORMAT}"
        ) from error
    order, labels = _index(records)
    return ImageDataset(
        name=name,
        images=RecordImages(records, order, f"{name} {split}"),
        labels=labels,
        class_names=tuple(builder.info.features["label"].names),
        source=f"tfds {builder.name}:{builder.version} {split}",
    )


def _prepare(
    builder: tfds.core.GeneratorBasedBuilder, archive: OfficialArchive, manual_dir: Path | None
) -> None:
    if manual_dir is not None and not archive.is_in(manual_dir):
        raise ValueError(
            f"manual_dir holds neither {archive.file_name!r} nor a folder {archive.folder!r}"
        )
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        try_download_gcs=False,
        force_checksums_validation=True,
        num_shards=_SHARDS,
    )
    try:
        # tfds prints what it does; standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config, file_format=_FILE_FORMAT)
    except NonMatchingChecksumError as error:
        raise ValueError(f"not the official archive: {error}") from error
    except (RequestException, tfds.download.DownloadError) as error:
        raise ConnectionError(
            f"cannot download {archive.url}: {error}\n"
            f"Put {archive.file_name!r} (SHA-256 {archive.sha256}) in a folder of your own and give that "
            "folder as manual_dir."
        ) from error


def _index(records: Any) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"]]:
    """The records' positions in the order of their ids, and their labels in that order."""
    ids, labels = [], []
    for start in range(0, len(records), _INDEXED_AT_ONCE):
        keys = range(start, min(start + _INDEXED_AT_ONCE, len(records)))
        for example in records.__getitems__(keys):
            ids.append(example["id"])
            labels.append(example["label"])
    order = np.argsort(np.array(ids), kind="stable")
    return order, np.array(labels, np.int32)[order]
