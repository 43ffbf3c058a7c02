"""Dictionary study: random subsets of several sizes, no labels of the data set, and another lexicon.

    python -m experiments.paper.dictionary
    python -m experiments.paper.dictionary --embeddings FILE.npz

The table contains AUROC x 100 of BLISS: the mean over splits, 20 random subsets and halves, +- the standard
deviation over subsets and halves. The last two columns are the whole dictionary without the labels of the
data set, and the nouns of WordNet. The latter needs a model, so it is empty with --embeddings.
"""

from dataclasses import replace

import numpy as np

from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import Study, dictionary_study
from bliss_jax.evaluation.studies import join_repeats, parts_study
from bliss_jax.text import find_overlap
from experiments.common import Case, Options, Stopwatch, by_case, cases, experiment, percent, write

SIZES = (10, 20, 50, 100, 200, 500, 1000, 1860)
REPEATS, QUICK_REPEATS = 20, 2
LEXICON = "wordnet-nouns"


@experiment()
def main(options: Options) -> None:
    """Measure the AUROC of BLISS with several dictionaries."""
    watch, rows, studies = Stopwatch(), [], []
    for case in cases(options):
        lexicon = _with_lexicon(options, case)
        for protocol in case.protocols:
            total = len(case.sets[0].dictionary)
            sizes = [size for size in SIZES if case.k <= size < total]
            repeats = QUICK_REPEATS if options.quick else REPEATS
            study = join_repeats(
                [dictionary_study(e, protocol, [*sizes, total], repeats=repeats, k=case.k)
                 for e in case.sets]
            )  # fmt: skip
            mean, std = 100 * study.mean("bliss"), 100 * study.std("bliss")
            by_size = {
                int(n): f"{m:.1f} ± {s:.1f}"
                for n, m, s in zip(study.values, mean, std, strict=True)
            }
            others = [_bliss([_without_labels(e) for e in case.sets], protocol, case.k)]
            if lexicon is not None:
                others.append(_bliss(lexicon.sets, protocol, case.k))
            studies += [study, *others]
            cells = [by_size.get(size, "") for size in SIZES]
            whole = f"{percent(study.mean('bliss')[-1])} ({total})"
            cells += [whole, *(percent(other.mean("bliss")[0]) for other in others)]
            cells += [""] * (lexicon is None)
            rows.append([case.model, case.dataset, protocol.name, *cells])
    headings = ["protocol", *map(str, SIZES), "all (texts)", "without labels"]
    results = {"seconds": str(watch), "studies": [study.to_json() for study in studies]}
    table = by_case([*headings, LEXICON], rows, texts=1) + f"\n{watch}\n"
    write(options, "dictionary", table, results)


def _with_lexicon(options: Options, case: Case) -> Case | None:
    if options.embeddings is not None:
        return None
    only = replace(options, models=(case.model,), datasets=(case.dataset,), dictionary=LEXICON)
    return next(iter(cases(only)))


def _without_labels(e: EmbeddingSet) -> EmbeddingSet:
    held = {
        phrase for found in find_overlap(e.dictionary, e.class_names).values() for phrase in found
    }
    kept = np.array([phrase not in held for phrase in e.dictionary])
    return replace(
        e,
        dictionary=tuple(np.array(e.dictionary, object)[kept]),
        dictionary_embeddings=e.dictionary_embeddings[kept],
    )


def _bliss(sets, protocol: Protocol, k: int) -> Study:
    return join_repeats([parts_study(e, protocol, k=k) for e in sets])


if __name__ == "__main__":
    main()
