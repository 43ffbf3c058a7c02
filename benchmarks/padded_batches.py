"""The cost of scoring with one padded batch shape: latency of one image, throughput, equal bits.

    python -m benchmarks.padded_batches [--model B/32] [--dtype float32] [--batches 1,8,64]

A detector embeds all images in batches of one shape, so that an image has the same embedding, to the last
bit, alone and in any batch. The table shows the price for each number of images per batch:

    one image          time from one uint8 image of the model's size to its embedding, in a padded batch
    throughput         images per second in full batches of uint8 images, each awaited
    order              whether a permutation of the images permutes the embeddings bit for bit
    other shapes       largest difference of a cosine from the embeddings in batches of 1

The weights are random; the time does not depend on them.
"""

import time
from typing import Any

import click

from benchmarks.measure import median
from benchmarks.random_detector import random_encoder

BATCHES = "1,2,4,8,16,32,64"


@click.command()
@click.option("--model", "name", default="B/32", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--batches", "sizes", default=BATCHES, show_default=True, help="Images per batch.")
def main(name: str, dtype: Any, runs: int, sizes: str) -> None:
    """Measure latency and throughput for each batch size and print a Markdown table."""
    import jax
    import numpy as np

    batches = [int(size) for size in sizes.split(",")]
    model = random_encoder(name, dtype)
    size = model.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * max(batches), size, size, 3)).astype(np.uint8)

    def embed(rows: np.ndarray, batch: int) -> np.ndarray:
        found = np.empty((len(rows), model.embedding_dim), np.float32)
        for start in range(0, len(rows), batch):
            some = images[rows[start : start + batch]]
            padded = np.pad(some, ((0, batch - len(some)), (0, 0), (0, 0), (0, 0)))
            embedded = np.asarray(model.encode_images(jax.device_put(padded)))
            found[start : start + batch] = embedded[: len(some)]
        return found

    click.echo(f"{name}, {dtype}, {jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    click.echo("| images per batch | one image | throughput | order | other shapes |")
    click.echo("| ---: | ---: | ---: | --- | ---: |")
    everything = np.arange(len(images))
    alone = embed(everything, 1)
    for batch in batches:
        whole = embed(everything, batch)
        order = rng.permutation(len(images))
        same = np.array_equal(embed(order, batch), whole[order])
        same = same and np.array_equal(embed(everything[5:6], batch)[0], whole[5])
        latency, full = [], []
        for _ in range(runs):
            start = time.perf_counter()
            embed(everything[:1], batch)
            latency.append(time.perf_counter() - start)
            start = time.perf_counter()
            embed(everything, batch)
            full.append(time.perf_counter() - start)
        difference = np.abs((whole - alone) @ alone.T).max()
        click.echo(
            f"| {batch} | {1e3 * median(latency):.1f} ms | {len(images) / median(full):.0f}/s | "
            f"{'same bits' if same else 'differs'} | {difference:.1e} |"
        )


if __name__ == "__main__":
    main()
