"""Anomaly scores as pure functions of embeddings: one file per score, higher is more anomalous."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
