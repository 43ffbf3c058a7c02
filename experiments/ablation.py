"""The ablation: the internal class score, the external text score, and both.

    python experiments/ablation.py
    python experiments/ablation.py --embeddings FILE.npz

AUROC x 100, mean over splits and halves; lambda is 0.5, shrinkage is 20 images.
"""

from common import Options, Stopwatch, cases, experiment, markdown, percent, write

from bliss_jax.studies import join_repeats, parts_study

N0 = 20.0


@experiment()
def main(options: Options) -> None:
    """Internal, external, both."""
    watch, rows, studies = Stopwatch(), [], []
    for case in cases(options):
        for protocol in case.protocols:
            of_sets = [parts_study(e, protocol, k=case.k, shrinkage=N0) for e in case.sets]
            study = join_repeats(of_sets)
            studies.append(study)
            areas = (percent(study.mean(score)[0]) for score in study.series)
            rows.append([case.model, case.dataset, protocol.name, *areas])
    headings = ["model", "data set", "protocol", *studies[0].series]
    results = {"seconds": str(watch), "studies": [study.to_json() for study in studies]}
    write(options, "ablation", markdown(headings, rows, texts=3) + f"\n{watch}\n", results)


if __name__ == "__main__":
    main()
