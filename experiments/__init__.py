"""Scripts that reproduce results with bliss_jax; `experiments/README.md` lists them."""
