"""Cases: vision towers in which functions of the library are replaced, e.g. products by products in fp8."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from benchmarks.gpu.architectures import encode as usual_encode
from benchmarks.gpu.architectures import image_encoder, model_batch
from benchmarks.gpu.encoders import COMPARED_IMAGES, file_name
from benchmarks.gpu.hlo import compiled_counts
from benchmarks.gpu.measuring import Context, agreement, clock, first_call
from bliss_jax.models import layers, preprocess
from bliss_jax.models.cuda import compiler_options

_FP8 = jnp.float8_e4m3fn

INSIDE = "inside a jitted function"
"""Variant that replaces nothing and is compiled without the library's options, as a part of a user's program is."""


@contextlib.contextmanager
def patched(**replacements: Callable) -> Iterator[None]:
    """Replaces functions of `bliss_jax.models.layers` inside the `with` block.

    Raises:
        ValueError: If `layers` has no function of a given name.
    """
    missing = [name for name in replacements if not hasattr(layers, name)]
    if missing:
        raise ValueError(f"bliss_jax.models.layers has no function {', '.join(missing)} to replace")
    before = {name: getattr(layers, name) for name in replacements}
    try:
        for name, function in replacements.items():
            setattr(layers, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(layers, name, function)


class Fp8Contract:
    """A replacement of `layers.contract` with e4m3 operands if the right operand is a weight matrix.

        x y  ~  (x / s_x) (y / s_y) s_x s_y,    s = max |.| / 448

    Each tensor has one scale. The scale of the weights is computed in every call, like that of the
    activations, which reads the weights once more. The product is written in bfloat16. Products of activations with
    activations are unchanged.
    """

    def __init__(self) -> None:
        self.products = 0
        self._otherwise = layers.contract

    def __call__(self, equation: str, x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
        """Computes the product of `layers.contract`."""
        if y.ndim != 2:
            return self._otherwise(equation, x, y, dtype)
        self.products += 1
        (x, x_scale), (y, y_scale) = quantised(x), quantised(y)
        product = jnp.einsum(equation, x, y, preferred_element_type=jnp.bfloat16)
        return product.astype(jnp.float32) * (x_scale * y_scale)


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the tensor x / s in e4m3 and the scale s = max |x| / 448, or s = 1 if x is zero."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x))
    scale = jnp.where(largest > 0, largest / float(jnp.finfo(_FP8).max), 1.0)
    return (x / scale).astype(_FP8), scale


def by_definition(fast: Callable, definition: Callable, *arrays: jax.Array) -> jax.Array:
    """Replaces `layers.on_cuda`: products are written in float32 on all devices."""
    return definition(*arrays)


def replacements() -> dict[str, dict[str, Callable]]:
    """Returns the functions that each variant replaces. The library has neither of the first three on a CPU."""
    float32_results = {"on_cuda": by_definition}
    xla_attention = {"can_fuse_attention": lambda query, keys: False}
    return {
        "float32 results and XLA's attention": {**float32_results, **xla_attention},
        "float32 results": float32_results,
        "XLA's attention": xla_attention,
        "fp8": {"contract": Fp8Contract()},
        INSIDE: {},
    }


def variant(name: str, kind: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures a vision tower with replaced functions, beside the library as it is.

    The embeddings are compared with PyTorch's in float32 if the case `torch` of the same model ran before,
    and with the library's in bfloat16 otherwise.

    Raises:
        ValueError: If the variant replaces no product.
    """
    model, _, pixels = model_batch(name, context.quick)
    reference = usual_encode(model.params, model.config, pixels)[:COMPARED_IMAGES]
    kept = context.scratch / f"{file_name(name)} float32.npy"
    against = "float32" if kept.exists() else "the library in bfloat16"
    if kept.exists():
        reference = np.load(kept)
    as_it_is = clock(lambda: usual_encode(model.params, model.config, pixels), context.quick).median
    yield {"as_it_is_images_per_s": len(pixels) / as_it_is, "compared_with": against}
    functions = replacements()[kind]
    encode = image_encoder(model.config, None if kind == INSIDE else compiler_options())
    with patched(**functions):
        embeddings, seconds = first_call(lambda: encode(model.params, pixels))
    contract = functions.get("contract")
    if isinstance(contract, Fp8Contract) and not contract.products:
        raise ValueError("fp8: expected products with a matrix as right operand, found none")
    close = agreement(embeddings[:COMPARED_IMAGES], reference)
    yield {"first_call_s": seconds, **close._asdict()}
    timing = clock(lambda: encode(model.params, pixels), context.quick)
    yield {"images_per_s": len(pixels) / timing.median, "ratio": as_it_is / timing.median}
    yield {"hlo": compiled_counts(encode.lower(model.params, pixels).compile().as_text())}


def aurocs(context: Context) -> Iterator[dict[str, Any]]:
    """Measures BLISS's AUROC with real weights, by precision of the encoder.

    Raises:
        ValueError: If `--image-file` and `--model` are not given.
    """
    if context.image_file is None or context.model is None:
        raise ValueError(
            "expected --image-file and --model, because random weights have no meaningful AUROC"
        )
    yield from auroc_by_precision(context.image_file, context.model)


def auroc_by_precision(image_file: str, name: str) -> Iterator[dict[str, float]]:
    """Computes the mean AUROC of BLISS over one-class splits, by precision of the encoder.

    Even rows of the file are used to fit, odd rows to test.

    Args:
        image_file: `.npz` file with `images` uint8 [n, h, w, 3], `labels` [n], `label_embeddings` [C, d]
            and `dictionary_embeddings` [M, d] of the same model.
        name: Name of a model or path of a checkpoint. This needs the whole library installed.

    Raises:
        ValueError: If the file lacks an array.
    """
    wanted = ("images", "labels", "label_embeddings", "dictionary_embeddings")
    with np.load(image_file, allow_pickle=False) as file:
        if missing := [key for key in wanted if key not in file.files]:
            raise ValueError(f"{image_file}: expected the arrays {list(wanted)}, missing {missing}")
        images, labels, names, dictionary = (file[key] for key in wanted)
    model = bj.load_model(name)
    classes = len(names)
    for kind in ("float32", "bfloat16", "fp8"):
        config = dataclasses.replace(
            model.config, dtype="float32" if kind == "float32" else "bfloat16"
        )
        with patched(**({"contract": Fp8Contract()} if kind == "fp8" else {})):
            encode = image_encoder(config)
            size = model.image_size
            parts = (images[i : i + 256] for i in range(0, len(images), 256))
            x = np.concatenate([encode(model.params, preprocess(part, size)) for part in parts])
        moments = bj.fit_moments(x[::2], labels[::2].astype(np.int32), num_classes=classes)
        score = functools.partial(bj.bliss_score, x[1::2], names, dictionary, moments)
        of_splits = [
            bj.auroc(score(normal=np.arange(classes) == c), labels[1::2] != c)
            for c in range(classes)
        ]
        yield {kind: float(np.mean(of_splits))}
