"""Scores on simulated devices, with the images or the dictionary sharded; strong and weak scaling.

    strong      the same work on 1, 2, 4 and 8 devices
    weak        work that grows with the devices: the same number of images, or of texts, on each

The devices are simulated (`--xla_force_host_platform_device_count`) and share the process's CPUs, which one
device already uses fully. More devices cannot be faster. The benchmark shows the overhead of sharding: the
time of an amount of work, relative to the time of one device for the same amount. Each number of devices runs
in a process of its own, because XLA reads the number when it starts.
"""

import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bliss_jax as bj
from benchmarks.measure import Table, compiled, in_fresh_process, median, repeat, spread
from benchmarks.synthetic import embeddings

DIM, CLASSES = 512, 10
DEVICES = (1, 2, 4, 8)
_FLAG = "--xla_force_host_platform_device_count"


class Case(NamedTuple):
    """One row of the table."""

    over: str
    """Sharded axis, "images" or "dictionary"."""
    scaling: str
    devices: int
    images: int
    texts: int
    times: int

    @property
    def work(self) -> int:
        """Number of similarities to compute."""
        return self.images * self.texts


class Cost(NamedTuple):
    """Time and accuracy of a case."""

    seconds: list[float]
    apart: float
    """Largest difference from the scores of one device, over 256 images."""


def cases(quick: bool) -> list[Case]:
    """Returns the cases: both sharded axes, and both kinds of scaling."""
    images, texts, times = (1_024, 4_096, 3) if quick else (4_096, 16_384, 7)
    found = []
    for devices in DEVICES:
        found += [
            Case("images", "strong", devices, images, texts, times),
            Case("dictionary", "strong", devices, images, texts, times),
            Case("images", "weak", devices, images // 4 * devices, texts, times),
            Case("dictionary", "weak", devices, images, texts // 4 * devices, times),
        ]
    return sorted(found, key=lambda case: (case.over, case.scaling, case.devices))


def sharding(quick: bool) -> Table:
    """Measures all cases, each number of devices in a process of its own."""
    found: dict[Case, Cost] = {}
    todo = cases(quick)
    for devices in DEVICES:
        print(f"sharding: {devices} devices", file=sys.stderr)
        of_devices = [case for case in todo if case.devices == devices]
        kept = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{kept} {_FLAG}={devices}".strip()
        try:
            costs = in_fresh_process(measure_cases, of_devices)
        finally:
            os.environ["XLA_FLAGS"] = kept
        found.update(zip(of_devices, costs, strict=True))
    headings = ("devices", "images", "texts", "score, s", "smallest to largest")
    headings += ("time for the same work, relative to one device", "largest difference")
    return Table(
        "Scores on simulated devices that share the CPUs",
        ("sharded", "scaling", *headings),
        tuple(_row(case, found) for case in todo),
        (
            f"{DIM} dimensions, {CLASSES} classes, k = 10; medians, without compilation",
            "the simulated devices share CPUs that one device already uses fully: the table shows the "
            "overhead of sharding (1.0: none), not the speed of several devices",
            "largest difference: between 256 scores and those of one device",
        ),
        {"cases": [{**case._asdict(), **found[case]._asdict()} for case in todo]},
    )


def _row(case: Case, found: dict[Case, Cost]) -> tuple[str, ...]:
    one = next(c for c in found if (c.over, c.scaling, c.devices) == (case.over, case.scaling, 1))
    per_work = {c: median(found[c].seconds) / c.work for c in (case, one)}
    return (
        case.over,
        case.scaling,
        *(f"{size:,}" for size in (case.devices, case.images, case.texts)),
        f"{median(found[case].seconds):.3f}",
        spread(found[case].seconds),
        f"{per_work[case] / per_work[one]:.2f}",
        f"{found[case].apart:.1e}",
    )


def measure_cases(of_devices: list[Case]) -> list[Cost]:
    """Measures cases whose number of devices is that of this process."""
    return [_measure(case) for case in of_devices]


def _measure(case: Case) -> Cost:
    assert jax.device_count() == case.devices
    e = embeddings(train=1_000, test=case.images, texts=case.texts, classes=CLASSES, dim=DIM)
    moments = bj.fit_moments(e.train, e.train_labels, num_classes=CLASSES)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    whole, rows = PartitionSpec(), PartitionSpec("devices")
    of_images, of_texts = (rows, whole) if case.over == "images" else (whole, rows)
    axis = None if case.over == "images" else "devices"

    def score(x, labels, texts, moments):
        return bj.bliss_score(x, labels, texts, moments, dictionary_axis=axis)

    specs = (of_images, whole, of_texts, whole)
    divided = jax.shard_map(score, mesh=mesh, in_specs=specs, out_specs=of_images)
    arrays = tuple(
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip((e.test, e.labels, e.dictionary, moments), specs, strict=True)
    )
    program, _ = compiled(divided, *arrays)
    taken = repeat(lambda: program(*arrays), case.times)
    some = slice(0, 256)
    alone = jax.jit(bj.bliss_score)(
        e.test[some], jnp.asarray(e.labels), jnp.asarray(e.dictionary), moments
    )
    apart = np.abs(np.asarray(program(*arrays))[some] - np.asarray(alone))
    # Times are compared only if the results agree.
    assert apart.max() < 1e-3, f"{case}: {apart.max()}"
    return Cost(taken, float(apart.max()))
