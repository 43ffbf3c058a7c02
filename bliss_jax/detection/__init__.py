"""The detector that a user keeps: fit, score, threshold, explain, save; files and folders through it."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
