"""Labelled image data sets with a common interface, and the splits of the benchmarks."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
