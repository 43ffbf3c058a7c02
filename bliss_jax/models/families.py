"""The union of all model configurations."""

from typing import TypeAlias

from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.naflex import NaflexConfig
from bliss_jax.models.siglip import SiglipConfig

ModelConfig: TypeAlias = CLIPConfig | SiglipConfig | NaflexConfig
"""A configuration states the sizes of both towers and makes the Flax module; see `CLIPConfig`."""
