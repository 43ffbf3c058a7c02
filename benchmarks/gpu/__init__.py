"""Encoders and scores on an accelerator, beside its own limits and beside PyTorch.

    python -m benchmarks.gpu [--quick] [--only SECTION]... [--json FILE] [--budget SECONDS]

From the repository's root, without installation: needs jax, flax, jaxtyping and numpy, and for the peer
torch and transformers. Runs on any backend; `--quick` takes shrunken models, to prove on a CPU that all of it
runs. What cannot run here is a blank cell with its reason below the table.

Each section runs in a process of its own. With `--json FILE` the numbers are kept after every section, and
later sections refer to those that FILE holds of the same machine (the measured ceiling, the best batch); so
the sections can be spread over several commands. No case is begun after `--budget` seconds.

Weights are random, in the real architectures: time does not depend on them, and embeddings are compared with
their float32 counterparts of the same weights. Embeddings under random weights all lie close together, which
flatters a cosine; so beside it stands the cosine after the mean float32 embedding has been subtracted.
"""
