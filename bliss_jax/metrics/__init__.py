"""Metrics of how well a score separates anomalous from normal images; the anomaly is the positive class."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
