"""Vision towers against the device's ceiling, layer by layer, and with XLA's command buffers on and off."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu.architectures import (
    architectures,
    best_batch,
    computed_flops,
    float32_embeddings,
    image_encoder,
    pixels_for,
    stored_in,
    time_encoder,
    time_untrained,
    vision_flops,
)
from benchmarks.gpu.measuring import (
    Found,
    Settings,
    Sheet,
    agreement,
    ceiling_of,
    clock,
    cosines,
    share,
)
from benchmarks.measure import Table, in_fresh_process
from bliss_jax.models import layers
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.untrained import untrained_params

XLA_FLAGS = {
    "XLA's default": "",
    "command buffers off": "--xla_gpu_enable_command_buffer=",
    "command buffers on, from one kernel": (
        "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN "
        "--xla_gpu_graph_min_graph_size=1"
    ),
}


def ceiling(settings: Settings, found: Found) -> Table:
    """bfloat16 products with float32 results, at the encoders' shapes and at a large square; a copy."""
    title = "Ceiling: bfloat16 products with float32 results, [m, k] x [k, n]"
    sheet = Sheet(settings, title, "product | m | k | n | ms | TFLOP/s")
    shapes = {"square": (256,) * 3 if settings.quick else (8192,) * 3}
    for name, (config, batches) in architectures(settings.quick).items():
        v = config.vision
        rows = batches[-1] * (v.num_patches + 1)
        shapes[f"{name} qkv"] = (rows, v.hidden_size, 3 * v.hidden_size)
        shapes[f"{name} fc1"] = (rows, v.hidden_size, v.intermediate_size)
        shapes[f"{name} fc2"] = (rows, v.intermediate_size, v.hidden_size)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    rates = []
    for name, (m, k, n) in shapes.items():

        def run(m=m, k=k, n=n):
            x, y = (jax.random.normal(jax.random.key(0), s, jnp.bfloat16) for s in ((m, k), (k, n)))
            return clock(lambda: product(x, y), settings.quick)

        def cells(timing, name=name, flops=2 * m * k * n):
            rates.append(flops / timing.median)
            sheet.data[name] = {"seconds": timing, "flops": rates[-1]}
            return f"{1e3 * timing.median:.3f}", f"{rates[-1] / 1e12:.3g}"

        sheet.add((name, m, k, n), run, cells)
    array = jnp.zeros((1 << 20) if settings.quick else (1 << 28), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    timing = clock(lambda: copy(array), settings.quick)
    bandwidth = 2 * array.nbytes / timing.median
    size = f"{array.nbytes / 1e6:.4g} MB read and as many written"
    sheet.notes.append(f"memory bandwidth {bandwidth / 1e9:.4g} GB/s: {size}")
    sheet.data |= {"best_flops": max(rates, default=None), "bandwidth": bandwidth}
    return sheet.table()


def encoders(settings: Settings, found: Found) -> Table:
    """Images per second of each architecture in bfloat16, at several batches; B/32 in float32 beside it."""
    headings = (
        "model | dtype | batch | GFLOP per image | ms | images/s | TFLOP/s | share of ceiling"
    )
    sheet = Sheet(settings, "Encoders, images on the device", headings)
    for name, (config, batches) in architectures(settings.quick).items():
        params = untrained_params(config)
        stored = stored_in(params, "bfloat16")
        flops, computed = vision_flops(config), computed_flops(config)
        measured: dict[str, Any] = {"flops_per_image": flops, "images_per_s": 0.0, "cases": []}
        cases = [(config, stored, batch) for batch in batches]
        if name == "B/32":
            cases.append((dataclasses.replace(config, dtype="float32"), params, batches[0]))
        for case, given, batch in cases:

            def cells(
                timing, case=case, batch=batch, flops=flops, computed=computed, measured=measured
            ):
                rate = batch / timing.median
                measured["cases"].append(
                    {"dtype": case.dtype, "batch": batch, "images_per_s": rate}
                )
                if case.dtype == "bfloat16" and rate > measured["images_per_s"]:
                    measured |= {"best_batch": batch, "images_per_s": rate}
                speed = (
                    f"{1e3 * timing.median:.3g}",
                    f"{rate:,.0f}",
                    f"{rate * computed / 1e12:.3g}",
                )
                return f"{flops / 1e9:.4g}", *speed, share(rate * computed, ceiling_of(found))

            run = functools.partial(time_encoder, case, given, batch, settings)
            sheet.add((name, case.dtype, batch), run, cells)
        few = pixels_for(config, min(64, batches[0]))

        def compare(config=config, params=params, stored=stored, few=few):
            return agreement(
                image_encoder(config)(stored, few), float32_embeddings(config, params, few)
            )

        close = sheet.note(f"{name}, bfloat16 to float32, {len(few)} images", compare, cosines)
        sheet.data[name] = measured | {"agreement": close}
    sheet.notes.append(
        "GFLOP per image: the architecture's; TFLOP/s and share count what the library computes of them, "
        "that is, of the last layer only what the class token needs"
    )
    return sheet.table()


def flags(settings: Settings, found: Found) -> Table:
    """XLA's command buffers (CUDA graphs) on and off, each in a process of its own: flags bind at start."""
    architecture = architectures(settings.quick)["B/32"]
    title = "Command buffers: B/32, bfloat16, one image and the best batch"
    sheet = Sheet(settings, title, "XLA flags | batch | ms | images/s")
    before = os.environ.get("XLA_FLAGS", "")
    for kind, value in XLA_FLAGS.items():
        for batch in (1, best_batch(found, "B/32", architecture)):

            def cells(timing, kind=kind, batch=batch):
                sheet.data[f"{kind}, {batch}"] = {"seconds": timing.median}
                return f"{1e3 * timing.median:.3g}", f"{batch / timing.median:,.0f}"

            os.environ["XLA_FLAGS"] = f"{before} {value}".strip()
            run = functools.partial(in_fresh_process, time_untrained, "B/32", batch, settings)
            sheet.add((kind, batch), run, cells)
            os.environ["XLA_FLAGS"] = before
        sheet.notes += [f"{kind}: `{value}`"] if value else []
    return sheet.table()


class Part(NamedTuple):
    """One kind of layer alone."""

    function: Callable
    arguments: tuple[jax.Array, ...]
    flops: int
    number: int
    """How often the encoder runs it."""


def parts_of(config: CLIPConfig, batch: int) -> dict[str, Part]:
    """The layers of a vision tower, each with the arrays it reads as the library keeps them.

    Activations are float32 between layers, kernels bfloat16. FLOPs are those of the matrix products; of
    norms and activations, which have none, they are 0 and only the bytes count.
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


def roofline(settings: Settings, found: Found) -> Table:
    """Time of each kind of layer alone, against what FLOPs and bytes allow."""
    name = "L/14"
    architecture = architectures(settings.quick)[name]
    config, batch = architecture.config, best_batch(found, name, architecture)
    peak, bandwidth = ceiling_of(found), found.get("ceiling", {}).get("bandwidth")
    headings = "layer | times | ms | GFLOP | MB | FLOP per byte | TFLOP/s | share of ceiling | share of roof"
    sheet = Sheet(settings, f"Roofline of {name}, bfloat16, batch {batch}", headings)
    total = 0.0
    for kind, part in parts_of(config, batch).items():
        program = jax.jit(part.function)
        outputs = jax.eval_shape(part.function, *part.arguments)
        size = sum(a.size * a.dtype.itemsize for a in (*part.arguments, outputs))

        def cells(timing, kind=kind, part=part, size=size):
            nonlocal total
            seconds, flops = timing.median, part.flops
            total += part.number * seconds
            sheet.data[kind] = {"seconds": seconds, "flops": flops, "bytes": size}
            roof = max(flops / peak, size / bandwidth) if peak and bandwidth else 0.0
            return (
                f"{1e3 * seconds:.3g}", f"{flops / 1e9:.4g}", f"{size / 1e6:.4g}", f"{flops / size:.3g}",
                f"{flops / seconds / 1e12:.3g}", share(flops / seconds, peak), share(roof, seconds),
            )  # fmt: skip

        def run(program=program, given=part.arguments):
            return clock(lambda: program(*given), settings.quick)

        sheet.add((kind, part.number), run, cells)
    whole = sheet.note(
        "the encoder as a whole",
        functools.partial(time_untrained, name, batch, settings),
        lambda timing: (
            f"{1e3 * timing.median:.4g} ms; the parts times their number {1e3 * total:.4g}"
        ),
    )
    sheet.notes.append(
        "bytes: every input and output once; share of roof: the time that FLOPs and bytes allow, "
        "of that taken"
    )
    if not peak:
        sheet.notes.append("shares: nothing to compare with, the section `ceiling` did not run")
    sheet.data |= {"parts_seconds": total, "whole_seconds": whole.median if whole else None}
    return sheet.table()
