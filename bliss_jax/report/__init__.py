"""Results for people: tables in the terminal."""

from bliss_jax.report.tables import print_evaluation as print_evaluation
