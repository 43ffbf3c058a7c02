"""Runs the benchmarks and prints their tables in Markdown.

    python -m benchmarks.run [--quick] [--only NAME]... [--threads N] [--json FILE]

The command runs from the repository's root. Each benchmark runs in a process of its own, with as many threads
for NumPy as for JAX. README.md beside this file describes the benchmarks, the expectations and the results.
"""

import json
import os
import time
from importlib import import_module
from pathlib import Path

import click

from benchmarks.measure import Table, in_fresh_process, machine, set_threads

BENCHMARKS = {
    "encoders": "benchmarks.encoders:encoders",
    "int8": "benchmarks.int8:int8",
    "batches": "benchmarks.encoders:batches",
    "prompts": "benchmarks.encoders:prompts_benchmark",
    "pipeline": "benchmarks.pipeline:throughput",
    "startup": "benchmarks.pipeline:startup",
    "latency": "benchmarks.latency:latency",
    "cifar10": "benchmarks.scores:cifar10",
    "ask": "benchmarks.scores:ask",
    "scale": "benchmarks.scale:scale",
    "sharding": "benchmarks.sharding:sharding",
    "eager": "benchmarks.composition:eager",
    "gradients": "benchmarks.composition:gradients",
    "shards": "benchmarks.composition:shards",
    "maps": "benchmarks.maps:maps",
    "pytorch-ood": "benchmarks.out_of_distribution:pytorch_ood",
}
"""Name to the function that receives `quick` and returns a `Table`."""


def run_benchmark(name: str, quick: bool) -> Table:
    """Runs a benchmark in this process and returns its table."""
    module, function = BENCHMARKS[name].split(":")
    return getattr(import_module(module), function)(quick)


@click.command()
@click.option("--quick", is_flag=True, help="Use smaller sizes and fewer runs; takes minutes.")
@click.option(
    "--only",
    type=click.Choice(list(BENCHMARKS)),
    multiple=True,
    help="Run this benchmark; may be repeated.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Threads to use."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers to this file."
)
def main(quick: bool, only: tuple[str, ...], threads: int, json_file: Path | None) -> None:
    """Measure the library beside its alternatives."""
    set_threads(threads)
    facts = in_fresh_process(machine)
    click.echo("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    numbers = {"machine": facts, "quick": quick, "benchmarks": {}}
    for name in only or BENCHMARKS:
        start = time.perf_counter()
        table = in_fresh_process(run_benchmark, name, quick)
        took = time.perf_counter() - start
        click.echo(f"\n{table.markdown()}")
        click.echo(f"- `{name}` took {took:.0f} s; load, 1 minute: {os.getloadavg()[0]:.2f}")
        numbers["benchmarks"][name] = {"title": table.title, "took_s": took, **table.data}
    if json_file is not None:
        json_file.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
