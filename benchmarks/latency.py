"""Time of a single image through `Detector.score`, from the path of a file to the score.

    python -m benchmarks.run --only latency

The encoder is ViT-B/32 with random weights, the detector has 10 classes, 1,860 phrases and the default batches. The
image is a JPEG of 500 x 375. Every stage is measured in turn with the others, in the same loop:

    decode           `read_image`: from the file to uint8 pixels
    resize           `resize_on_host`: bicubic, to the encoder's size
    encoder          the jitted encoder on pixels that are on the device
    score            `Detector.score` of one embedding
    path to score    `Detector.score` of the path

The last rows repeat `Detector.score` once per second, as in a stream with pauses, in which caches and clocks cool down.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Table
from benchmarks.random_detector import random_detector, random_encoder


def latency(quick: bool) -> Table:
    """Measures the median and the 99th percentile of each stage."""
    import jax
    from PIL import Image

    import bliss_jax as bj
    from bliss_jax.models import encode_image, resize_on_host
    from bliss_jax.models.preprocessing import apply_preprocessing

    runs, seconds_of_stream = (20, 3) if quick else (300, 60)
    model = random_encoder("untrained" if quick else "B/32", "float32")
    detector = random_detector(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photograph.jpg"
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        image = bj.read_image(path)
        small = resize_on_host(image, model.preprocessing)
        pixels = jax.block_until_ready(apply_preprocessing(small[None], model.preprocessing))
        embedding = np.asarray(encode_image(model.params, model.config, pixels))
        stages: dict[str, Callable[[], Any]] = {
            "decode": lambda: bj.read_image(path),
            "resize": lambda: resize_on_host(image, model.preprocessing),
            "encoder": lambda: encode_image(model.params, model.config, pixels),
            "score": lambda: detector.score(embedding),
            "path to score": lambda: detector.score([path]),
        }
        times: dict[str, list[float]] = {name: [] for name in stages}
        for run in range(runs + 5):
            for name, stage in stages.items():
                took = _seconds(stage)
                if run >= 5:
                    times[name].append(took)
        paused = []
        for _ in range(seconds_of_stream):
            time.sleep(1)
            paused.append(_seconds(stages["path to score"]))
    times["path to score, one per second"] = paused
    alone = float(np.median(times["encoder"]))
    rows = tuple(
        (
            name,
            f"{1e3 * np.median(found):.2f}",
            f"{1e3 * np.percentile(found, 99):.2f}",
            f"{np.median(found) / alone:.2f}",
        )
        for name, found in times.items()
    )
    return Table(
        f"One image, {'bliss-jax/untrained' if quick else 'ViT-B/32'} in float32",
        ("stage", "median, ms", "99th percentile, ms", "of the encoder"),
        rows,
        (f"{runs} runs of each stage in turn; {seconds_of_stream} images at one per second",),
        times,
    )


def _seconds(call: Callable[[], Any]) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
