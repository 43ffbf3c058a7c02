"""The command's sections, options and kept numbers; see the package's text."""

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.encoders import ceiling, encoders, flags, roofline
from benchmarks.gpu.inputs import stream, texts
from benchmarks.gpu.measuring import Found, Settings, attempt
from benchmarks.gpu.peers import peers
from benchmarks.gpu.scores import scores
from benchmarks.gpu.variants import variants
from benchmarks.measure import Table, in_fresh_process

SECTIONS: dict[str, Callable[[Settings, Found], Table]] = {
    "ceiling": ceiling, "encoders": encoders, "scores": scores, "variants": variants, "roofline": roofline,
    "texts": texts, "stream": stream, "flags": flags, "peers": peers,
}  # fmt: skip
"""In this order: what others refer to first, the peer, which compiles longest, last."""


def machine() -> dict[str, str]:
    """Device and versions."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
    return {
        "device": f"{device.device_kind} ({device.platform}), {jax.device_count()} of them",
        "host CPUs": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
    }


def read_kept(path: Path | None, facts: dict[str, str], quick: bool) -> dict[str, Any]:
    """The numbers of earlier sections, or of none where there is no such file yet.

    Raises:
        ValueError: they are of another machine, of other versions or of the other mode.
    """
    fresh = {"machine": facts, "quick": quick, "sections": {}}
    if path is None or not path.exists():
        return fresh
    kept = json.loads(path.read_text())
    if (kept.get("machine"), kept.get("quick")) != (facts, quick):
        raise ValueError(f"{path}: holds numbers of another machine or mode: {kept.get('machine')}")
    return kept


def main() -> None:
    """Runs the sections, prints their tables and keeps their numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Speed on an accelerator."
    )
    parser.add_argument(
        "--quick", action="store_true", help="shrunken models, a few seconds a section"
    )
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated")
    parser.add_argument("--json", type=Path, help="keep the numbers here, and refer to those kept")
    parser.add_argument(
        "--budget", type=float, default=540, help="seconds after which no case is begun"
    )
    parser.add_argument("--embeddings-images", help=".npz with images to measure fp8's AUROC on")
    parser.add_argument("--model", help="the checkpoint for --embeddings-images")
    given = parser.parse_args()
    settings = Settings(
        given.quick, time.time() + given.budget, given.embeddings_images, given.model
    )
    # PyTorch shares the device with JAX in `peers`, which would otherwise reserve three quarters of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    facts = in_fresh_process(machine)
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()), flush=True)
    numbers = read_kept(given.json, facts, given.quick)
    for name in given.only or SECTIONS:
        start = time.perf_counter()
        # `flags` starts processes of its own, which would find the device taken.
        run = (
            SECTIONS[name]
            if name == "flags"
            else functools.partial(in_fresh_process, SECTIONS[name])
        )
        result, reason = attempt(functools.partial(run, settings, numbers["sections"]), settings)
        took = time.perf_counter() - start
        print(f"\n{result.markdown() if result else f'### {name}: {reason}'}", flush=True)
        print(
            f"- `python -m benchmarks.gpu {'--quick ' * given.quick}--only {name}`, {took:.0f} s",
            flush=True,
        )
        numbers["sections"][name] = {
            "took_s": took,
            **(result.data if result else {"reason": reason}),
        }
        if given.json is not None:
            given.json.write_text(json.dumps(numbers, indent=2) + "\n")
