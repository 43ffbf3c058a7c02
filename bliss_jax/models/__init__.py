"""Encoders: images and texts to unit-norm embeddings in one space."""

from bliss_jax.models.model import Model as Model
from bliss_jax.models.model import encode_image as encode_image
from bliss_jax.models.model import encode_text as encode_text
from bliss_jax.models.model import load_model as load_model
from bliss_jax.models.registry import model_names as model_names
