"""The image tower of a model as a pure function of its parameters and uint8 images, without the text tower."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from bliss_jax.models.cuda import portable
from bliss_jax.models.encode import apply_module
from bliss_jax.models.model import Model, to_pixels
from bliss_jax.models.naflex import NaflexPreprocessing
from bliss_jax.models.tensors import flatten

_TEXT = ("text_model", "text_projection")
"""Parameters on which embeddings of images do not depend."""


class ImageTower(NamedTuple):
    """An image tower: its parameters, its function and the shape of its images."""

    params: dict[str, jax.Array]
    """Parameters by name, e.g. `vision_model/embeddings/...`."""
    encode: Callable[[Mapping[str, Any], Any], jax.Array]
    """Pure function of the parameters and of images uint8 [n, *image_shape]. It returns unit-norm float32 embeddings
    [n, dim]. It can be exported for several kinds of devices at once."""
    image_shape: tuple[int, int, int]
    """Shape of an image, as `resize_on_host` returns it."""


def image_tower(model: Model, preprocess: str | None = None) -> ImageTower:
    """Returns the image tower of a model.

    Args:
        model: The model.
        preprocess: Name of the preprocessing statistics, as in `Model.encode_images`.

    Raises:
        ValueError: `preprocess` is unknown.
    """
    config, preprocessing = model.config, model.preprocessing_with(preprocess)

    def encode(params: Mapping[str, Any], images: Any) -> jax.Array:
        tree = traverse_util.unflatten_dict(dict(params), sep="/")
        with portable():
            return apply_module(tree, config, "encode_image", to_pixels(images, preprocessing))

    image_shape = (preprocessing.size, preprocessing.size, 3)
    if isinstance(preprocessing, NaflexPreprocessing):
        image_shape = preprocessing.packed_shape
    params = {name: leaf for name, leaf in model.params.items() if name not in _TEXT}
    return ImageTower(flatten(params), encode, image_shape)
