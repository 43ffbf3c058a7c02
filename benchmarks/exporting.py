"""Size, export time and first call of exported detectors (`Detector.export`).

    python -m benchmarks.exporting

The detectors have random weights, 10 classes, 1,860 phrases and 400 calibration images. Each program is exported
for CPUs, GPUs and TPUs with `batch_size=4`, and runs in a process of its own that imports only JAX and NumPy:

    export             time of `Detector.export`
    first call         time from the loaded file to the results of 4 images, compilation included
    later call         median of five more calls
    memory             peak resident memory of that process
    difference         largest relative difference of the scores from those of `Detector.score`
"""

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import in_fresh_process, median
from benchmarks.random_detector import random_detector, random_encoder

ENCODERS = (("untrained", "float32"), ("B/32", "float32"), ("B/32", "bfloat16"))
IMAGES = 4


def _export(name: str, dtype: str, folder: Path) -> dict[str, float]:
    """Exports a detector, and writes images and their scores beside it."""
    model = random_encoder(name, dtype)
    detector = random_detector(model)
    size = model.image_size
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3)).astype(np.uint8)
    np.save(folder / "images.npy", images)
    np.save(folder / "scores.npy", detector.score(images))
    start = time.perf_counter()
    detector.export(folder / "det.npz", batch_size=IMAGES)
    seconds = time.perf_counter() - start
    file = np.load(folder / "det.npz")
    return {
        "export": seconds,
        "file": (folder / "det.npz").stat().st_size,
        "program": len(file["program"]),
    }


def _run(folder: Path) -> dict[str, float]:
    """Runs an exported detector with JAX and NumPy alone."""
    import jax
    from jax import export

    file = np.load(folder / "det.npz")
    images = np.load(folder / "images.npy")
    program = jax.jit(export.deserialize(bytearray(file["program"])).call)
    arrays = jax.device_put({name: file[name] for name in file.files if name.startswith("arrays/")})
    times = []
    scores = expected = np.load(folder / "scores.npy")
    for _ in range(6):
        start = time.perf_counter()
        scores = np.asarray(program(arrays, images)[0])
        times.append(time.perf_counter() - start)
    return {
        "first": times[0],
        "later": median(times[1:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "difference": float(np.max(np.abs(scores - expected) / np.abs(expected))),
    }


def _row(name: str, dtype: str) -> Sequence[str]:
    with tempfile.TemporaryDirectory() as folder:
        found = in_fresh_process(_export, name, dtype, Path(folder))
        found |= in_fresh_process(_run, Path(folder))
    return (
        f"{name}, {dtype}",
        f"{found['file'] / 1e6:,.1f} MB",
        f"{found['program'] / 1e3:,.0f} kB",
        f"{found['export']:.1f} s",
        f"{found['first']:.1f} s",
        f"{1e3 * found['later']:,.0f} ms",
        f"{found['memory'] / 1e9:.1f} GB",
        f"{found['difference']:.0e}",
    )


@click.command()
def main() -> None:
    """Measure exported detectors and print a Markdown table."""
    head = ("encoder", "file", "program in it", "export", "first call", "later call (4 images)")
    head += ("memory", "difference")
    click.echo("| " + " | ".join(head) + " |\n| --- " + "| ---: " * (len(head) - 1) + "|")
    for name, dtype in ENCODERS:
        click.echo("| " + " | ".join(_row(name, dtype)) + " |")


if __name__ == "__main__":
    main()
