"""The command `bliss-jax`: parse, call, print.

    exits.py         errors and exit codes
    terminal.py      progress and notes on standard error, tables on standard output
    options.py       options that several commands have
    embedding.py     a data set as embeddings, in one process or several
    evaluation.py    evaluate, embed, demo
    fit.py           fit
    score.py         score
    explain.py       explain, info
    catalogue.py     models, datasets, dictionaries, protocols
    completion.py    completion

Nothing heavy is imported before a command runs, so that --help answers at once. With --distributed, process 0
alone prints and writes; JAX ends a process whose partner died by SIGABRT.
"""

import os

import click

from bliss_jax.cli.catalogue import datasets, dictionaries, models, protocols
from bliss_jax.cli.compilation_cache import use_compilation_cache
from bliss_jax.cli.evaluation import demo, embed, evaluate
from bliss_jax.cli.exits import Group
from bliss_jax.cli.explaining import explain, info
from bliss_jax.cli.fitting import fit
from bliss_jax.cli.scoring import score
from bliss_jax.cli.shell_completion import completion

_EPILOG = """\b
Exit codes:
  0    done
  1    the work could not be done; the message says what was expected
  2    the command line is wrong
  3    done, but some images could not be read; each is listed
  130  interrupted
  141  whoever read the output went away before its end

Example:  bliss-jax demo"""


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_EPILOG,
)
@click.version_option(package_name="bliss-jax")
def main() -> None:
    """Semantic anomaly detection with CLIP and bias-corrected similarity (BLISS).

    Results go to standard output, progress and notes to standard error. --json gives them as JSON, there as
    well; evaluate and demo print tables, and take a FILE for it.
    """
    # transformers would advise to install PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    use_compilation_cache()


_BENCHMARKS = (demo, evaluate, embed)
_DETECTORS = (fit, score, explain, info)
_CATALOGUE = (models, datasets, dictionaries, protocols, completion)
for _command in (*_BENCHMARKS, *_DETECTORS, *_CATALOGUE):
    main.add_command(_command)
