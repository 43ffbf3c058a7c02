"""The command `bliss-jax`: parses arguments, calls the library, prints results.

    exits.py                errors and exit codes
    terminal.py             progress and notes on standard error, tables on standard output
    options.py              options that several commands share
    embedding.py            a data set as embeddings, in one process or several
    evaluation.py           evaluate, embed, demo
    own_scores.py           functions that `--score MODULE:FUNCTION` names
    demo.py                 the work of demo
    fitting.py              fit
    scoring.py              score
    explaining.py           explain, info
    comparing.py            compare
    exporting.py            export
    catalogue.py            models, datasets, dictionaries, protocols
    shell_completion.py     completion
    compilation_cache.py    JAX's persistent compilation cache

Heavy packages are imported inside the commands, so that --help answers at once. With --distributed, only
process 0 prints and writes. JAX ends a process with SIGABRT if another process of the run dies.
"""

import os

import click

from bliss_jax.cli.catalogue import datasets, dictionaries, models, protocols
from bliss_jax.cli.comparing import compare
from bliss_jax.cli.compilation_cache import use_compilation_cache
from bliss_jax.cli.evaluation import demo, embed, evaluate
from bliss_jax.cli.exits import EXIT_CODES, Group
from bliss_jax.cli.explaining import explain, info
from bliss_jax.cli.exporting import export
from bliss_jax.cli.fitting import fit
from bliss_jax.cli.scoring import score
from bliss_jax.cli.shell_completion import completion


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"\b\n{EXIT_CODES}\nExample:  bliss-jax demo",
)
@click.version_option(package_name="bliss-jax")
def main() -> None:
    """Semantic anomaly detection with CLIP and bias-corrected similarity (BLISS).

    Results go to standard output, progress and notes to standard error. --json prints results as JSON on
    standard output; evaluate, compare and demo print tables and write JSON to the FILE that --json names.
    """
    # Suppresses the advice of transformers to install PyTorch, which this library does not use.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    use_compilation_cache()


_BENCHMARKS = (demo, evaluate, embed)
_DETECTORS = (fit, score, explain, info, compare, export)
_CATALOGUE = (models, datasets, dictionaries, protocols, completion)
for _command in (*_BENCHMARKS, *_DETECTORS, *_CATALOGUE):
    main.add_command(_command)
