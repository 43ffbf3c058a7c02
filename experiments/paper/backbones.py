"""Backbone study: BLISS, MCM and the maximum cosine with every registered checkpoint.

    python -m experiments.paper.backbones --dataset cifar10
    python -m experiments.paper.backbones --dataset glyphs --model bliss-jax/tiny --model bliss-jax/untrained

The table contains AUROC x 100, mean over the splits of each protocol. Embeddings are cached, so a run that
was stopped continues with the first model that was not finished.
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
    """Measure the AUROC of BLISS and two baselines with several models."""
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
