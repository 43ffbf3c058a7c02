"""Time and peak memory of BLISS against the number of texts, classes and images.

Every case runs in a process of its own: moments are made up for its classes (the fit is no part of it),
images come in batches, as they would from an encoder, and each batch is scored by one compiled program.
Beside it stands the product of the same images with the same dictionary in the library's chunks, and nothing
else: what no exact method that looks at every text can do without.

The floating-point operations of the two products that BLISS needs,

    similarities      2 images texts dim
    variances         2 min(texts, k batch) classes dim^2       for every batch: t^T C_c t of the texts chosen

say beforehand what the ratio to the first of them ought to be.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

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
from bliss_jax.scores.top_k import CHUNK_SIZE, similarity

DIM, K = 512, 10
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
        """Operations of the variances of the chosen texts, or of all where those are fewer."""
        return 2 * self.batches * min(self.texts, K * self.batch) * self.classes * DIM**2

    @property
    def working_arrays(self) -> int:
        """Bytes of one array of each kind that `external_text_score` names as a few of its bound."""
        chunk = min(CHUNK_SIZE, self.texts)
        numbers = self.batch * (chunk + K * self.classes) + chunk * (DIM + self.classes)
        return 4 * numbers


class Cost(NamedTuple):
    """What a case took."""

    score_seconds: list[float]
    product_seconds: list[float]
    compile_seconds: float
    input_bytes: int
    """Dictionary, moments and one batch."""
    temporary_bytes: int
    """What XLA allots for the program's intermediate values."""
    peak_bytes: int
    """The process's resident set at its peak while scoring, above that before it (inputs made)."""


QUICK = (
    Case(1_860, 10),
    Case(1_860, 10, images=100_000, times=1),
    Case(1_860, 100, times=1),
    Case(80_000, 10, times=1),
)
FULL = (
    Case(1_860, 10),
    Case(80_000, 10),
    Case(1_000_000, 10, times=1),
    Case(1_860, 100),
    Case(80_000, 100, times=1),
    Case(1_860, 1_000),
    Case(80_000, 1_000, images=1_000, batch=1_000, times=1),
    Case(1_860, 10, images=1_000_000, times=1),
    Case(1_860, 10, images=1_000_000, batch=50_000, times=1),
)


def scale(quick: bool) -> Table:
    """All cases, one after the other."""
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
    headings += ("ratio of operations", "compile, s", "inputs, MB", "peak above inputs, MB")
    headings += ("XLA's temporaries, MB", "one array of each kind, MB")
    return Table(
        "Cost against size: BLISS and the similarity product alone",
        headings,
        tuple(_row(case, cost) for case, cost in costs.items()),
        (
            f"{DIM} dimensions, k = {K}; medians of 3 runs, or one run for the largest cases; score and "
            "product taken in turn",
            "ratio of operations: what the variances of the texts add to the similarities, top-k and the "
            "rest not counted",
            "every batch computes the variances of its texts anew, from the moments",
        ),
        {"cases": [{**case._asdict(), **cost._asdict()} for case, cost in costs.items()]},
    )


def _row(case: Case, cost: Cost) -> tuple[str, ...]:
    score, product = median(cost.score_seconds), median(cost.product_seconds)
    operations = 1 + case.variance_flops / case.similarity_flops
    memory = (cost.input_bytes, cost.peak_bytes, cost.temporary_bytes, case.working_arrays)
    return (
        *(f"{size:,}" for size in case[:4]),
        f"{score:.2f}",
        f"{product:.2f}",
        f"{score / product:.2f}",
        f"{operations:.2f}",
        f"{cost.compile_seconds:.2f}",
        *(f"{size / _MB:,.0f}" for size in memory),
    )


def measure_case(case: Case) -> Cost:
    """Runs one case in this process."""
    drawn = embeddings(
        train=1, test=4 * case.batch, texts=case.texts, classes=case.classes, dim=DIM
    )
    # A long stream is four batches over and over: making up new ones would be measured too.
    batches = drawn.test.reshape(4, case.batch, DIM)
    labels, dictionary = jax.device_put((drawn.labels, drawn.dictionary))
    moments = _made_up_moments(case.classes)
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
    return Cost(
        taken["score"],
        taken["product"],
        compile_seconds,
        sum(array.nbytes for array in inputs),
        score.memory_analysis().temp_size_in_bytes,
        peak - before,
    )


def _stream(
    case: Case, batches: Float[np.ndarray, "4 batch dim"], program: Callable[..., jax.Array]
) -> list[np.ndarray]:
    """The program on batch after batch, results brought to the host as a consumer would."""
    return [np.asarray(program(batches[i % len(batches)])) for i in range(case.batches)]


def _product(
    images: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"]
) -> Float[jax.Array, " images"]:
    """The similarities of every chunk of texts, of which all but one column each is thrown away."""
    size = min(CHUNK_SIZE, len(texts))
    begins = jnp.minimum(jnp.arange(0, len(texts), size), len(texts) - size)

    def add_chunk(total, begin):
        chunk = lax.dynamic_slice_in_dim(texts, begin, size)
        # Without the barrier XLA would compute the one column alone.
        return total + lax.optimization_barrier(similarity(images, chunk))[:, 0], None

    return lax.scan(add_chunk, jnp.zeros(len(images), images.dtype), begins)[0]


def _made_up_moments(classes: int) -> bj.ClassMoments:
    """Moments of `classes` classes of 500 images each, without the images: time is all that is asked."""
    shift = jax.random.normal(jax.random.key(0), (classes, DIM)) / DIM**0.5
    mean = 0.87 * jnp.eye(1, DIM) + 0.3 * shift
    cov = jnp.broadcast_to(jnp.eye(DIM) * (0.15 / DIM), (classes, DIM, DIM))
    return bj.ClassMoments(jnp.full(classes, 500, jnp.int32), mean, jnp.array(cov))
