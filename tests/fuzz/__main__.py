"""`python -m fuzz TARGET`; see the package."""

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
from fuzz.targets import NAMES, kept_inputs, target

_SAID_EVERY = 20
"""Seconds."""

_HANGS = 300
"""Seconds by the clock after which an input is taken to hang."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=10_000_000, help="inputs at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["atheris", "mutation"])
    parser.add_argument("--crashes", type=Path, default=Path.cwd(), help="folder for crashes")
    options = parser.parse_args()
    engine = options.engine or ("atheris" if find_spec("atheris") else "mutation")
    {"atheris": _by_coverage, "mutation": _by_mutation}[engine](options)


def _say(name: str, outcomes: Counter, seconds: float) -> None:
    runs = sum(outcomes.values())
    shares = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    print(f"{name}: {runs} inputs in {seconds:.0f} s, {runs / seconds:.0f}/s: {shares}", flush=True)


def _by_mutation(options: argparse.Namespace) -> None:
    reader, rng = target(options.target), random.Random(options.seed)
    seeds = [*reader.seeds, *(file.read_bytes() for file in kept_inputs(options.target))]
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
            print(f"a crash, kept as {file}", file=sys.stderr)
            raise
    _say(options.target, outcomes, time.perf_counter() - start)


def _by_coverage(options: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["bliss_jax"]):
        reader = target(options.target)
        for content in reader.seeds:  # imports what is imported on the way
            reader.outcome(content)
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    said = start

    def read(content: bytes) -> None:
        nonlocal said
        outcomes[reader.outcome(content)] += 1
        now = time.perf_counter()
        # On the way: libFuzzer ends the process by itself.
        if now - said > _SAID_EVERY or outcomes.total() == options.runs:
            said = now
            _say(options.target, outcomes, now - start)

    folder = tempfile.TemporaryDirectory()
    corpus, words = Path(folder.name) / "corpus", Path(folder.name) / "words"
    corpus.mkdir()
    for number, content in enumerate(reader.seeds):
        (corpus / f"seed-{number}").write_bytes(content)
    for file in kept_inputs(options.target):
        (corpus / file.name).write_bytes(file.read_bytes())
    short = [word for word in reader.words if 0 < len(word) <= 64]
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in short))
    flags = {
        "max_total_time": options.seconds,
        "runs": options.runs,
        "seed": options.seed,
        "timeout": _HANGS,
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
