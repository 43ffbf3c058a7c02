"""What all tests share: shape checks at run time, simulated devices, the folder of real data."""

import gc
import os
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Experiments and benchmarks, which stand beside the library. Last, so that an installed library comes first.
sys.path.append(str(Path(__file__).parents[1]))

# Must be set before JAX starts: eight CPU devices for the sharding tests, and compilation without optimisation,
# because most of the time goes into compiling small programs. The two flags save two thirds of that time. With
# BLISS_JAX_TEST_OPTIMISED=1, as in CI's last job, programs are optimised as they are for users.
_flags = ["--xla_force_host_platform_device_count=8"]
if not os.environ.get("BLISS_JAX_TEST_OPTIMISED"):
    _flags.append("--xla_backend_optimization_level=0")
    if version("jaxlib").startswith(
        "0.10."
    ):  # XLA ends the process if it meets a flag that it does not know
        _flags.append("--xla_cpu_use_fusion_emitters=false")
if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of a test run inherit the flags
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])
# Tests never reach for a hub: what they load is what they wrote.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Nor do they read or write the user's cache of compiled programs: all processes of a test run share one of
# its own. It is set by the first of them; the others, among them those that tests start, inherit it.
os.environ["BLISS_JAX_COMPILATION_CACHE"] = "off"
os.environ["BLISS_JAX_WEIGHT_HASHES"] = "off"
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="bliss-jax-compiled-")
    # A folder that several test runs share, if the environment names one.
    programs = os.environ.get("BLISS_JAX_TEST_PROGRAMS", _compiled.name)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # With a bound JAX also locks the folder, so that no process reads what another has half written.
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(1 << 32)

import jaxtyping
import pytest

# Every annotated signature of the library is checked at run time while testing.
_hook = jaxtyping.install_import_hook("bliss_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Fixtures with archives of CIFAR-10 and TinyImageNet in the official layouts.
pytest_plugins = ["official_archives"]

SHARED = Path(os.environ.get("BLISS_JAX_SHARED", Path(__file__).parents[2] / "shared"))


_USERS = ("experiments", "benchmarks")
"""Folders whose tests are slow."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects tests by their markers
def pytest_collection_modifyitems(items):
    no_data = pytest.mark.skip(reason=f"no folder of real data at {SHARED} (set BLISS_JAX_SHARED)")
    no_torch = pytest.mark.skip(reason="no PyTorch (pip install '.[parity]')")
    for item in items:
        # The quick tests are those of the library: experiments and benchmarks use it.
        if {"torch", "browser"} & set(item.keywords) or item.path.parent.name in _USERS:
            item.add_marker("slow")
        if "torch" in item.keywords and find_spec("torch") is None:
            item.add_marker(no_torch)
        if "shared_data" in item.keywords and not SHARED.is_dir():
            item.add_marker(no_data)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a proof that was skipped is a proof that failed."""
    report = yield
    required = {"parity", "shared_data"}
    if version("transformers") < "5":
        required.add("flax_clip_model")
    if os.environ.get("CI") and report.skipped and required & set(item.keywords):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where it must run: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; a test that asks for it is marked `shared_data`."""
    return SHARED


_MOST_MEMORY = 4 << 30
"""Resident bytes of a process above which it forgets its compiled programs between two files of tests."""


@pytest.fixture(autouse=True, scope="module")
def _free_memory():
    """Compilations for eight devices and models of full size add up to gigabytes otherwise."""
    yield
    pages = Path("/proc/self/statm")
    if not pages.exists() or int(pages.read_text().split()[1]) * 4096 > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def unchecked():
    """Switches the run-time shape checks off, so that the library's own errors are what is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
