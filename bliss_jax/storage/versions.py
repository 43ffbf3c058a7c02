"""What a result was computed with."""

import platform
from importlib.metadata import version

import jax


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a result, and the device."""
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
        **{name: version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
    }
