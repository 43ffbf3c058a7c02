"""Processes that embed slow images, for tests that kill one or start several; see `start`.

They are forked from a process that has imported everything and done nothing yet (multiprocessing's fork
server), and share one cache of compiled programs: starting one costs a fraction of a new interpreter.
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
    """A process, and the file that takes what it says."""

    process: multiprocessing.Process
    said: Path

    def kill(self) -> None:
        """SIGKILL, which nothing can be done about."""
        self.process.kill()

    def finish(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code (minus the signal that ended it) and output; it must end within so many seconds."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self.said.read_text()}")
        return self.process.exitcode, self.said.read_text()


def start(
    folder: Path, output: Path, *, of: int = 1, index: int = 0, port: int = 0, **options: object
) -> Started:
    """Starts one of `of` processes that embed into `output`, with shards in `folder`.

    Which images it reads is appended to `output` + ".read-INDEX", a line for each; for each batch that it
    gives to the encoder `output` + ".encoded-INDEX" has a line.

    Args:
        folder: Where the shards are.
        output: An npz file.
        of: Number of processes.
        index: Which of them this one is.
        port: Where they meet.
        options: `delay`, seconds for each image; `heartbeat`, as `distributed.initialize`; `fail`, see
            `_fail`; `halt`, a pair: of the shard with that number among those this process writes only
            that share of the bytes is written, then `output` + ".halted" appears and nothing more happens.
    """
    return _start(output, of, index, port, (_embed, folder, output, index, options))


def start_all(folder: Path, output: Path, of: int, **options: object) -> list[Started]:
    """`start` for each of `of` processes, on a port that was free just now."""
    port = free_port()
    return [start(folder, output, of=of, index=i, port=port, **options) for i in range(of)]


def start_commands(output: Path, of: int, arguments: list[str]) -> list[Started]:
    """`bliss-jax` with these arguments in each of `of` processes."""
    port = free_port()
    return [_start(output, of, i, port, (_command, arguments)) for i in range(of)]


def _start(output: Path, of: int, index: int, port: int, job: tuple) -> Started:
    environment = {"XLA_FLAGS": "", "BLISS_JAX_COMPILATION_CACHE": "off"}
    if of > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(of),
            "JAX_PROCESS_ID": str(index),
        }
    said = Path(f"{output}.said-{index}")
    process = _context.Process(target=_run, args=(said, environment, _compiled.name, of > 1, *job))
    process.start()
    return Started(process, said)


def _run(said: Path, environment: dict[str, str], compiled: str, several: bool, function, *args):
    """What a started process does."""
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
    """Until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(0.005)


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def rows_of(shard: Path) -> range:
    start, stop = shard.stem.split("-")
    return range(int(start), int(stop))


def read_by(output: Path, index: int = 0) -> list[int]:
    """The images that a process has read."""
    log = Path(f"{output}.read-{index}")
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def encoded_by(output: Path, index: int = 0) -> int:
    """How many batches a process has given to its encoder."""
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
        """Noise; image 100 cannot be read."""

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
    """A line for each batch of images that is encoded."""
    encode = model_class.encode_images

    def encode_images(self, images, *arguments):
        with log.open("a") as lines:
            lines.write("batch\n")
        return encode(self, images, *arguments)

    model_class.encode_images = encode_images


def _halt_in_write(number: int, share: float, halted: Path) -> None:
    """A write that takes forever: what a kill finds is part of a file."""
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
    """Ways in which one process may fail, one after the other; prints what this one was told."""
    from bliss_jax.embedding import embed_images

    def attempt(dataset, **options):
        try:
            embed_images(model, dataset, batch_size=BATCH, shard_size=BATCH, **options)
        except (ValueError, OSError) as error:
            print(f"told {type(error).__name__}: {error}", flush=True)

    attempt(images.subset(range(50 + index)))
    folder.mkdir(parents=True, exist_ok=True)
    no_folder = folder / "file"
    no_folder.touch()
    attempt(images, cache=no_folder if index == 1 else folder)
