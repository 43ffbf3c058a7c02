"""`python -m bliss_jax.cli`: the command `bliss-jax`."""

from bliss_jax.cli import main

if __name__ == "__main__":
    main()
