"""Encoders of any kind: the protocol, and the calls that embed images and texts in batches.

An encoder is a `Model` of this library or any object with the attributes of `Encoder`, e.g. a wrapper of a PyTorch
module, an Equinox or NNX module, or a remote service.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, runtime_checkable
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

Image: TypeAlias = UInt8[np.ndarray, "_ _ 3"]
"""RGB pixels of an image of any size."""


@runtime_checkable
class Encoder(Protocol):
    """An image encoder and a text encoder whose embeddings share one space.

    `embed_images`, `embed_texts`, `embed_dataset` and `Detector.fit` accept any object with these attributes.
    The library divides each embedding by its norm, and raises an error for embeddings that have another shape, have
    norm 0 or are not finite. All batches of images have the same length: the last batch is padded with copies of its
    last image, so that compiled encoders see one shape and an image's embedding does not depend on the number of
    images.
    """

    @property
    def name(self) -> str:
        """Name for tables and provenance."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def fingerprint(self) -> str:
        """Text that differs if embeddings differ, e.g. a hash of weights and settings.

        Cached embeddings are used again, and a saved detector accepts the encoder, if the fingerprint is the same.
        """
        ...

    def encode_images(self, images: list[Image], /) -> Any:
        """Returns embeddings [images, embedding_dim], floating, of uint8 RGB images [h, w, 3] of any sizes."""
        ...

    def encode_texts(self, texts: list[str], /) -> Any:
        """Returns embeddings [texts, embedding_dim], floating."""
        ...


if TYPE_CHECKING:
    from bliss_jax.models import Model

    AnyEncoder: TypeAlias = Model | Encoder
    """A `Model` of this library or an encoder of one's own."""
else:  # the class is imported when something is embedded; `is_model` checks the type
    AnyEncoder = Any

_ATTRIBUTES = ("name", "embedding_dim", "fingerprint", "encode_images", "encode_texts")


def is_model(encoder: AnyEncoder) -> "TypeGuard[Model]":
    """Returns whether an encoder is a `Model`, and checks that another one has the attributes of `Encoder`.

    Raises:
        TypeError: An attribute is missing.
        ValueError: `name` or `fingerprint` is empty or not a string, or `embedding_dim` is not a positive integer.
    """
    from bliss_jax.models import Model

    if isinstance(encoder, Model):
        return True
    missing = [name for name in _ATTRIBUTES if not hasattr(encoder, name)]
    if missing:
        raise TypeError(
            "expected an encoder: a Model (see load_model) or an object with the attributes "
            f"{', '.join(_ATTRIBUTES)}; {type(encoder).__name__} has no {', '.join(missing)}"
        )
    for name in ("name", "fingerprint"):
        if not isinstance(text := getattr(encoder, name), str) or not text:
            raise ValueError(f"encoder.{name}: expected a string that is not empty, got {text!r}")
    dim = encoder.embedding_dim
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"encoder.embedding_dim: expected a positive integer, got {dim!r}")
    return False


def encoder_key(encoder: AnyEncoder) -> dict[str, Any]:
    """Returns the part of a cache's key that identifies the encoder."""
    if is_model(encoder):
        return {"weights_sha256": encoder.weights_hash, "config": repr(encoder.config)}
    return encoder_facts(encoder)


def encoder_facts(encoder: AnyEncoder) -> dict[str, Any]:
    """Returns the properties of an encoder that decide an embedding, as JSON values, for the provenance."""
    if is_model(encoder):
        return {
            "name": encoder.name,
            "revision": encoder.revision,
            "weights_sha256": encoder.weights_hash,
            "dtype": encoder.dtype,
        }
    return {"name": encoder.name, "fingerprint": encoder.fingerprint}


def preprocessing_facts(encoder: AnyEncoder, preprocess: str | None) -> Any:
    """Returns the preprocessing of a `Model` as JSON values; None for another encoder, which has its own.

    Raises:
        ValueError: `preprocess` is unknown, or is given for another encoder than a `Model`.
    """
    if is_model(encoder):
        return encoder.preprocessing_with(preprocess).describe()
    if preprocess is not None:
        raise ValueError(
            f"preprocess: {encoder.name} preprocesses images itself, so expected None, got {preprocess!r}"
        )
    return None


def encode_texts(
    encoder: AnyEncoder, texts: Sequence[str], *, truncate: bool = False
) -> Float[np.ndarray, "texts dim"]:
    """Returns unit-norm embeddings of texts.

    Raises:
        ValueError: A text is too long, the embeddings are not as `Encoder` requires, or `truncate` is given for an
            encoder that is not a `Model`.
    """
    if is_model(encoder):
        return np.asarray(encoder.encode_texts(texts, truncate=truncate))
    if truncate:
        raise ValueError(
            f"truncate: {encoder.name} tokenizes texts itself, so expected False, got True"
        )
    return _unit_rows(encoder, "encode_texts", encoder.encode_texts(list(texts)), len(texts))


def resizer(encoder: AnyEncoder) -> Callable[[Image], Image]:
    """Returns the function that resizes an image on the host to the encoder's input size.

    It returns the images of an encoder that is not a `Model` unchanged, because that encoder resizes them.
    """
    if not is_model(encoder):
        return lambda image: image
    from bliss_jax.models import resize_on_host

    return partial(resize_on_host, preprocessing=encoder.preprocessing)


def batch_calls(
    encoder: AnyEncoder, preprocess: str | None, batch_size: int, mesh: Mesh | None = None
) -> "ModelCalls | OwnCalls":
    """Returns the calls that embed batches of images.

    Args:
        encoder: Encoder.
        preprocess: Preprocessing, as for `Model.encode_images`.
        batch_size: Images per call, including the padding.
        mesh: Mesh whose first axis has the devices of a `Model`; all local devices by default.

    Raises:
        ValueError: `preprocess` is unknown, or is given for an encoder that is not a `Model`.
    """
    preprocessing_facts(encoder, preprocess)
    if is_model(encoder):
        mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
        return ModelCalls(encoder, preprocess, batch_size, mesh)
    return OwnCalls(encoder, batch_size)


Map: TypeAlias = Callable[[Callable[[Image], Image], Iterable[Image]], Iterable[Image]]
"""A function like `map`, e.g. that of a pool of threads."""


_REPLICATED: WeakKeyDictionary["Model", tuple[Mesh, "Model"]] = WeakKeyDictionary()
"""Model to the mesh on which it embedded last, and its copy there."""


def _replicated(model: "Model", mesh: Mesh) -> "Model":
    """Returns the model with its parameters on every device of the mesh.

    The copy is kept as long as the model: to place hundreds of arrays takes longer than to embed one small image. On a
    single device the parameters of both are the same.
    """
    kept = _REPLICATED.get(model)
    if kept is None or kept[0] != mesh:
        params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
        kept = _REPLICATED[model] = mesh, replace(model, params=params)
    return kept[1]


class ModelCalls:
    """Calls of a `Model`: batches are arrays on the devices, which preprocess and encode them."""

    def __init__(self, model: "Model", preprocess: str | None, batch_size: int, mesh: Mesh):
        self._model = _replicated(model, mesh)
        self._preprocess, self._batch_size, self._mesh = preprocess, batch_size, mesh
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        self.resize = resizer(model)

    def batch(self, images: Sequence[Image] | UInt8[np.ndarray, "n h w 3"], map: Map = map) -> Any:
        """Returns uint8 [batch_size, h, w, 3] on the devices, of images that are resized if sizes differ."""
        if not isinstance(images, np.ndarray):
            if len({image.shape for image in images}) > 1:
                images = list(map(self.resize, images))
            images = np.stack(images)
        missing = self._batch_size - len(images)
        if missing:
            images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return jax.device_put(images, self._sharding)

    def __call__(self, batch: jax.Array) -> Float[jax.Array, "batch_size dim"]:
        """Returns embeddings. The call is asynchronous."""
        with jax.set_mesh(self._mesh):  # the caller may have set another one
            return self._model.encode_images(batch, self._preprocess)


class OwnCalls:
    """Calls of an encoder that is not a `Model`: batches are lists of images in their original sizes."""

    def __init__(self, encoder: Encoder, batch_size: int):
        self._encoder, self._batch_size = encoder, batch_size
        self.resize = resizer(encoder)

    def batch(self, images: Sequence[Image] | UInt8[np.ndarray, "n h w 3"], map: Map = map) -> Any:
        """Returns a list of `batch_size` images, padded with the last one."""
        images = list(images)
        return images + images[-1:] * (self._batch_size - len(images))

    def __call__(self, batch: list[Image]) -> Float[np.ndarray, "batch_size dim"]:
        """Returns unit-norm embeddings."""
        found = self._encoder.encode_images(batch)
        return _unit_rows(self._encoder, "encode_images", found, len(batch))


def _unit_rows(
    encoder: Encoder, method: str, found: Any, number: int
) -> Float[np.ndarray, "number dim"]:
    """Returns embeddings of norm 1 in float32.

    Raises:
        ValueError: The embeddings have another shape, are not floating or not finite, or have norm 0.
    """
    array = np.asarray(found)
    where = f"{encoder.name}.{method}"
    if array.shape != (number, encoder.embedding_dim) or not jnp.issubdtype(
        array.dtype, np.floating
    ):
        raise ValueError(
            f"{where}: expected floating embeddings [{number}, {encoder.embedding_dim}], got {array.dtype} "
            f"{list(array.shape)}"
        )
    array = array.astype(np.float32)
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(wrong):
        raise ValueError(
            f"{where}: expected finite embeddings with a direction, got {norms[wrong[0], 0]} as the norm of "
            f"embedding {wrong[0]} (one of {len(wrong)})"
        )
    return array / norms
