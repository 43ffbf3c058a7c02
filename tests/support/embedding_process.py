"""Starts processes that embed images slowly, for tests that kill a process or use several (see `start`).

The processes are forked from a server process that has imported all modules but not used JAX
(multiprocessing's fork server), and they share one cache of compiled programs. Both save most of the time
that a new interpreter would need.
"""

import itertools
import multiprocessing
import os
import socket
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

BATCH, SHARDS = 8, 24
IMAGES = BATCH * SHARDS - 3

_compiled = tempfile.TemporaryDirectory()
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["bliss_jax.embedding.dataset", "bliss_jax.cli", "transformers", "tokenizers"]
)


class Started(NamedTuple):
    """A process and the file with its output."""

    process: multiprocessing.Process
    printed: Path

    def kill(self) -> None:
        """Sends SIGKILL, which a process cannot handle."""
        self.process.kill()

    def finish(self, seconds: float = 120) -> tuple[int, str]:
        """Waits for the end, and returns the exit code (-signal if killed by a signal) and the output.

        Raises:
            AssertionError: The process is still running after `seconds`; it is killed.
        """
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self.printed.read_text()}")
        return self.process.exitcode, self.printed.read_text()


def start(
    folder: Path, output: Path, *, of: int = 1, index: int = 0, port: int = 0, **options: object
) -> Started:
    """Starts one of `of` processes that embed into `output`, with shards in `folder`.

    The process logs each image that it reads as a line in the file `output` + ".read-INDEX", and each batch
    that it encodes as a line in `output` + ".encoded-INDEX".

    Args:
        folder: Folder of the shards.
        output: npz file that is written at the end.
        of: Number of processes.
        index: Index of this process.
        port: Port of the coordinator.
        options: `delay`: seconds per image. `heartbeat`: as in `initialize_distributed`. `fail`: run
            `_fail` instead. `halt`: a pair (number, share); in the write with this number only this share
            of the bytes is written, then the file `output` + ".halted" is created and the write blocks.
    """
    return _start(output, of, index, port, (_embed, folder, output, index, options))


def start_all(folder: Path, output: Path, of: int, **options: object) -> list[Started]:
    """Starts `of` processes that embed together, with a coordinator on a free port."""
    port = free_port()
    return [start(folder, output, of=of, index=i, port=port, **options) for i in range(of)]


def start_commands(output: Path, of: int, arguments: list[str]) -> list[Started]:
    """Starts `of` processes that run `bliss-jax` with the given arguments together."""
    port = free_port()
    return [_start(output, of, i, port, (_command, arguments)) for i in range(of)]


def _start(output: Path, of: int, index: int, port: int, job: tuple) -> Started:
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = {"XLA_FLAGS": " ".join(flags), "BLISS_JAX_COMPILATION_CACHE": "off"}
    if of > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(of),
            "JAX_PROCESS_ID": str(index),
        }
    printed = Path(f"{output}.printed-{index}")
    process = _context.Process(
        target=_run, args=(printed, environment, _compiled.name, of > 1, *job)
    )
    process.start()
    return Started(process, printed)


def _run(printed: Path, environment: dict[str, str], compiled: str, several: bool, function, *args):
    """Runs a function in the started process, with its output in the file `printed`."""
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    import jax

    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    function(several, *args)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds: float = 90) -> None:
    """Waits until the condition is true.

    Raises:
        AssertionError: The condition is still false after `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"the condition is still false after {seconds} s")
        time.sleep(0.005)


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def rows_of(shard: Path) -> range:
    start, stop = shard.stem.split("-")
    return range(int(start), int(stop))


def read_by(output: Path, index: int = 0) -> list[int]:
    """Returns the positions of the images that a process has read."""
    log = Path(f"{output}.read-{index}")
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def encoded_by(output: Path, index: int = 0) -> int:
    """Returns the number of batches that a process has encoded."""
    log = Path(f"{output}.encoded-{index}")
    return len(log.read_text().split()) if log.exists() else 0


def _command(several: bool, arguments: list[str]) -> None:
    from bliss_jax.cli import main

    main([*arguments, *["--distributed"] * several], prog_name="bliss-jax")


def _embed(several: bool, folder: Path, output: Path, index: int, options: dict) -> None:
    import jax
    import numpy as np

    from bliss_jax.datasets import ImageDataset, UnreadableImageError
    from bliss_jax.datasets.image_dataset import LazyImages
    from bliss_jax.embedding import distributed, embed_images, embed_texts
    from bliss_jax.models import load_model

    chosen = SimpleNamespace(
        **{"delay": 0.0, "heartbeat": 30, "fail": False, "halt": None} | options
    )
    log = Path(f"{output}.read-{index}")

    class SlowImages(LazyImages):
        """Random images; image 100 cannot be read."""

        def __len__(self):
            return IMAGES

        def read(self, position):
            time.sleep(chosen.delay)
            with log.open("a") as lines:
                lines.write(f"{position}\n")
            if position == 100:
                raise UnreadableImageError("image 100", "damaged")
            return np.random.default_rng(position).integers(0, 256, (16, 16, 3), dtype=np.uint8)

        def identity(self):
            yield b"slow images"

    if several:
        distributed.initialize_distributed(chosen.heartbeat)
    if chosen.halt is not None:
        _halt_in_write(*chosen.halt, Path(f"{output}.halted"))
    model = load_model("bliss-jax/untrained")
    _log_batches(type(model), Path(f"{output}.encoded-{index}"))
    images = ImageDataset("slow", SlowImages(), np.zeros(IMAGES, int), ("a", "b"), "made here")
    if chosen.fail:
        _fail(index, model, images, folder)
        return
    sizes = {"batch_size": BATCH, "shard_size": BATCH}
    embedded = embed_images(model, images, cache=folder, **sizes)
    texts = embed_texts(model, [f"text {i}" for i in range(4500)])
    if jax.process_index() == 0:
        np.savez(
            output,
            embeddings=embedded.embeddings,
            rows=embedded.rows,
            unreadable=np.array(embedded.unreadable),
            texts=texts,
        )


def _log_batches(model_class: type, log: Path) -> None:
    """Makes a model class log each encoded batch as a line in a file."""
    encode = model_class.encode_images

    def encode_images(self, images, *arguments):
        with log.open("a") as lines:
            lines.write("batch\n")
        return encode(self, images, *arguments)

    model_class.encode_images = encode_images


def _halt_in_write(number: int, share: float, halted: Path) -> None:
    """Makes one write of a shard block after a part of the bytes, so that a kill leaves a partial file."""
    from bliss_jax.embedding import shards

    replacing, written = shards.replacing, itertools.count()

    @contextmanager
    def halting(path):
        with replacing(path) as file:

            def write(content):
                file.write(content[: int(share * len(content))])
                file.flush()
                halted.touch()
                time.sleep(300)

            yield SimpleNamespace(write=write) if next(written) == number else file

    shards.replacing = halting


def _fail(index: int, model, images, folder: Path) -> None:
    """Provokes two failures one after the other, and prints the error that this process raises.

    First the processes embed different inputs; then process 1 cannot write its shards.
    """
    from bliss_jax.embedding import embed_images

    def attempt(dataset, **options):
        try:
            embed_images(model, dataset, batch_size=BATCH, shard_size=BATCH, **options)
        except (ValueError, OSError) as error:
            print(f"raised {type(error).__name__}: {error}", flush=True)

    attempt(images.subset(range(50 + index)))
    folder.mkdir(parents=True, exist_ok=True)
    no_folder = folder / "file"
    no_folder.touch()
    attempt(images, cache=no_folder if index == 1 else folder)
