"""Evaluation of scores on the splits of a protocol: settings, runner, results and studies."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
