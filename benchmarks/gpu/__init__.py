"""Benchmark of the encoders and scores on an accelerator, compared with the device's limits and with PyTorch.

    python -m benchmarks.gpu --output FOLDER [--budget SECONDS] [--only CASE]... [--quick]
    python -m benchmarks.gpu --tables FOLDER/results.jsonl
    python -m benchmarks.gpu --list       # the cases in their order, with expected seconds
    python -m benchmarks.gpu --floors     # the shortest possible time of each case, per card
    python -m benchmarks.gpu --hlo        # checks of the lowered programs; needs no accelerator

The benchmark runs from the repository's root and needs no installation. It needs jax, flax, jaxtyping and
numpy, and torch and transformers for the comparison. It runs on any backend: `--quick` uses shrunken models
and proves on a CPU that every case runs. README.md beside this file explains the cases and the floors.

The weights are random and have the shapes of the real architectures, because the time does not depend on
their values. Embeddings are compared with float32 embeddings of the same weights. Embeddings under random
weights are all similar, which makes a cosine look better than it is. Therefore the benchmark also reports
the cosine after the mean float32 embedding has been subtracted.
"""
