"""Cases: where the time of a vision tower goes, by kernel and by kind of layer; and XLA's flags."""

import collections
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu.architectures import architectures, encode, model_batch
from benchmarks.gpu.measuring import Context, clock, first_call
from bliss_jax.models import layers
from bliss_jax.models.clip import CLIPConfig

XLA_FLAGS = {
    "without command buffers": "--xla_gpu_enable_command_buffer=",
}
"""Name to flags. XLA reads flags when it starts, so each set needs a process of its own."""

_CALLS = 3


def profile(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures the device time of each kernel in a vision tower, from a trace of three calls.

    Kernels that differ only by a number at the end of their names are added up.
    """
    model, _, pixels = model_batch(name, context.quick)
    jax.block_until_ready(encode(model.params, model.config, pixels))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS):
                jax.block_until_ready(encode(model.params, model.config, pixels))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        seconds, launches = kernel_seconds(data, jax.default_backend())
    total = sum(seconds.values())
    yield {
        "device_s": total / _CALLS,
        "kernels": sum(launches.values()) / _CALLS,
        "by_kernel": {
            kernel: {"ms": 1e3 * s / _CALLS, "launches": launches[kernel] / _CALLS}
            for kernel, s in seconds.most_common(25)
        },
    }


def kernel_seconds(
    data: Any, platform: str
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Returns seconds and launches by kernel from a profile.

    Args:
        data: A `jax.profiler.ProfileData`.
        platform: "gpu" for the events of the GPU's streams, "cpu" for those of XLA's threads.

    Raises:
        ValueError: If the profile has no such events.
    """
    plane_name, line_name = {"gpu": ("/device:GPU", "Stream")}.get(
        platform, ("/host:CPU", "tf_XLA")
    )
    seconds: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    seen = []
    for plane in data.planes:
        for line in plane.lines:
            seen.append(f"{plane.name} {line.name}")
            if plane.name.startswith(plane_name) and line.name.startswith(line_name):
                for event in line.events:
                    kernel = event.name.rstrip("0123456789_.")
                    seconds[kernel] += event.duration_ns / 1e9
                    launches[kernel] += 1
    if not seconds:
        raise ValueError(
            f"expected events in lines {line_name}* of planes {plane_name}*, found none; lines: "
            + ", ".join(sorted(set(seen)))
        )
    return seconds, launches


class Part(NamedTuple):
    """One kind of layer alone."""

    function: Callable
    arguments: tuple[jax.Array, ...]
    flops: int
    number: int
    """How often the encoder runs it."""


def parts_of(config: CLIPConfig, batch: int) -> dict[str, Part]:
    """Returns the layers of a vision tower, each with inputs in the types that the library uses.

    Activations are float32 between layers, and kernels are bfloat16. The FLOPs are those of the matrix
    products. Norms and activations have no products, so only their bytes count.
    """
    v, dtype = config.vision, config.dtype
    length, d, f, depth = v.num_patches + 1, v.hidden_size, v.intermediate_size, v.num_hidden_layers
    heads, tokens = (
        (batch, length, v.num_attention_heads, d // v.num_attention_heads),
        batch * length,
    )

    def draw(*shape: int, kind: str = "float32") -> jax.Array:
        return jax.random.normal(jax.random.key(0), shape).astype(kind)

    def dense(inputs: int, outputs: int, number: int = depth) -> Part:
        arguments = (draw(batch, length, inputs), draw(inputs, outputs, kind="bfloat16"))
        function = functools.partial(layers.contract, "...i,io->...o", dtype=dtype)
        return Part(lambda x, y: function(x, y), arguments, 2 * tokens * inputs * outputs, number)

    def patches(pixels: jax.Array, kernel: jax.Array) -> jax.Array:
        n, p, grid = len(pixels), v.patch_size, v.image_size // v.patch_size
        cut = pixels[:, : grid * p, : grid * p].reshape(n, grid, p, grid, p, 3)
        cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid**2, p * p * 3)
        return layers.contract("...i,io->...o", cut, kernel, dtype)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return layers.attend(query, key, value, None, dtype)

    def norm(x: jax.Array) -> jax.Array:
        module = layers.layer_norm(v)
        return module.apply({"params": {"scale": jnp.ones(d), "bias": jnp.zeros(d)}}, x)  # pyright: ignore[reportReturnType]

    pixels = (
        draw(batch, v.image_size, v.image_size, 3),
        draw(3 * v.patch_size**2, d, kind="bfloat16"),
    )
    embedding_flops = 2 * batch * v.num_patches * 3 * v.patch_size**2 * d
    return {
        "patch embedding": Part(patches, pixels, embedding_flops, 1),
        "layer norm": Part(norm, (draw(batch, length, d),), 0, 2 * depth + 1),
        "qkv": dense(d, 3 * d),
        "attention": Part(attention, (draw(*heads),) * 3, 4 * batch * length**2 * d, depth),
        "out": dense(d, d),
        "fc1": dense(d, f),
        "activation": Part(layers.ACTIVATIONS[v.hidden_act], (draw(batch, length, f),), 0, depth),
        "fc2": dense(f, d),
    }


def roofline(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures each kind of layer alone; its bytes are those of every input and output once."""
    config, batch = architectures(context.quick)[name]
    for kind, part in parts_of(config, batch).items():
        program = jax.jit(part.function)
        outputs = jax.eval_shape(part.function, *part.arguments)
        size = sum(a.size * a.dtype.itemsize for a in (*part.arguments, outputs))
        timing = clock(lambda p=program, x=part.arguments: p(*x), context.quick)
        yield {
            kind: {
                "seconds": timing.median,
                "flops": part.flops,
                "bytes": size,
                "number": part.number,
            }
        }


def flags(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures a vision tower in a process that was started with other XLA flags."""
    model, _, pixels = model_batch(name, context.quick)
    _, seconds = first_call(lambda: encode(model.params, model.config, pixels))
    yield {"first_call_s": seconds}
    timing = clock(lambda: encode(model.params, model.config, pixels), context.quick)
    yield {"images_per_s": len(pixels) / timing.median}
