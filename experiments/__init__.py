"""Scripts that reproduce the results of the paper and of this library; see `experiments/README.md`."""
