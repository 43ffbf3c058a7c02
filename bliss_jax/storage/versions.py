"""Versions of the packages that produce a result."""

import platform
from importlib.metadata import PackageNotFoundError, version

import jax

NOT_INSTALLED = "not installed"
"""Version of a package that is absent, and of the library itself if it runs from its source folder."""


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that take part in a result, and the device.

    A package without metadata is reported as `NOT_INSTALLED`: an optional package may be absent, and the
    library has no metadata if it is imported from its source folder.
    """
    packages = (
        "bliss-jax",
        "jax",
        "jaxlib",
        "flax",
        "transformers",
        "numpy",
        "tensorflow-datasets",
    )
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
