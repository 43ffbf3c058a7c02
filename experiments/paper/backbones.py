"""The backbone study: BLISS and the largest cosine with every registered checkpoint.

    python -m experiments.paper.backbones --dataset cifar10
    python -m experiments.paper.backbones --dataset glyphs --model bliss-jax/tiny --model bliss-jax/untrained

AUROC x 100, mean over the splits of each protocol. A model that is finished is not run again: its embeddings
are kept, so that a run that was stopped goes on where it was.
"""

from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.models import UNTRAINED, model_names
from bliss_jax.models.registry import TINY
from experiments.common import Options, Stopwatch, by_case, cases, experiment, percent, write

SCORES = ("max_cosine", "mcm", "bliss")


@experiment(
    datasets=("cifar10",),
    models=tuple(name for name in model_names() if name not in (TINY, UNTRAINED)),
)
def main(options: Options) -> None:
    """One row per model and protocol."""
    watch, rows, made = Stopwatch(), [], []
    for case in cases(options):
        for protocol in case.protocols:
            settings = Settings(scores=SCORES, k=case.k)
            runs = [evaluate(e, protocol, settings) for e in case.sets]
            made += [dict(run.provenance) for run in runs]
            areas = {row.score: row.auroc for run in runs for row in run.rows}
            means = {s: sum(r.auroc for run in runs for r in run.rows if r.score == s) / len(runs)
                     for s in areas}  # fmt: skip
            cells = (percent(means[score]) for score in SCORES)
            rows.append([case.model, case.dataset, protocol.name, *cells])
    results = {"seconds": str(watch), "rows": rows, "evaluations": made}
    table = by_case(["protocol", *SCORES], rows, texts=1)
    write(options, "backbones", table + f"\n{watch}\n", results)


if __name__ == "__main__":
    main()
