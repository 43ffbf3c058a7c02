"""Encoders in Flax: CLIP and SigLIP towers, checkpoints, tokenizers, preprocessing on the device."""

from bliss_jax import _lazy_exports

__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
