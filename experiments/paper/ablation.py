"""Ablation: the internal class score, the external text score, and both.

    python -m experiments.paper.ablation
    python -m experiments.paper.ablation --embeddings FILE.npz

The table contains AUROC x 100, mean over splits and halves. lambda is 0.5 and the shrinkage is 20 images.
"""

from bliss_jax.evaluation.studies import join_repeats, parts_study
from experiments.common import Options, Stopwatch, by_case, cases, experiment, percent, write

N0 = 20.0


@experiment()
def main(options: Options) -> None:
    """Measure the AUROC of the internal class score, the external text score, and both."""
    watch, rows, studies = Stopwatch(), [], []
    for case in cases(options):
        for protocol in case.protocols:
            of_sets = [parts_study(e, protocol, k=case.k, shrinkage=N0) for e in case.sets]
            study = join_repeats(of_sets)
            studies.append(study)
            areas = (percent(study.mean(score)[0]) for score in study.series)
            rows.append([case.model, case.dataset, protocol.name, *areas])
    headings = ["protocol", *studies[0].series]
    results = {"seconds": str(watch), "studies": [study.to_json() for study in studies]}
    write(options, "ablation", by_case(headings, rows, texts=1) + f"\n{watch}\n", results)


if __name__ == "__main__":
    main()
