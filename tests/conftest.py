"""What all tests share: shape checks at run time, simulated devices, the folder of real data."""

import os
from pathlib import Path

# Eight CPU devices for the sharding tests. Must be set before JAX starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Tests never reach for a hub: what they load is what they wrote.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import jaxtyping
import pytest

# Every annotated signature of the library is checked at run time while testing.
_hook = jaxtyping.install_import_hook("bliss_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# The fixtures `cifar10` and `tiny_imagenet`: official archives built from real pixels.
pytest_plugins = ["official_archives"]

SHARED = Path(os.environ.get("BLISS_JAX_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no folder of real data at {SHARED} (set BLISS_JAX_SHARED)")
    for item in items:
        if "shared_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; a test that asks for it is marked `shared_data`."""
    return SHARED


@pytest.fixture
def unchecked():
    """Switches the run-time shape checks off, so that the library's own errors are what is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
