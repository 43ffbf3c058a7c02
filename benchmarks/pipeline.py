"""From images to embeddings: `embed_images` beside the encoder alone and beside the usual loop in PyTorch.

    python -m benchmarks.run --only pipeline --only startup

The model is CLIP B/32 in its real size with random weights, because the time does not depend on them. The
benchmark makes the images: uint8 of 32 x 32 like CIFAR's, and a folder of JPEGs of 500 x 375 with gradients
and noise. The stages are:

    encoder alone       one batch of preprocessed pixels on the device, repeated
    with the resize     one batch of uint8 images on the device, repeated: resize and encoder
    embed_images        all images, from the array or the files to embeddings in memory
    waiting             share of this time in which the loop waited for a batch of images
    usual loop          transformers' CLIPImageProcessor in the workers of a torch DataLoader, then
                        CLIPModel, with the same weights, images and batch, in float32

Only the last stage needs torch and transformers' torch models. If they are not installed, a note says so.
The start of `bliss-jax evaluate` is measured with an empty and with a filled compilation cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, cpus, median, spread

BATCH = 32
HEIGHT, WIDTH = 375, 500
ALONE, OURS, PEER = "encoder alone", "embed_images", "usual loop in PyTorch"


@dataclass(frozen=True)
class Sizes:
    """Numbers of images and runs."""

    arrays: int
    files: int
    runs: int


QUICK, FULL = Sizes(arrays=64, files=64, runs=2), Sizes(arrays=256, files=256, runs=3)


def b32_model() -> Any:
    """Returns CLIP B/32 with random weights. Its tokenizer is not used."""
    from dataclasses import replace

    from benchmarks.gpu.architectures import ARCHITECTURES
    from bliss_jax.models import Preprocessing, load_model
    from bliss_jax.models.untrained import untrained_params

    config = replace(ARCHITECTURES["B/32"].config, dtype="float32")
    return replace(
        load_model("bliss-jax/untrained"),
        name="B/32 with random weights",
        config=config,
        params=untrained_params(config),
        preprocessing=Preprocessing(224),
        weights_hash="random",
    )


def write_folder(folder: Path, number: int) -> None:
    """Writes JPEGs of quality 90 and about 100 kB: gradients with noise, a different one for each image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:1:HEIGHT * 1j, 0:1:WIDTH * 1j]  # fmt: skip
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for i in range(number):
        a, b, c = rng.uniform(-1, 1, (3, 3))
        smooth = 128 + 60 * (a * down[..., None] + b * across[..., None] + c)
        pixels = np.clip(smooth + rng.normal(0, 12, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:05d}.jpg", quality=90)


def timed_embed(model: Any, dataset: Any) -> tuple[float, float]:
    """Returns the seconds of one `embed_images`, and the seconds in which its loop waited for images."""
    from bliss_jax.embedding import embed_images, images

    waited = 0.0
    ahead = images.ahead

    def measured(items: Iterator[Any], number: int) -> Iterator[Any]:
        nonlocal waited
        coming = ahead(items, number)
        while True:
            start = time.perf_counter()
            item = next(coming, None)
            waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    images.ahead = measured
    try:
        start = time.perf_counter()
        embed_images(model, dataset, batch_size=BATCH)
        return time.perf_counter() - start, waited
    finally:
        images.ahead = ahead


class Processed:
    """Images processed by transformers' image processor, for the workers of a DataLoader."""

    def __init__(self, images: Any):
        from transformers import CLIPImageProcessor

        self.images, self.processor = images, CLIPImageProcessor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Any:
        return self.processor(self.images[position], return_tensors="pt")["pixel_values"][0]


def torch_loop(model: Any, images: Any, workers: int) -> Callable[[], Any]:
    """Returns the usual loop over these images with the weights of `model`.

    Raises:
        ImportError: If torch is not installed.
    """
    import torch

    from benchmarks.gpu.peers import torch_tower

    peer = torch_tower(model.config, model.params, "cpu")
    loader = torch.utils.data.DataLoader(
        Processed(images),  # pyright: ignore[reportArgumentType]
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=True,
    )

    def run() -> Any:
        done = []
        with torch.inference_mode():
            for pixels in loader:
                projected = peer(pixel_values=pixels).image_embeds
                done.append(projected / projected.norm(dim=-1, keepdim=True))
        return torch.cat(done).numpy()

    return run


def stages(
    model: Any, dataset: Any, workers: int
) -> tuple[dict[str, Callable[[], Any]], str | None]:
    """Returns the functions to time, each over all batches, and the reason if the peer is missing."""
    import jax
    import numpy as np

    from bliss_jax.models import encode_image
    from bliss_jax.models.preprocessing import apply_preprocessing

    encode = jax.jit(encode_image, static_argnums=1)
    batch = jax.device_put(np.stack([dataset.images[i] for i in range(BATCH)]))
    pixels = jax.jit(apply_preprocessing, static_argnums=1)(batch, model.preprocessing)
    steps = len(dataset) // BATCH

    def alone() -> None:
        jax.block_until_ready([encode(model.params, model.config, pixels) for _ in range(steps)])

    def resized() -> None:
        jax.block_until_ready([model.encode_images(batch) for _ in range(steps)])

    found: dict[str, Callable[[], Any]] = {ALONE: alone, "with the resize": resized}
    try:
        found[PEER] = torch_loop(model, dataset.images, workers)
    except ImportError as error:
        return found, str(error)
    return found, None


def throughput(quick: bool) -> Table:
    """Measures all stages in turn, on both kinds of images."""
    import numpy as np

    from bliss_jax.datasets import ImageDataset, load_dataset
    from bliss_jax.embedding import embed_images

    sizes = QUICK if quick else FULL
    model = b32_model()
    cores = cpus()
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "jpegs"
        write_folder(folder, sizes.files)
        noise = np.random.default_rng(0).integers(0, 256, (sizes.arrays, 32, 32, 3), dtype=np.uint8)
        arrays = ImageDataset("noise", noise, np.zeros(len(noise), int), ("a", "b"), "made here")
        files = load_dataset(folder)
        for what, dataset in (("uint8 32 x 32 in memory", arrays), ("JPEG 500 x 375", files)):
            timed, without = stages(model, dataset, cores)
            seconds: dict[str, list[float]] = {stage: [] for stage in (*timed, OURS)}
            waits: list[float] = []
            for run in range(sizes.runs + 1):
                for stage, function in timed.items():
                    start = time.perf_counter()
                    function()
                    seconds[stage].append(time.perf_counter() - start)
                    print(f"{what}, {stage}: {seconds[stage][-1]:.2f} s", file=sys.stderr)
                took, waited = timed_embed(model, dataset)
                print(f"{what}, {OURS}: {took:.2f} s, {waited:.2f} s waiting", file=sys.stderr)
                seconds[OURS].append(took)
                waits.append(waited / took)
                if run == 0:  # this run compiles and starts the peer's workers
                    seconds, waits = {stage: [] for stage in seconds}, []
            for stage, times in seconds.items():
                rates = [len(dataset) / t for t in times]
                ratio = median(seconds[ALONE]) / median(times)
                waiting = f"{100 * median(waits):.1f} %" if stage == OURS else ""
                cells = (f"{median(rates):.1f}", spread(rates), f"{ratio:.2f}", waiting)
                rows.append((what, stage, *cells))
            data[what] = {"seconds": seconds, "images": len(dataset), "waiting": waits}
            if without is not None:
                notes.append(f"{what}: the usual loop is missing: {without}")
                continue
            mine = embed_images(model, dataset, batch_size=BATCH).embeddings
            lowest = float(np.min(np.sum(mine * timed[PEER](), axis=1)))
            faster = median(seconds[PEER]) / median(seconds[OURS])
            notes.append(
                f"{what}: {OURS} is {faster:.2f} times as fast as the usual loop; smallest cosine between "
                f"their embeddings {lowest:.5f}"
            )
        notes.append(decode_rate(files, min(len(files), 128), cores))
    notes.append(
        f"batches of {BATCH}, medians of {sizes.runs} runs, in turn; ratio: to the encoder alone"
    )
    headings = ("images", "stage", "images/s", "smallest to largest", "ratio", "waiting")
    title = "From images to embeddings, CLIP B/32, float32"
    return Table(title, headings, tuple(rows), tuple(notes), data)


def decode_rate(dataset: Any, number: int, cores: int) -> str:
    """Measures the JPEGs that one thread and all threads decode per second."""

    def rate(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(dataset.images.read, range(number)))
            return number / (time.perf_counter() - start)

    rate(1)
    return f"decoding alone: {rate(1):.0f} JPEGs/s on one core, {rate(cores):.0f} on {cores}"


def startup(quick: bool) -> Table:
    """Measures `bliss-jax evaluate` in new processes, without a cache, with an empty and a filled cache."""
    runs = 1 if quick else 3
    common = [sys.executable, "-m", "bliss_jax.cli", "evaluate", "--quiet", "--dataset", "digits"]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        words = Path(temporary) / "words.txt"
        words.write_text("\n".join(f"word {i}" for i in range(100)))
        options = ["--model", "bliss-jax/untrained", "--dictionary", str(words)]
        for what, command in {
            "all scores": [*common, *options],
            "BLISS alone": [*common, *options, "--score", "bliss"],
            "--help": [*common, "--help"],
        }.items():
            for run in range(runs):
                cache = str(Path(temporary) / f"cache {run} {what}")
                for state, folder in (("off", "off"), ("empty", cache), ("filled", cache)):
                    environment = os.environ | {"BLISS_JAX_COMPILATION_CACHE": folder}
                    start = time.perf_counter()
                    subprocess.run(  # noqa: S603
                        command, env=environment, check=True, stdout=subprocess.DEVNULL
                    )
                    took = time.perf_counter() - start
                    found.setdefault(f"{what}, {state}", []).append(took)
    rows = []
    for what in ("all scores", "BLISS alone", "--help"):
        off, empty, filled = (found[f"{what}, {s}"] for s in ("off", "empty", "filled"))
        ratio = median(off) / median(filled)
        row = (what, *(f"{median(t):.1f}" for t in (off, empty, filled)), f"{ratio:.2f}")
        rows.append(row)
    headings = ("evaluate", "cache off, s", "cache empty, s", "cache filled, s", "off / filled")
    notes = (
        f"whole process, medians of {runs}; the digits with the untrained model, which take little time",
    )
    return Table("Start of the command line", headings, tuple(rows), notes, {"seconds": found})
