"""Few-shot study: 1, 2, 5, 10, 20 and 50 normal images per class, with and without shrinkage.

    python -m experiments.paper.few_shot
    python -m experiments.paper.few_shot --embeddings FILE.npz

The table contains AUROC x 100: the mean over splits, 20 random draws and halves, +- the standard deviation
over draws and halves. A cell is empty if a normal class has fewer images. The last column uses all images.
"""

import numpy as np

from bliss_jax.evaluation import SHOTS, few_shot_study
from bliss_jax.evaluation.studies import join_repeats, parts_study
from experiments.common import Options, Stopwatch, by_case, cases, experiment, percent, write

DRAWS, QUICK_DRAWS = 20, 2
N0 = 20.0


@experiment()
def main(options: Options) -> None:
    """Measure the AUROC of BLISS for several numbers of normal images per class."""
    watch, rows, studies = Stopwatch(), [], []
    for case in cases(options):
        for protocol in case.protocols:
            normal = sorted({c for split in protocol.splits for c in split.normal})
            fewest = min(
                np.bincount(e.train_labels, minlength=e.num_classes)[normal].min()
                for e in case.sets
            )
            shots = [n for n in SHOTS if n <= fewest]
            draws = QUICK_DRAWS if options.quick else DRAWS
            study = join_repeats(
                [few_shot_study(e, protocol, shots, draws=draws, k=case.k, shrinkage=N0)
                 for e in case.sets]
            )  # fmt: skip
            every = join_repeats(
                [parts_study(e, protocol, k=case.k, shrinkage=N0) for e in case.sets]
            )
            studies += [study, every]
            for score in ("bliss", f"bliss, shrinkage {N0:g}"):
                mean, std = 100 * study.mean(score), 100 * study.std(score)
                cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, std, strict=True)]
                cells += [""] * (len(SHOTS) - len(cells))
                cells.append(percent(every.mean(score)[0]))
                rows.append([case.model, case.dataset, protocol.name, score, *cells])
    headings = ["protocol", "score", *(str(n) for n in SHOTS), "all"]
    results = {"seconds": str(watch), "studies": [study.to_json() for study in studies]}
    write(options, "few_shot", by_case(headings, rows, texts=2) + f"\n{watch}\n", results)


if __name__ == "__main__":
    main()
