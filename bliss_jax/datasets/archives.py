"""Official archives of data sets, read without unpacking them.

Files are read directly from the archive or from the folder it was unpacked to. Nothing is written.
"""

import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OfficialArchive:
    """Address and checksum of a published archive.

    Attributes:
        url: Address of the archive.
        size: Size in bytes.
        sha256: SHA-256 of the archive (hexadecimal).
        folder: Name of the single folder that the archive unpacks to.
    """

    url: str
    size: int
    sha256: str
    folder: str

    @property
    def file_name(self) -> str:
        """File name of the archive, the last part of its address."""
        return self.url.rsplit("/", 1)[-1]

    def is_in(self, folder: Path) -> bool:
        """Returns whether `folder` contains the archive or the folder it unpacks to."""
        return (folder / self.file_name).is_file() or (folder / self.folder).is_dir()

    def url_infos(self) -> dict[str, Any]:
        """Returns the size and the checksum in the form that builders of tensorflow-datasets declare."""
        from tensorflow_datasets.core.download.checksums import UrlInfo
        from tensorflow_datasets.core.utils import Size

        info = UrlInfo(size=Size(self.size), checksum=self.sha256, filename=self.file_name)
        return {self.url: info}

    def locate(self, download_manager: Any) -> Path:
        """Returns the unpacked folder if it is in the manual directory, and otherwise the archive.

        Args:
            download_manager: Download manager of tensorflow-datasets. It takes the archive from the
                manual directory, from its cache or from its address, and checks size and SHA-256.
        """
        try:
            unpacked = Path(download_manager.manual_dir) / self.folder
        except AssertionError:  # raised if there is no manual directory or it is empty
            unpacked = None
        if unpacked is not None and unpacked.is_dir():
            return unpacked
        return Path(download_manager.download(self.url))

    def read_tar(self, location: Path, names: Collection[str]) -> dict[str, bytes]:
        """Reads files from a tar archive in one pass, or from the folder it was unpacked to.

        Args:
            location: The archive or the folder, as `locate` returns it.
            names: Names of the files, relative to `folder`.

        Returns:
            The contents by name.

        Raises:
            ValueError: Files are missing; the message lists them.
        """
        if location.is_dir():
            found = {n: (location / n).read_bytes() for n in names if (location / n).is_file()}
        else:
            found = {}
            with tarfile.open(location) as tar:
                for member in tar:
                    name = member.name.removeprefix("./").removeprefix(f"{self.folder}/")
                    # Only regular files, because reading a link would read its target.
                    if name in names and member.isfile() and (content := tar.extractfile(member)):
                        found[name] = content.read()
        if missing := sorted(set(names) - set(found)):
            raise ValueError(f"{self.folder} does not contain {', '.join(missing)}")
        return found
