"""Grid of k and lambda: BLISS at every pair of values, from one compiled call per protocol.

    python -m experiments.paper.grids
    python -m experiments.paper.grids --embeddings FILE.npz

The table contains AUROC x 100, mean over splits and halves. It shows how the score depends on k and lambda.
The defaults are the paper's values and are not chosen by this table.
"""

from bliss_jax.evaluation import KS, WEIGHTS, grid_studies
from bliss_jax.evaluation.studies import join_repeats
from experiments.common import Options, Stopwatch, by_case, cases, experiment, percent, write


@experiment()
def main(options: Options) -> None:
    """Measure the AUROC of BLISS on a grid of k and lambda."""
    watch, rows, studies = Stopwatch(), [], []
    for case in cases(options):
        for protocol in case.protocols:
            ks = [k for k in KS if k <= len(case.sets[0].dictionary)]
            of_sets = [grid_studies(e, protocol, WEIGHTS, ks) for e in case.sets]
            for k in ks:
                study = join_repeats([grid[k] for grid in of_sets])
                studies.append(study)
                cells = map(percent, study.mean("bliss"))
                rows.append([case.model, case.dataset, protocol.name, str(k), *cells])
    headings = ["protocol", "k", *(f"lambda {w:g}" for w in WEIGHTS)]
    results = {"seconds": str(watch), "studies": [study.to_json() for study in studies]}
    write(options, "grids", by_case(headings, rows, texts=1) + f"\n{watch}\n", results)


if __name__ == "__main__":
    main()
