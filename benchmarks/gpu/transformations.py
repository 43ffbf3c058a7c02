"""Case: the transformations of JAX applied to `encode_image` in bfloat16, as the library computes it on a GPU.

The model is shrunken in every run, because its parameters are constants of the programs. The results are compared
with those of a plain call in float32. A difference is larger than that of the plain bfloat16
call if a transformation changes what is computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.gpu.architectures import random_images, random_model
from benchmarks.gpu.measuring import Context
from bliss_jax.models import Model, encode_image, image_tower
from bliss_jax.models.preprocessing import apply_preprocessing

_IMAGES = 8


def transformations(context: Context) -> Iterator[dict[str, Any]]:
    """Measures the largest difference to float32 of embeddings, and of derivatives, for each transformation.

    Raises:
        RuntimeError: Transformations failed. The message has the reason of each.
    """
    model = random_model("L/14", quick=True)
    config, params = model.config, model.params
    images = random_images(_IMAGES, 32)
    pixels = apply_preprocessing(images, model.preprocessing)
    exact = replace(config, dtype="float32")

    def embed(pixels: jax.Array) -> jax.Array:
        return encode_image(params, config, pixels)

    def total(config: Any, pixels: jax.Array) -> jax.Array:
        weights = jnp.cos(jnp.arange(config.embedding_dim, dtype=jnp.float32))
        return (encode_image(params, config, pixels) @ weights).sum()

    expected = np.asarray(encode_image(params, exact, pixels))
    slope = np.asarray(jax.grad(lambda x: total(exact, x))(pixels))
    along = float((slope.astype(np.float64) ** 2).sum())

    def reverse() -> float:
        found = jax.jit(jax.grad(lambda x: total(config, x)))(pixels)
        return float(np.linalg.norm(np.asarray(found) - slope) / along**0.5)

    def forward() -> float:
        _, found = jax.jvp(lambda x: total(config, x), (pixels,), (jnp.asarray(slope),))
        return abs(float(found) - along) / along

    ways: dict[str, Callable[[], float]] = {
        name: lambda result=result: float(np.abs(np.asarray(result()) - expected).max())
        for name, result in _embeddings(model, images, embed, pixels).items()
    }
    failures = []
    for name, way in {**ways, "grad, relative": reverse, "jvp, relative": forward}.items():
        try:
            yield {name: {"difference": way()}}
        except Exception as error:
            failures.append(f"{name}: {str(error).splitlines()[0][:160]}")
    if failures:
        raise RuntimeError("; ".join(failures))


def _embeddings(
    model: Model, images: np.ndarray, embed: Callable, pixels: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Returns ways to compute the embeddings, by the name of the transformation."""

    def on_mesh(kind: AxisType) -> jax.Array:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            return jax.jit(embed)(jax.device_put(pixels, NamedSharding(mesh, P("data"))))

    def mapped() -> jax.Array:
        with jax.set_mesh(jax.make_mesh((1,), ("data",))):
            given = jax.device_put(pixels, P("data"))
            return jax.jit(jax.shard_map(embed, in_specs=P("data"), out_specs=P("data")))(given)

    def exported() -> jax.Array:
        tower = image_tower(model)
        program = export.export(jax.jit(tower.encode), platforms=["cpu", "cuda"])
        program = program(tower.params, images)
        return export.deserialize(program.serialize()).call(tower.params, images)

    return {
        "eager": lambda: embed(pixels),
        "jit": lambda: jax.jit(embed)(pixels),
        "vmap": lambda: jax.vmap(embed)(pixels.reshape(2, -1, *pixels.shape[1:])).reshape(
            len(pixels), -1
        ),
        "scan": lambda: jax.lax.map(lambda x: embed(x[None])[0], pixels),
        "automatic mesh": lambda: on_mesh(AxisType.Auto),
        "explicit mesh": lambda: on_mesh(AxisType.Explicit),
        "shard_map": mapped,
        "export for CPU and CUDA": exported,
        "on the CPU": lambda: jax.jit(embed)(jax.device_put(pixels, jax.devices("cpu")[0])),
    }
