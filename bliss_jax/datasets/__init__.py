"""Images with labels behind one interface, and the splits that benchmarks are made of."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
