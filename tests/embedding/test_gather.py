"""Shards are divided among processes and gathered in all of them; the processes are simulated by threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bliss_jax.embedding import distributed
from bliss_jax.embedding.gather import gather_shards
from bliss_jax.embedding.shards import Shard, spans

CUT = spans(11, 2)


@pytest.fixture
def run(monkeypatch):
    """Runs a function of the process index in several simulated processes, and returns all results.

    An exception that a process raises is its result.
    """

    def run(number, function):
        barrier, local = threading.Barrier(number, timeout=30), threading.local()
        arrays = [np.empty(0)] * number

        def process_allgather(array):
            arrays[local.index] = array
            barrier.wait()
            gathered = np.stack(arrays)
            barrier.wait()
            return gathered

        def process(index):
            local.index = index
            try:
                return function(index)
            except Exception as error:
                return error

        monkeypatch.setattr(jax, "process_count", lambda: number)
        monkeypatch.setattr(jax, "process_index", lambda: local.index)
        name = "jax.experimental.multihost_utils.process_allgather"
        monkeypatch.setattr(name, process_allgather)
        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(process, range(number)))

    return run


def gather(cache=None, content="same", fail=False):
    """Gathers the shards `CUT` of numbered rows; `embedded` has the spans that this process embedded."""
    embedded, counts = [], []

    def embed(todo, report):
        for span in todo:
            if fail:
                raise OSError("the disk is full")
            embedded.append(span)
            rows = np.arange(*span, dtype=np.int32)
            report(len(rows))
            yield span, Shard(rows[:, None].astype(np.float32), rows)

    key = {"model": "m", "sizes": (1, 2)}
    shard = gather_shards(CUT, "some", key, lambda: content, cache, embed, counts.append)
    return SimpleNamespace(shard=shard, embedded=embedded, counts=counts)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_each_process_embeds_a_part_and_all_have_the_whole_result(run, number):
    results = run(number, lambda index: gather())
    assert [span for result in results for span in result.embedded] == list(CUT)
    most, least = (f(len(result.embedded) for result in results) for f in (max, min))
    assert most - least <= 1
    for result in results:
        np.testing.assert_array_equal(result.shard.rows, np.arange(11))
        np.testing.assert_array_equal(result.shard.embeddings, np.arange(11.0)[:, None])
        assert sum(result.counts) == 11


def test_shards_in_the_cache_of_one_process_are_sent_to_the_others(run, tmp_path):
    gather(cache=tmp_path / "0")
    kept = sorted((tmp_path / "0").glob("*/*"))
    for file in kept[2:]:
        file.unlink()
    first, second = run(2, lambda index: gather(cache=tmp_path / str(index)))
    assert first.embedded + second.embedded == list(CUT[2:])
    assert first.embedded and second.embedded
    for result in (first, second):
        np.testing.assert_array_equal(result.shard.rows, np.arange(11))
        assert sum(result.counts) == 11
    assert sorted((tmp_path / "0").glob("*/*"))[:2] == kept[:2]


def test_processes_with_different_inputs_are_refused(run):
    errors = run(3, lambda index: gather(content="same" if index < 2 else "other"))
    assert all(isinstance(error, ValueError) for error in errors)
    assert "the input of process 0 differs from that of processes [2]" in str(errors[0])
    assert "the input of process 2 differs from that of processes [0, 1]" in str(errors[2])


def test_an_error_in_one_process_is_raised_in_all(run):
    first, second, third = run(3, lambda index: gather(fail=index == 1))
    assert isinstance(second, OSError)
    for error in (first, third):
        assert isinstance(error, distributed.RemoteError)
        assert str(error) == "process 1: OSError: the disk is full"
