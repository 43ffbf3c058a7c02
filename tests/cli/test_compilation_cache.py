"""The folder of the compilation cache, and its behaviour on damaged entries."""

import os
import subprocess
import sys

import pytest

from bliss_jax.cli.compilation_cache import use_compilation_cache

PROGRAM = """
from bliss_jax.cli.compilation_cache import use_compilation_cache
assert use_compilation_cache() is not None
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append("cache_hits" in event))
print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.eye(3))), sum(hits))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.delenv("BLISS_JAX_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    for name in (*names, "COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(f"JAX_{name}", "x")  # so that monkeypatch removes it after the test
        monkeypatch.delenv(f"JAX_{name}")


def test_the_cache_folder_is_private_to_the_user(tmp_path, monkeypatch):
    folder = use_compilation_cache()
    assert folder.parent == tmp_path / "xdg" / "bliss-jax" / "compiled"
    assert folder.stat().st_mode & 0o077 == 0, "compiled programs are executable code"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    folder = use_compilation_cache()
    assert folder.parent == tmp_path / "home" / ".cache" / "bliss-jax" / "compiled"


def test_the_cache_can_be_moved_and_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_JAX_COMPILATION_CACHE", str(tmp_path / "mine"))
    assert use_compilation_cache().parent == tmp_path / "mine"
    assert use_compilation_cache() is None, "JAX_COMPILATION_CACHE_DIR takes precedence"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("BLISS_JAX_COMPILATION_CACHE", "off")
    assert use_compilation_cache() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_there_is_no_cache_if_its_folder_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLISS_JAX_COMPILATION_CACHE", str(tmp_path / "file"))
    assert use_compilation_cache() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.slow
def test_damaged_entries_are_compiled_again(tmp_path):
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": ""}

    def run():
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        value, hits = done.stdout.split()
        return float(value), int(hits)

    value, hits = run()
    assert hits == 0
    again, hits = run()
    assert again == value
    assert hits > 0
    entries = sorted((tmp_path / "xdg").rglob("*-cache"))
    assert entries
    for number, entry in enumerate(entries):
        content = bytearray(entry.read_bytes())
        if number % 2:
            del content[len(content) // 2 :]
        else:
            content[len(content) // 2] ^= 16
        entry.write_bytes(content)
    again, hits = run()
    assert again == value
    assert hits == 0
