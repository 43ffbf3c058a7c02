"""Anomaly scores as pure functions of embeddings, with one file per score. Higher is more anomalous.

Conventions of all scores:

- Results have the promoted dtype of the arguments, at least float32. float16 and bfloat16 are computed in float32.
- 0 images give a result with 0 rows.
- Eager calls check their arguments and raise ValueError. Under tracing values are not known; an image that is not
  finite then has the score NaN, and other images are not affected.
"""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
