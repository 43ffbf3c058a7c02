"""Embeds images and texts in batches, on several devices and processes, cached and resumable."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
