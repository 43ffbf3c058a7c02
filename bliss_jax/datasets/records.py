"""Prepares data sets with tensorflow-datasets and reads them, both without TensorFlow.

tensorflow-datasets (tfds) downloads an archive, verifies its size and SHA-256, and writes its images once
as ArrayRecord files, which have random access. Three parts of tfds need TensorFlow or an undeclared
package. The builders of this package avoid them:

- tfds extracts archives and opens their files with `tf.io.gfile`. The builders use only its download and
  read the archive in place (`archives.py`). Nothing is unpacked on disk.
- tfds encodes an array as PNG with a TensorFlow graph. The builders provide encoded bytes (the JPEGs of the
  archive, or PNGs written by Pillow), and reading passes the stored bytes to `decode_image`.
- tfds imports `importlib_resources` to look up the checksums of a builder, but does not declare it for the
  supported Python versions. The builders state their checksums themselves.

The public bucket of prepared data sets is never accessed (`try_download_gcs=False`; since 4.9.8 tfds does
not read metadata from it either), so a prepared data set loads without a network.

tfds stores examples in its own order (by a hash of their keys). This module restores the order of the
archive from the feature `id` of the examples.
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
"""Number of files per split. array_record needs longer to read a record from a file with more records: 61 us
with 50,000 records, 10 us with 3,000. (tfds ignores the limits on the size of a file that it accepts.)"""

INDEXED_AT_ONCE = 1000
"""Number of records that are in memory at once while their ids and labels are read."""


class RecordImages(LazyImages):
    """Images of a prepared split. The underlying readers are thread-safe."""

    def __init__(
        self, records: Any, order: Int[np.ndarray, " images"], name: str, key: str = "image"
    ):
        self._records = records
        self._key = key
        self._order = order
        self._name = name

    def __len__(self) -> int:
        return len(self._order)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes the image of one record."""
        content = self._records[int(self._order[position])][self._key]
        return decode_image(content, f"{self._name} {position}")

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the order of the records and the pixels of `SAMPLED` images."""
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
    """Opens one split of a data set, and prepares the data set first if necessary.

    Args:
        name: Name of the data set in this package.
        builder_class: A tfds builder; its `ARCHIVE` is the `OfficialArchive` that it reads.
        split: `"train"` or `"test"`.
        data_dir: Folder of prepared data sets; None means the default of tfds (`TFDS_DATA_DIR`, or
            `~/tensorflow_datasets`).
        manual_dir: A folder that contains the archive or the folder it unpacks to, used instead of a
            download.

    Returns:
        The split in the order of the archive. Its images are decoded when they are accessed.

    Raises:
        ValueError: The archive is not the official one, or the data set was prepared in a file format
            without random access.
        ConnectionError: The archive is not available locally and cannot be downloaded; the message
            explains how to provide it.
    """
    builder = builder_class(data_dir=data_dir, file_format=_FILE_FORMAT)
    if not builder.is_prepared():
        _prepare(builder, builder_class.ARCHIVE, manual_dir)
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.info.full_name} was prepared in a file format without random access, expected "
            f"{_FILE_FORMAT}; choose another data_dir, where it will be prepared again"
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
            f"manual_dir contains neither {archive.file_name!r} nor a folder {archive.folder!r}"
        )
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        try_download_gcs=False,
        force_checksums_validation=True,
        num_shards=_SHARDS,
    )
    try:
        # tfds prints its progress, but standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config, file_format=_FILE_FORMAT)
    except NonMatchingChecksumError as error:
        raise ValueError(f"the archive is not the official archive: {error}") from error
    except (RequestException, tfds.download.DownloadError) as error:
        raise ConnectionError(
            f"cannot download {archive.url}: {error}\n"
            f"Put {archive.file_name!r} (SHA-256 {archive.sha256}) into a folder and pass that folder as "
            "manual_dir."
        ) from error


def _index(records: Any) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"]]:
    """Returns the positions of the records in the order of their ids, and the labels in that order."""
    ids, labels = [], []
    for start in range(0, len(records), INDEXED_AT_ONCE):
        keys = range(start, min(start + INDEXED_AT_ONCE, len(records)))
        for example in records.__getitems__(keys):
            ids.append(example["id"])
            labels.append(example["label"])
    order = np.argsort(np.array(ids), kind="stable")
    return order, np.array(labels, np.int32)[order]
