"""Command line of the fuzzer: `python -m fuzz TARGET` (see the docstring of the package)."""

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from fuzz.mutate import mutate
from fuzz.targets import NAMES, corpus_files, target

_REPORT_SECONDS = 20
"""Seconds between two reports of progress."""

_HANG_SECONDS = 300
"""Seconds of wall-clock time after which an input counts as hanging."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60, help="duration")
    parser.add_argument("--runs", type=int, default=10_000_000, help="largest number of inputs")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--engine", choices=["atheris", "mutation"])
    parser.add_argument(
        "--crashes",
        type=Path,
        default=Path.cwd(),
        help="folder for inputs that crash",
    )
    options = parser.parse_args()
    engine = options.engine or ("atheris" if find_spec("atheris") else "mutation")
    {"atheris": _by_coverage, "mutation": _by_mutation}[engine](options)


def _report(name: str, outcomes: Counter, seconds: float) -> None:
    runs = sum(outcomes.values())
    shares = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    print(f"{name}: {runs} inputs in {seconds:.0f} s, {runs / seconds:.0f}/s: {shares}", flush=True)


def _by_mutation(options: argparse.Namespace) -> None:
    reader, rng = target(options.target), random.Random(options.seed)
    seeds = [*reader.seeds, *(file.read_bytes() for file in corpus_files(options.target))]
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    while time.perf_counter() - start < options.seconds and outcomes.total() < options.runs:
        content = mutate(rng, seeds, reader.words)
        try:
            outcomes[reader.outcome(content)] += 1
        except BaseException:
            digest = hashlib.sha256(content).hexdigest()
            file = options.crashes / f"crash-{options.target}-{digest[:16]}"
            file.write_bytes(content)
            print(f"crash: the input was written to {file}", file=sys.stderr)
            raise
    _report(options.target, outcomes, time.perf_counter() - start)


def _by_coverage(options: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["bliss_jax"]):
        reader = target(options.target)
        for content in reader.seeds:  # so that all lazily imported modules are instrumented
            reader.outcome(content)
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    reported = start

    def read(content: bytes) -> None:
        nonlocal reported
        outcomes[reader.outcome(content)] += 1
        now = time.perf_counter()
        # Progress is reported here because libFuzzer ends the process itself.
        if now - reported > _REPORT_SECONDS or outcomes.total() == options.runs:
            reported = now
            _report(options.target, outcomes, now - start)

    folder = tempfile.TemporaryDirectory()
    corpus, words = Path(folder.name) / "corpus", Path(folder.name) / "words"
    corpus.mkdir()
    for number, content in enumerate(reader.seeds):
        (corpus / f"seed-{number}").write_bytes(content)
    for file in corpus_files(options.target):
        (corpus / file.name).write_bytes(file.read_bytes())
    short = [word for word in reader.words if 0 < len(word) <= 64]
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in short))
    flags = {
        "max_total_time": options.seconds,
        "runs": options.runs,
        "seed": options.seed,
        "timeout": _HANG_SECONDS,
        "rss_limit_mb": 4096,
        "max_len": 8192,
        "dict": words,
        "artifact_prefix": f"{options.crashes / f'crash-{options.target}'}-",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    atheris.Setup([sys.argv[0], *(f"-{k}={v}" for k, v in flags.items()), str(corpus)], read)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
