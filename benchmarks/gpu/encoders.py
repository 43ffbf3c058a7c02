"""Cases: the device's limits, each vision tower on ready pixels, and the library's path from uint8."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gpu.architectures import (
    architectures,
    computed_flops,
    encode,
    model_batch,
    placement,
    random_images,
)
from benchmarks.gpu.hlo import compiled_counts
from benchmarks.gpu.measuring import Context, clock, first_call
from bliss_jax.models import encode_image
from bliss_jax.models.preprocessing import apply_preprocessing

COMPARED_IMAGES = 32
"""Images whose embeddings are compared with PyTorch's."""


def ceiling(context: Context) -> Iterator[dict[str, Any]]:
    """Measures matrix products, memory bandwidth and the transfer from host to device.

    Products are timed on random data at a large square and at the shapes of L/14's MLP, because a product
    of zeros can run faster. The float32 products are those of the scores, at each precision of JAX that
    keeps (almost) float32 accuracy.
    """
    config, batch = architectures(context.quick)["L/14"]
    v = config.vision
    rows = batch * (v.num_patches + 1)
    side, small = (256, 256) if context.quick else (8192, 4096)
    square, fc1 = (side,) * 3, (rows, v.hidden_size, v.intermediate_size)
    cases: dict[str, tuple[tuple[int, ...], Any, Any, Any]] = {
        "bfloat16 square": (square, jnp.bfloat16, jnp.bfloat16, None),
        "bfloat16 square, float32 result": (square, jnp.bfloat16, jnp.float32, None),
        "bfloat16 L/14 fc1": (fc1, jnp.bfloat16, jnp.bfloat16, None),
        "bfloat16 L/14 fc1, float32 result": (fc1, jnp.bfloat16, jnp.float32, None),
        "float32 square": ((small,) * 3, jnp.float32, jnp.float32, lax.Precision.HIGHEST),
    }
    for name, (shape, dtype, result, precision) in cases.items():
        yield {f"flops of {name}": _product_rate(shape, dtype, result, precision, context.quick)}

    array = jnp.zeros((1 << 20) if context.quick else (1 << 28), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    timing = clock(lambda: copy(array), context.quick)
    yield {"bandwidth": 2 * array.nbytes / timing.median}

    on_host = random_images(64 if context.quick else 2048, 224)
    timing = clock(lambda: jax.device_put(on_host), context.quick)
    yield {"host_to_device": on_host.nbytes / timing.median}


def _product_rate(shape, dtype, result, precision, quick: bool) -> float:
    """Returns the rate of [m, k] x [k, n] in operations per second."""
    m, k, n = shape
    product = jax.jit(
        lambda x, y: jnp.matmul(x, y, precision=precision, preferred_element_type=result)
    )
    x, y = (jax.random.normal(jax.random.key(i), s, dtype) for i, s in enumerate(((m, k), (k, n))))
    return 2 * m * k * n / clock(lambda: product(x, y), quick).median


def encoder(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures a vision tower in bfloat16 on pixels that are on the device.

    The embeddings of the first images are kept for the comparison with PyTorch.
    """
    model, _, pixels = model_batch(name, context.quick)
    embeddings, seconds = first_call(lambda: encode(model.params, model.config, pixels))
    yield {"first_call_s": seconds, "batch": len(pixels)}
    np.save(context.scratch / f"{file_name(name)}.npy", embeddings[:COMPARED_IMAGES])
    timing = clock(lambda: encode(model.params, model.config, pixels), context.quick)
    yield {
        "images_per_s": len(pixels) / timing.median,
        "seconds": timing._asdict(),
        "flops_per_image": computed_flops(architectures(context.quick)[name].config),
    }
    text = (
        jax.jit(encode_image, static_argnums=1)
        .lower(model.params, model.config, pixels)
        .compile()
        .as_text()
    )
    yield {"hlo": compiled_counts(text or "")}


def file_name(name: str) -> str:
    """Returns an architecture's name without the slash, for files."""
    return name.replace("/", "-")


def from_uint8(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures `Model.encode_images` on uint8 images on the device, beside the encoder alone.

    The images are 32 x 32, which the library enlarges, and of the model's own size.
    """
    model, own_size, pixels = model_batch(name, context.quick)
    alone = clock(lambda: encode(model.params, model.config, pixels), context.quick).median
    yield {"encoder_images_per_s": len(pixels) / alone}
    small = jax.device_put(random_images(len(pixels), 32), placement()[1])
    preprocess = jax.jit(apply_preprocessing, static_argnums=1)
    for size, images in ((32, small), (model.image_size, own_size)):
        timing = clock(lambda images=images: model.encode_images(images), context.quick)
        resize = clock(lambda images=images: preprocess(images, model.preprocessing), context.quick)
        yield {
            f"images_per_s of {size} x {size}": len(images) / timing.median,
            f"preprocessing_s of {size} x {size}": resize.median,
        }
