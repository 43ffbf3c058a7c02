"""Several processes give the results of one process, and all end if one of them fails or is killed."""

import json
import signal

import numpy as np
import pytest
from click.testing import CliRunner
from embedding_process import (
    IMAGES,
    read_by,
    rows_of,
    shards_in,
    start,
    start_all,
    start_commands,
    wait_for,
)

from bliss_jax.cli import main
from bliss_jax.embedding import distributed

UNTRAINED = ["--model", "bliss-jax/untrained", "--dataset", "digits"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("\n".join(f"word {i}" for i in range(30)))
    return file


def finish_all(processes, seconds=120):
    found = [process.finish(seconds) for process in processes]
    assert all(code == 0 for code, _ in found), found
    return [printed for _, printed in found]


@pytest.mark.slow
def test_two_and_four_processes_write_the_same_results_as_one(words, tmp_path):
    common = ["--dictionary", str(words), *UNTRAINED]
    quick = ["--score", "bliss", "--score", "max_cosine"]
    files = {number: tmp_path / f"{number}.npz" for number in (1, 4)}
    runs = [
        start_commands(file, number, ["embed", *common, "-o", str(file)])
        for number, file in files.items()
    ]
    out = tmp_path / "result.json"
    arguments = ["evaluate", *common, *quick, "--cache", str(tmp_path / "cache")]
    runs.append(start_commands(out, 2, [*arguments, "--json", str(out)]))
    _, four, two = [finish_all(processes) for processes in runs]
    assert files[1].read_bytes() == files[4].read_bytes()
    assert "4 processes, 4 devices" in four[0]
    assert "wrote" in four[0]
    assert "max_cosine" in two[0]
    for other in (*four[1:], *two[1:]):
        assert "digits" not in other, "only process 0 prints results"
        assert "max_cosine" not in other

    alone = tmp_path / "alone.json"
    arguments = ["evaluate", "--embeddings", str(files[1]), *quick, "--json", str(alone)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert json.loads(out.read_text())["rows"] == json.loads(alone.read_text())["rows"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file that one uninterrupted process writes."""
    folder = tmp_path_factory.mktemp("whole")
    code, printed = start(folder / "shards", folder / "whole.npz").finish()
    assert code == 0, printed
    return (folder / "whole.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "resumed_by"), [(0, 1), (1, 3)])
def test_the_others_end_if_a_process_is_killed_and_any_number_can_resume(
    victim, resumed_by, whole, tmp_path
):
    folder, output = tmp_path / "shards", tmp_path / "out.npz"
    processes = start_all(folder, output, 2, delay=0.1, heartbeat=4)
    mine = range(IMAGES // 2) if victim == 0 else range(IMAGES // 2, IMAGES)
    wait_for(lambda: sum(rows_of(s).start in mine for s in shards_in(folder)) >= 2)
    processes[victim].kill()
    assert processes[victim].finish()[0] == -signal.SIGKILL
    code, printed = processes[1 - victim].finish(seconds=60)
    assert code != 0
    assert "another task died" in printed or "another process cannot be reached" in printed
    kept = shards_in(folder)
    assert len(kept) >= 2
    assert not output.exists()

    for log in tmp_path.glob("*.read-*"):
        log.unlink()
    finish_all(start_all(folder, output, resumed_by))
    assert output.read_bytes() == whole
    known = {row for shard in kept for row in rows_of(shard)}
    read = [row for index in range(resumed_by) for row in read_by(output, index)]
    assert sorted(read) == sorted(set(range(IMAGES)) - known), "reads each missing image once"


@pytest.mark.slow
def test_all_processes_raise_the_reason_if_one_fails(tmp_path):
    printed = finish_all(start_all(tmp_path / "shards", tmp_path / "out.npz", 2, fail=True))
    raised = [
        [line for line in text.splitlines() if line.startswith("raised ")] for text in printed
    ]
    assert raised[0][0].startswith(
        "raised ValueError: the input of process 0 differs from that of processes"
    )
    assert raised[1][0].startswith(
        "raised ValueError: the input of process 1 differs from that of processes"
    )
    assert raised[0][1].startswith("raised RemoteError: process 1: OSError: cannot write")
    assert raised[1][1].startswith("raised OSError: cannot write")


def test_the_collective_functions_work_with_a_single_process():
    assert distributed.exchange(b"alone") == [b"alone"]
    assert distributed.first_process_first(lambda: 3) == 3
    with pytest.raises(KeyError), distributed.failing_together():
        raise KeyError("own")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no launcher of several processes was detected: start them with SLURM"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "set JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID: expected a number, got 'first'"),
    ],
)
def test_missing_or_invalid_variables_are_refused_with_the_ones_to_set(
    environment, message, monkeypatch
):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # JAX has been used in this process, which it would refuse before it reads the variables.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(ValueError, match=message):
        distributed.initialize_distributed()


def test_distributed_and_cache_are_refused_for_embeddings_from_a_file():
    arguments = ["evaluate", "--embeddings", "x.npz", "--distributed", "--cache", "somewhere"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--cache, --distributed cannot be combined with --embeddings" in result.stderr


def test_messages_of_any_length_are_exchanged_unchanged(monkeypatch):
    """Tests the padding in `exchange` with a simulated second process."""
    import jax

    gathered = []

    def process_allgather(array):
        gathered.append(array.shape)
        return np.stack([array, array])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", process_allgather)
    for message in (b"", b"x", b"y" * distributed._MESSAGE_GRAIN, b"z" * 100_000):
        assert distributed.exchange(message) == [message, message]
    lengths = {shape for shape in gathered if shape != (2,)}
    assert lengths == {(distributed._MESSAGE_GRAIN,), (2 * distributed._MESSAGE_GRAIN,)}
