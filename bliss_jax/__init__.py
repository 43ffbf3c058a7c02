"""BLISS in JAX."""
