"""Time and peak memory of BLISS against the number of texts, classes and images.

Every case runs in a process of its own. The moments are synthetic, because the fit is not measured. Images
come in batches, as from an encoder, and one compiled program scores each batch. Two more times are measured for
comparison: the similarity product of the same images with the same dictionary in the library's chunks, which every
exact method needs, and the score from prepared statistics of all texts (`prepare_bliss`). The seconds of this
preparation, which is done once, are listed too.

BLISS needs two products, whose floating-point operations predict the ratio of its time to the first product:

    similarities      2 images texts dim
    variances         2 min(texts, k batch) classes dim^2       per batch: t^T C_c t of the chosen texts
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

import bliss_jax as bj
from benchmarks.measure import (
    Table,
    compiled,
    in_fresh_process,
    median,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    seconds,
)
from benchmarks.synthetic import embeddings
from bliss_jax.scores import similarity
from bliss_jax.scores.blocks import map_images
from bliss_jax.scores.statistics import VARIANCE_CHUNK
from bliss_jax.scores.top_k import default_sizes

DIM, K = 512, 10
CHUNK_SIZE, IMAGE_BLOCK = default_sizes()
_MB = 1e6


class Case(NamedTuple):
    """One row of the table."""

    texts: int
    classes: int
    images: int = 10_000
    batch: int = 10_000
    times: int = 3

    @property
    def batches(self) -> int:
        """Calls of the compiled program."""
        return -(-self.images // self.batch)

    @property
    def similarity_flops(self) -> int:
        """Operations of the product of all images with the dictionary."""
        return 2 * self.batches * self.batch * self.texts * DIM

    @property
    def variance_flops(self) -> int:
        """Operations of the variances of the chosen texts, or of all texts if they are fewer."""
        return 2 * self.batches * min(self.texts, K * self.batch) * self.classes * DIM**2

    @property
    def bound(self) -> int:
        """Bytes besides inputs and result that the docstrings of `bliss_score` and its parts allow."""
        n, texts, classes = self.batch, self.texts, self.classes
        chunk, places = min(CHUNK_SIZE, texts), min(texts, K * n)
        table = min(places * classes, max(places, chunk * DIM))
        numbers = min(n, IMAGE_BLOCK) * (chunk + 8 * K) + 4 * n * K + 3 * texts + n * classes
        numbers += 2 * table + 4 * min(chunk, VARIANCE_CHUNK) * (DIM + classes) + 4 * DIM**2
        return 4 * (numbers + 3 * n * classes + 2 * classes * DIM)


class Cost(NamedTuple):
    """Time and memory of a case."""

    score_seconds: list[float]
    product_seconds: list[float]
    prepared_seconds: list[float]
    """Seconds of scores from a prepared table of statistics."""
    preparation_seconds: float
    """Seconds of preparing the table of statistics once."""
    apart: float
    """Largest difference between the score and the prepared score."""
    compile_seconds: float
    input_bytes: int
    """Dictionary, moments and one batch."""
    temporary_bytes: int
    """Memory that XLA reserves for intermediate values of the program."""
    peak_bytes: int
    """Peak of the process's resident set while scoring, minus the resident set with the inputs."""


QUICK = (
    Case(1_860, 10),
    Case(1_860, 10, images=100_000, times=1),
    Case(1_860, 100, times=1),
    Case(80_000, 10, times=1),
)
FULL = (
    Case(1_860, 10),
    Case(80_000, 10, times=1),
    Case(1_000_000, 10, images=1_000, batch=1_000, times=1),
    Case(1_860, 100),
    Case(80_000, 100, images=1_000, batch=1_000, times=1),
    Case(1_860, 1_000),
    Case(10_000, 1_000, images=1_000, batch=1_000, times=1),
    Case(1_860, 10, images=1_000_000, times=1),
    Case(1_860, 10, images=1_000_000, batch=50_000, times=1),
)


def scale(quick: bool) -> Table:
    """Measures all cases, one after the other."""
    costs = {}
    for case in QUICK if quick else FULL:
        print(f"scale: {case}", file=sys.stderr)
        costs[case] = in_fresh_process(measure_case, case)
    headings = (
        "texts",
        "classes",
        "images",
        "in batches of",
        "score, s",
        "product alone, s",
        "ratio",
    )
    headings += ("ratio of operations", "prepared, s", "ratio of prepared", "preparation, s")
    headings += ("compile, s", "inputs, MB", "peak above inputs, MB")
    headings += ("XLA's temporaries, MB", "bound stated, MB")
    return Table(
        "Cost against size: BLISS and the similarity product alone",
        headings,
        tuple(_row(case, cost) for case, cost in costs.items()),
        (
            f"{DIM} dimensions, k = {K}; medians of 3 runs, or one run for the largest cases; score and "
            "product are measured in turn",
            "ratio of operations: operations of similarities and variances divided by those of similarities; "
            "top-k and other steps are not counted",
            "score: every batch computes the variances of its texts from the moments; prepared: they are read "
            "from a table, and the column preparation has the time in which it is computed",
            f"the two scores differ by at most {max(cost.apart for cost in costs.values()):.1e}",
        ),
        {"cases": [_numbers(case, cost) for case, cost in costs.items()]},
    )


def _numbers(case: Case, cost: Cost) -> dict[str, Any]:
    operations = case.similarity_flops + case.variance_flops
    of_case = {**case._asdict(), "operations": operations, "bound_bytes": case.bound}
    return {**of_case, **cost._asdict()}


def _row(case: Case, cost: Cost) -> tuple[str, ...]:
    score, product = median(cost.score_seconds), median(cost.product_seconds)
    prepared = median(cost.prepared_seconds)
    operations = 1 + case.variance_flops / case.similarity_flops
    memory = (cost.input_bytes, cost.peak_bytes, cost.temporary_bytes, case.bound)
    return (
        *(f"{size:,}" for size in case[:4]),
        f"{score:.2f}",
        f"{product:.2f}",
        f"{score / product:.2f}",
        f"{operations:.2f}",
        f"{prepared:.2f}",
        f"{prepared / product:.2f}",
        f"{cost.preparation_seconds:.2f}",
        f"{cost.compile_seconds:.2f}",
        *(f"{size / _MB:,.0f}" for size in memory),
    )


def measure_case(case: Case) -> Cost:
    """Measures a case in this process."""
    drawn = embeddings(
        train=1, test=4 * case.batch, texts=case.texts, classes=case.classes, dim=DIM
    )
    # A long stream repeats four batches, because drawing new ones would be measured too.
    batches = drawn.test.reshape(4, case.batch, DIM)
    labels, dictionary = jax.device_put((drawn.labels, drawn.dictionary))
    moments = _synthetic_moments(case.classes)
    del drawn

    score, compile_seconds = compiled(bj.bliss_score, batches[0], labels, dictionary, moments)
    product, _ = compiled(_product, batches[0], dictionary)
    inputs = jax.tree.leaves((labels, dictionary, moments, batches[0]))
    before = resident_memory()
    reset_peak_memory()
    taken = {"score": [], "product": []}
    peak = 0
    for run in range(case.times):
        taken["score"].append(
            seconds(lambda: _stream(case, batches, lambda x: score(x, labels, dictionary, moments)))
        )
        peak = peak if run else peak_memory()
        taken["product"].append(
            seconds(lambda: _stream(case, batches, lambda x: product(x, dictionary)))
        )
    # This follows the measurement of the peak, because the plain score has no table of statistics.
    prepare, _ = compiled(bj.prepare_bliss, labels, dictionary, moments)
    tables: list[bj.PreparedBliss] = []
    preparation_seconds = seconds(
        lambda: tables.append(jax.block_until_ready(prepare(labels, dictionary, moments)))
    )
    quick, _ = compiled(bj.bliss_score_prepared, batches[0], tables[0])
    apart = np.abs(quick(batches[0], tables[0]) - score(batches[0], labels, dictionary, moments))
    # Times are compared only if the results agree.
    assert apart.max() < 1e-3, f"{case}: {apart.max()}"
    taken["prepared"] = [
        seconds(lambda: _stream(case, batches, lambda x: quick(x, tables[0])))
        for _ in range(case.times)
    ]
    return Cost(
        taken["score"],
        taken["product"],
        taken["prepared"],
        preparation_seconds,
        float(apart.max()),
        compile_seconds,
        sum(array.nbytes for array in inputs),
        score.memory_analysis().temp_size_in_bytes,
        peak - before,
    )


def _stream(
    case: Case, batches: Float[np.ndarray, "4 batch dim"], program: Callable[..., jax.Array]
) -> list[np.ndarray]:
    """Runs the program on all batches and copies the results to the host."""
    return [np.asarray(program(batches[i % len(batches)])) for i in range(case.batches)]


def _product(
    images: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"]
) -> Float[jax.Array, " images"]:
    """Computes the similarities in the library's blocks and chunks, and keeps one column of each chunk."""
    size = min(CHUNK_SIZE, len(texts))
    begins = jnp.minimum(jnp.arange(0, len(texts), size), len(texts) - size)

    def of_images(images):
        def add_chunk(total, begin):
            chunk = lax.dynamic_slice_in_dim(texts, begin, size)
            # Without the barrier XLA would compute the one column alone.
            return total + lax.optimization_barrier(similarity(images, chunk))[:, 0], None

        return lax.scan(add_chunk, jnp.zeros(len(images), images.dtype), begins)[0]

    return map_images(of_images, images, IMAGE_BLOCK)


def _synthetic_moments(classes: int) -> bj.ClassMoments:
    """Returns synthetic moments of `classes` classes of 500 images each."""
    shift = jax.random.normal(jax.random.key(0), (classes, DIM)) / DIM**0.5
    mean = 0.87 * jnp.eye(1, DIM) + 0.3 * shift
    cov = jnp.broadcast_to(jnp.eye(DIM) * (0.15 / DIM), (classes, DIM, DIM))
    return bj.ClassMoments(jnp.full(classes, 500.0), mean, jnp.array(cov))
