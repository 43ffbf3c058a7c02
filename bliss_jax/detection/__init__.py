"""A fitted anomaly detector: fit, score, threshold, explain, save; scoring of files and folders."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
