"""The cases of the benchmark in the order of their importance, with the seconds that each may take."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from benchmarks.gpu.architectures import ARCHITECTURES
from benchmarks.gpu.embedding import cifar10, embedded_images, prompts, prompts_in_full
from benchmarks.gpu.encoders import ceiling, encoder, from_uint8
from benchmarks.gpu.measuring import Context
from benchmarks.gpu.peers import torch_encoder
from benchmarks.gpu.roofline import XLA_FLAGS, flags, profile, roofline
from benchmarks.gpu.scores import scores, selectors
from benchmarks.gpu.transformations import transformations
from benchmarks.gpu.variants import INSIDE, aurocs, variant


class Case(NamedTuple):
    """One case."""

    run: Callable[[Context], Iterator[dict[str, Any]]]
    """Yields numbers as they are measured, so that they are kept if the case is stopped."""
    expected_s: float
    """Seconds on a Hopper card with nothing compiled; a case does not start if fewer are left."""
    worker: str = "jax"
    """Process in which the case runs, see `WORKERS`."""

    @property
    def limit_s(self) -> float:
        """Seconds after which the case is stopped."""
        return 60 + 2 * self.expected_s


WORKERS: dict[str, dict[str, str]] = {
    "jax": {},
    # PyTorch has the accelerator for itself; the weights still come from the library's code.
    "torch": {"JAX_PLATFORMS": "cpu"},
    **{f"jax {name}": {"XLA_FLAGS": value} for name, value in XLA_FLAGS.items()},
}
"""Kind of process to its environment variables. Cases that follow each other share a process."""


def cases() -> dict[str, Case]:
    """Returns all cases by name, the most important first."""
    return {
        "ceiling": Case(ceiling, 25),
        "encoder L/14": Case(partial(encoder, "L/14"), 45),
        "profile L/14": Case(partial(profile, "L/14"), 10),
        "encoder B/16": Case(partial(encoder, "B/16"), 25),
        "encoder B/32": Case(partial(encoder, "B/32"), 25),
        "encoder L/14-336": Case(partial(encoder, "L/14-336"), 45),
        "embed_images 32": Case(partial(embedded_images, "B/32", 32), 12),
        "embed_images 224": Case(partial(embedded_images, "B/32", 224), 12),
        "scores 1000000": Case(partial(scores, 1_000_000), 30),
        "cifar10": Case(cifar10, 60),
        "prompts B/32": Case(partial(prompts, "B/32"), 30),
        "from uint8 B/32": Case(partial(from_uint8, "B/32"), 12),
        "torch L/14": Case(partial(torch_encoder, "L/14"), 50, "torch"),
        "torch B/32": Case(partial(torch_encoder, "B/32"), 30, "torch"),
        "torch B/16": Case(partial(torch_encoder, "B/16"), 30, "torch"),
        "torch L/14-336": Case(partial(torch_encoder, "L/14-336"), 50, "torch"),
        "transformations": Case(transformations, 40),
        "L/14, float32 results and XLA's attention": Case(
            partial(variant, "L/14", "float32 results and XLA's attention"), 30
        ),
        "scores 1860": Case(partial(scores, 1_860), 20),
        "from uint8 L/14": Case(partial(from_uint8, "L/14"), 15),
        "top k of 1000000": Case(partial(selectors, 1_000_000), 40),
        **{
            f"L/14, {kind}": Case(partial(variant, "L/14", kind), 30)
            for kind in (INSIDE, "fp8", "XLA's attention", "float32 results")
        },
        "prompts in full B/32": Case(partial(prompts_in_full, "B/32"), 30),
        "scores 80000": Case(partial(scores, 80_000), 20),
        **{
            f"{name}, float32 results and XLA's attention": Case(
                partial(variant, name, "float32 results and XLA's attention"), 25
            )
            for name in ARCHITECTURES
            if name != "L/14"
        },
        "prompts L/14": Case(partial(prompts, "L/14"), 30),
        "profile B/32": Case(partial(profile, "B/32"), 10),
        "roofline L/14": Case(partial(roofline, "L/14"), 40),
        **{f"flags {name}": Case(partial(flags, "L/14"), 50, f"jax {name}") for name in XLA_FLAGS},
    }


ON_REQUEST = {"aurocs": Case(aurocs, 120)}
"""Cases that run only if they are named: they need real weights."""
