"""Prompt and dictionary chosen from normal images alone, on `glyphs` with bliss-jax/tiny.

    python -m experiments.tuning.texts

For each split, the candidates are pairs of a prompt and a dictionary. The estimate of a pair is the largest AUROC of
the grid of `compare.py` with groups of normal classes left out; the pair of the largest estimate is chosen, and with
it lambda, k and the shrinkage. The table contains the mean AUROC x 100 on the test images of each pair with the
defaults (lambda 0.5, k 10, no shrinkage) and with its own choice of settings, the number of splits that chose the pair,
and, in the last row, the AUROC of the pairs that were chosen.
"""

from dataclasses import replace

import numpy as np

from bliss_jax.datasets import Protocol
from bliss_jax.embedding import EmbeddingSet, embed_prompts
from bliss_jax.evaluation import MODEL
from bliss_jax.models import load_model
from bliss_jax.text import PROMPT, Prompt, describe_prompt, load_dictionary
from experiments.common import Options, Stopwatch, cases, experiment, markdown, write
from experiments.tiny_model.captions import TEMPLATES
from experiments.tuning.compare import (
    DEFAULT,
    KS,
    SHRINKAGES,
    WEIGHTS,
    Index,
    as_grid,
    by_classes,
    evidence_of,
    some_splits,
    test_aurocs,
)

CAPTIONS = tuple(template.replace("{}", "{label}") for template in TEMPLATES)
"""Templates of the captions on which bliss-jax/tiny was trained."""
PROMPTS: tuple[Prompt, ...] = (PROMPT, "{label}", "clip-7", CAPTIONS)
DICTIONARIES = ("unicode-names", "imagenet1k")
SPLITS = 5


@experiment()
def main(options: Options) -> None:
    """Choose prompt and dictionary of glyphs from normal images alone."""
    watch = Stopwatch()
    [case] = cases(options)
    pairs = [(prompt, name) for name in DICTIONARIES for prompt in PROMPTS]
    sets = [with_texts(case.sets[0], *pair) for pair in pairs]
    rows, results = [], {}
    for protocol in case.protocols:
        found = of_protocol(sets, some_splits(protocol, SPLITS))
        results[protocol.name] = found
        best = found["estimates"].argmax(axis=0)
        for place, (prompt, name) in enumerate(pairs):
            chosen = f"{np.sum(best == place)} of {len(best)}"
            values = (found["defaults"][place].mean(), found["tuned"][place].mean())
            what = [protocol.name, name, describe_prompt(prompt)]
            rows.append([*what, *(f"{100 * value:.2f}" for value in values), chosen])
        own = found["tuned"][best, np.arange(len(best))].mean()
        rows.append([protocol.name, "**chosen**", "**chosen**", "", f"{100 * own:.2f}", ""])
    headings = ["protocol", "dictionary", "prompt", "defaults", "tuned", "chosen"]
    table = markdown(headings, rows, texts=3)
    plain = {name: {key: v.tolist() for key, v in f.items()} for name, f in results.items()}
    write(options, "tuning-texts", f"{table}\n{watch}\n", plain)


def with_texts(e: EmbeddingSet, prompt: Prompt, dictionary_name: str) -> EmbeddingSet:
    """Returns the embedding set with the labels in another prompt, and another dictionary."""
    model, dictionary = load_model(MODEL), load_dictionary(dictionary_name)
    return replace(
        e,
        label_embeddings=embed_prompts(model, prompt, e.class_names),
        dictionary=dictionary,
        dictionary_embeddings=embed_prompts(model, prompt, dictionary, allow_repeats=True),
    )


def of_protocol(sets: list[EmbeddingSet], protocol: Protocol) -> dict[str, np.ndarray]:
    """Returns, for each pair and split, the estimate and the AUROCs of the defaults and of the chosen settings."""
    grid = as_grid(WEIGHTS, SHRINKAGES, KS)
    found: dict[str, list[list[float]]] = {"estimates": [], "defaults": [], "tuned": []}
    for e in sets:
        areas = test_aurocs(e, protocol)
        chosen: list[Index] = []
        estimates = []
        for split in protocol.splits:
            evidence = evidence_of(e, np.array(split.normal), grid, seed=0)
            chosen.append(by_classes(evidence, 1))
            assert evidence.aurocs is not None, "no protocol of glyphs has one class"
            estimates.append(float(np.nanmean(evidence.aurocs[(..., *chosen[-1])])))
        found["estimates"].append(estimates)
        found["defaults"].append(areas[(slice(None), *DEFAULT)].tolist())
        found["tuned"].append([float(a[c]) for a, c in zip(areas, chosen, strict=True)])
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
