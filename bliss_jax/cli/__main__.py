"""Runs the command `bliss-jax` as `python -m bliss_jax.cli`."""

from bliss_jax.cli import main

if __name__ == "__main__":
    main()
