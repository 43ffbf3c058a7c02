"""The archives data sets are published as, read in place.

Members are read out of the archive file, or from a folder that it was unpacked to; nothing is written.
"""

import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OfficialArchive:
    """Where an archive is published, and how to know it.

    Attributes:
        url: Its address.
        size: In bytes.
        sha256: Its checksum.
        folder: The one folder it unpacks to.
    """

    url: str
    size: int
    sha256: str
    folder: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` holds the archive or what it unpacks to."""
        return (folder / self.file_name).is_file() or (folder / self.folder).is_dir()

    def url_infos(self) -> dict[str, Any]:
        """The checksum in the form tfds's builders declare it."""
        from tensorflow_datasets.core.download.checksums import UrlInfo
        from tensorflow_datasets.core.utils import Size

        info = UrlInfo(size=Size(self.size), checksum=self.sha256, filename=self.file_name)
        return {self.url: info}

    def locate(self, download_manager: Any) -> Path:
        """The unpacked folder if the user has one in tfds's manual directory, else the archive.

        Args:
            download_manager: A tfds download manager, which takes the archive from the manual
                directory, from its cache or from its address, and checks its size and SHA-256.
        """
        try:
            unpacked = Path(download_manager.manual_dir) / self.folder
        except (
            AssertionError
        ):  # tfds's way to say that there is no manual directory, or an empty one
            unpacked = None
        if unpacked is not None and unpacked.is_dir():
            return unpacked
        return Path(download_manager.download(self.url))

    def read_tar(self, location: Path, names: Collection[str]) -> dict[str, bytes]:
        """Reads files of a tar archive in one pass, or of the folder it was unpacked to.

        Args:
            location: As `locate` gives it.
            names: The files, relative to `folder`.

        Returns:
            Their contents by name.

        Raises:
            ValueError: if files are missing, naming them.
        """
        if location.is_dir():
            found = {n: (location / n).read_bytes() for n in names if (location / n).is_file()}
        else:
            found = {}
            with tarfile.open(location) as tar:
                for member in tar:
                    name = member.name.removeprefix("./").removeprefix(f"{self.folder}/")
                    # Files alone: a link would be read from where it leads.
                    if name in names and member.isfile() and (content := tar.extractfile(member)):
                        found[name] = content.read()
        if missing := sorted(set(names) - set(found)):
            raise ValueError(f"{self.folder} lacks {', '.join(missing)}")
        return found
