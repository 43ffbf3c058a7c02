"""The library's attention and products replaced: cuDNN's attention, products in fp8."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from benchmarks.gpu.architectures import (
    architectures,
    best_batch,
    float32_embeddings,
    image_encoder,
    pixels_for,
    stored_in,
    time_encoder,
)
from benchmarks.gpu.measuring import Found, Settings, Sheet, agreement
from benchmarks.measure import Table
from bliss_jax.models import layers
from bliss_jax.models.preprocessing import preprocess
from bliss_jax.models.untrained import untrained_params

_FP8 = jnp.float8_e4m3fn


@contextlib.contextmanager
def patched(**replacements: Callable) -> Iterator[None]:
    """Functions of `bliss_jax.models.layers` replaced for the duration.

    Raises:
        ValueError: `layers` has no function of that name.
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


def attention_by(implementation: Literal["xla", "cudnn"]) -> Callable:
    """`layers.attend` through `jax.nn.dot_product_attention`, in bfloat16: "xla" or "cudnn"."""

    def attend(query, key, value, mask, dtype):
        query, key, value = (x.astype(jnp.bfloat16) for x in (query, key, value))
        mask = None if mask is None else mask[None, None]
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation=implementation
        )
        return mixed.astype(jnp.float32)

    return attend


class Fp8Contract:
    """`layers.contract` with e4m3 operands where the right one is a matrix, that is, weights.

        x y  ~  (x / s_x) (y / s_y) s_x s_y,    s = max |.| / 448

    One scale per tensor; that of the weights is computed in every call like that of the activations, which
    reads the weights once more. Products of activations with activations stay as they are.
    """

    def __init__(self) -> None:
        self.products = 0
        self._otherwise = layers.contract

    def __call__(self, equation: str, x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
        """As `layers.contract`."""
        if y.ndim != 2:
            return self._otherwise(equation, x, y, dtype)
        self.products += 1
        (x, x_scale), (y, y_scale) = quantised(x), quantised(y)
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32) * (x_scale * y_scale)


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tensor x / s in e4m3, and s = max |x| / 448, or 1 where all is zero."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x))
    scale = jnp.where(largest > 0, largest / float(jnp.finfo(_FP8).max), 1.0)
    return (x / scale).astype(_FP8), scale


def variants(settings: Settings, found: Found) -> Table:
    """Attention and products replaced, beside the library as it is."""
    model = "L/14"
    architecture = architectures(settings.quick)[model]
    config, batch = architecture.config, best_batch(found, model, architecture)
    title = f"Variants of {model}, bfloat16, batch {batch}; cosines to float32"
    headings = "variant | images/s | ratio | smallest cosine | the same, centred"
    sheet = Sheet(settings, title, headings)
    params = untrained_params(config)
    few, stored = pixels_for(config, min(64, batch)), stored_in(params, "bfloat16")
    reference = float32_embeddings(config, params, few)
    cudnn, xla = {"attend": attention_by("cudnn")}, {"attend": attention_by("xla")}
    replacements = {
        "as it is": {},
        "attention by jax.nn, XLA": xla,
        "attention by jax.nn, cuDNN": cudnn,
        "products with weights in fp8": {"contract": Fp8Contract()},
        "fp8 and cuDNN": {"contract": Fp8Contract(), **cudnn},
    }
    rates = []
    for variant, functions in replacements.items():

        def run(functions=functions):
            with patched(**functions):
                close = agreement(image_encoder(config)(stored, few), reference)
                if "contract" in functions and not functions["contract"].products:
                    raise ValueError("no product has a matrix as its right operand")
                return time_encoder(config, stored, batch, settings), close

        def cells(measured, variant=variant):
            timing, close = measured
            rates.append(batch / timing.median)
            sheet.data[variant] = {"images_per_s": rates[-1], **close._asdict()}
            ratio = f"{rates[-1] / rates[0]:.2f}"
            return f"{rates[-1]:,.0f}", ratio, f"{close.cosine:.6f}", f"{close.centred:.5f}"

        sheet.add((variant,), run, cells)

    def aurocs() -> dict[str, float]:
        if settings.image_file is None or settings.model is None:
            raise ValueError("no --embeddings-images and --model given; random weights have none")
        sheet.data["auroc"] = auroc_by_precision(settings.image_file, settings.model)
        return sheet.data["auroc"]

    sheet.note(
        "AUROC x 100 of BLISS, mean of one-class on the images given, half to fit, half to test",
        aurocs,
        lambda found: ", ".join(f"{kind} {100 * value:.2f}" for kind, value in found.items()),
    )
    return sheet.table()


def auroc_by_precision(image_file: str, name: str) -> dict[str, float]:
    """Mean AUROC of BLISS over the classes, each alone normal in turn, by precision of the encoder.

    Args:
        image_file: `.npz` with `images` uint8 [n, h, w, 3], `labels` [n], `label_embeddings` [C, d] and
            `dictionary_embeddings` [M, d] of the same model. Even rows are fitted, odd rows scored.
        name: Of a model, or a checkpoint's directory (this needs the whole library installed).

    Raises:
        ValueError: arrays that are missing.
    """
    wanted = ("images", "labels", "label_embeddings", "dictionary_embeddings")
    with np.load(image_file, allow_pickle=False) as file:
        if missing := [key for key in wanted if key not in file.files]:
            raise ValueError(f"{image_file}: expected the arrays {list(wanted)}, missing {missing}")
        images, labels, names, dictionary = (file[key] for key in wanted)
    model = bj.load_model(name)
    classes = len(names)
    results = {}
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
        aurocs = [
            bj.auroc(score(normal=np.arange(classes) == c), labels[1::2] != c)
            for c in range(classes)
        ]
        results[kind] = float(np.mean(aurocs))
    return results
