"""Encoders and scores on an accelerator, beside its own limits and beside PyTorch.

    python -m benchmarks.gpu [--quick] [--only SECTION]... [--json FILE] [--budget SECONDS]

From the repository's root, without installation: needs jax, flax, jaxtyping and numpy, and for the peer torch
and transformers. Runs on any backend; `--quick` takes shrunken models, to prove on a CPU that everything runs.
What cannot run here is a blank cell with its reason below the table.

Each section runs in a process of its own. With `--json FILE` the numbers are kept after every section, and later
sections refer to those that FILE holds of the same machine (the measured ceiling, the best batch); so the
sections can be spread over several commands. No case is begun after `--budget` seconds.

Weights are random, in the real architectures: time does not depend on them, and embeddings are compared with
their float32 counterparts of the same weights. Embeddings under random weights all lie close together, which
flatters a cosine; so beside it stands the cosine after the mean float32 embedding has been subtracted.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bliss_jax as bj
from benchmarks.measure import Table, in_fresh_process
from bliss_jax.models import layers
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.export import to_torch
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.preprocess import preprocess
from bliss_jax.models.untrained import untrained_params
from bliss_jax.models.weights import flatten

Found = dict[str, dict[str, Any]]
"""Section to its numbers: what later sections refer to."""

BLANK = ""
DIM, K, CLASSES = 512, 10, 10
_GROUP = 64
_FP8 = jnp.float8_e4m3fn
_XLA_FLAGS = {
    "XLA's default": "",
    "command buffers off": "--xla_gpu_enable_command_buffer=",
    "command buffers on, from one kernel": (
        "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN "
        "--xla_gpu_graph_min_graph_size=1"
    ),
}


class Settings(NamedTuple):
    """What the command was asked for."""

    quick: bool
    deadline: float
    """Unix time after which no case is begun."""
    image_file: str | None = None
    model: str | None = None

    def spent(self) -> bool:
        """Whether the time budget is used up."""
        return time.time() > self.deadline


# Models -----------------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """One of OpenAI's vision transformers, with the batches at which it is tried."""

    config: CLIPConfig
    batches: tuple[int, ...]


def _architecture(
    width: int, depth: int, patch: int, size: int, batches: tuple[int, ...]
) -> Architecture:
    """Heads of 64 dimensions, MLPs of four widths; text towers as published beside them."""
    text_width = 512 if width == 768 else 768
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = VisionConfig(
        width, 4 * width, depth, width // 64, **shared, image_size=size, patch_size=patch
    )
    text = CLIPTextConfig(
        text_width, 4 * text_width, 12, text_width // 64, **shared,
        vocab_size=49_408, max_position_embeddings=77, eos_token_id=49_407,
    )  # fmt: skip
    return Architecture(CLIPConfig(vision, text, text_width, "bfloat16"), batches)


ARCHITECTURES = {
    "B/32": _architecture(768, 12, 32, 224, (256, 1024, 2048)),
    "B/16": _architecture(768, 12, 16, 224, (256, 1024)),
    "L/14": _architecture(1024, 24, 14, 224, (128, 512)),
    "L/14-336": _architecture(1024, 24, 14, 336, (64, 256)),
}


def architectures(quick: bool) -> dict[str, Architecture]:
    """The four; or B/32 and L/14 shrunk to two layers, width 64 and few patches, under the same names."""
    if not quick:
        return ARCHITECTURES
    small = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    shrunk = {}
    for name in ("B/32", "L/14"):
        config = ARCHITECTURES[name].config
        size = math.isqrt(config.vision.num_patches) // 4 * config.vision.patch_size
        vision = dataclasses.replace(config.vision, **small, image_size=size)
        text = dataclasses.replace(config.text, **small)
        shrunk[name] = Architecture(CLIPConfig(vision, text, 64, config.dtype), (4, 16))
    return shrunk


def vision_flops(config: CLIPConfig) -> int:
    """Floating-point operations of the matrix products that embed one image, two a multiply-add.

    With P patches of p x p pixels, L = P + 1 positions, width d, MLP width f, N layers and embeddings of e:

        2 P (3 p^2) d  +  N (8 L d^2 + 4 L^2 d + 4 L d f)  +  2 d e

    Norms, softmax and activations are not counted: the usual "model FLOPs".
    """
    v = config.vision
    patches, length, d = v.num_patches, v.num_patches + 1, v.hidden_size
    layer = 8 * length * d**2 + 4 * length**2 * d + 4 * length * d * v.intermediate_size
    embedding = 2 * patches * 3 * v.patch_size**2 * d
    return embedding + v.num_hidden_layers * layer + 2 * d * config.projection_dim


def stored_in(params: Any, dtype: str) -> Any:
    """The parameters with every kernel stored in `dtype`, all others left in float32."""

    def convert(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def pixels_for(config: CLIPConfig, batch: int) -> jax.Array:
    """Random images that differ by more than the noise of their pixels: noise of 8 x 8, enlarged."""
    size = config.vision.image_size
    noise = jax.random.normal(jax.random.key(batch), (batch, 8, 8, 3))
    return jax.block_until_ready(jax.image.resize(noise, (batch, size, size, 3), "linear"))


def image_encoder(config: CLIPConfig) -> Callable:
    """A newly jitted `encode_image` of this configuration: traced anew, so that patches of `layers` count."""
    return jax.jit(lambda params, pixels: bj.encode_image(params, config, pixels))


# Measuring --------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Seconds of one call: median, least and most of several samples."""

    median: float
    least: float
    most: float


def clock(
    call: Callable[[], Any], quick: bool, wait: Callable[[Any], Any] = jax.block_until_ready
) -> Timing:
    """Times a call whose result `wait` waits for: two calls of warm-up, then samples of enough calls.

    The calls of one sample are queued and waited for together, as a stream of batches would be, so that
    what a single launch costs on the host is hidden where the device is the slower of the two.
    """
    for _ in range(2):
        start = time.perf_counter()
        wait(call())
        once = time.perf_counter() - start
    calls = max(1, min(200, math.ceil((0.02 if quick else 0.3) / once)))
    samples = []
    for _ in range(3 if quick or once > 0.5 else 5):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        samples.append((time.perf_counter() - start) / calls)
    return Timing(statistics.median(samples), min(samples), max(samples))


def attempt(call: Callable[[], Any], settings: Settings) -> tuple[Any, str | None]:
    """The result and no reason, or None and the reason why there is no result."""
    if settings.spent():
        return None, "not begun: the time budget was used up"
    try:
        return call(), None
    # Whatever a backend raises for what it lacks, memory included, is the content of the blank cell.
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return None, f"{type(error).__name__}: {first[:200]}"


class Agreement(NamedTuple):
    """Cosines of embeddings with their float32 counterparts; the smallest over the images."""

    cosine: float
    centred: float
    """After the mean of the float32 embeddings has been subtracted from both."""


def agreement(embeddings: Any, reference: Any) -> Agreement:
    """How close embeddings [n, d] are to float32 ones of the same inputs."""
    x, y = (np.asarray(a, np.float64) for a in (embeddings, reference))

    def least(a, b):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(((a * b).sum(axis=1) / norms).min())

    return Agreement(least(x, y), least(x - y.mean(axis=0), y - y.mean(axis=0)))


def float32_embeddings(config: CLIPConfig, params: Any, pixels: jax.Array) -> np.ndarray:
    """The reference: the same weights, products in float32 at highest precision."""
    config = dataclasses.replace(config, dtype="float32")
    return np.asarray(image_encoder(config)(params, pixels))


class Sheet:
    """A table that grows: a row for every case, blank with a note where the case could not be measured."""

    def __init__(self, settings: Settings, title: str, headings: str) -> None:
        self.title, self.headings = title, tuple(headings.split(" | "))
        self.rows: list[tuple[str, ...]] = []
        self.notes: list[str] = []
        self.data: dict[str, Any] = {}
        self._settings = settings

    def add(self, names: tuple, run: Callable[[], Any], cells: Callable[[Any], tuple]) -> Any:
        """One row: `names`, then `cells` of the result of `run`, which is returned (None without one)."""
        result, reason = attempt(run, self._settings)
        row = names if reason else (*names, *cells(result))
        blanks = (BLANK,) * (len(self.headings) - len(row))
        self.rows.append(tuple(f"{x:,}" if isinstance(x, int) else str(x) for x in (*row, *blanks)))
        if reason:
            self.notes.append(f"{', '.join(map(str, names))}: {reason}")
        return result

    def note(self, what: str, run: Callable[[], Any], sentence: Callable[[Any], str]) -> Any:
        """One sentence below the table, of the result of `run`."""
        result, reason = attempt(run, self._settings)
        self.notes.append(f"{what}: {reason or sentence(result)}")
        return result

    def table(self) -> Table:
        """What has been measured."""
        return Table(self.title, self.headings, tuple(self.rows), tuple(self.notes), self.data)


def cosines(close: Agreement) -> str:
    """An agreement in words."""
    return f"smallest cosine {close.cosine:.6f}, centred {close.centred:.5f}"


def share(value: float, whole: float | None) -> str:
    """A percentage, or a blank where there is nothing to compare with."""
    return f"{100 * value / whole:.0f} %" if whole else BLANK


def ceiling_of(found: Found) -> float | None:
    """The best measured rate of bfloat16 products, FLOP/s, if that section ran."""
    return found.get("ceiling", {}).get("best_flops")


def best_batch(found: Found, name: str, architecture: Architecture) -> int:
    """The best measured batch of a model; the second that would be tried, if that section did not run."""
    measured = found.get("encoders", {}).get(name, {}).get("best_batch")
    return measured or architecture.batches[min(1, len(architecture.batches) - 1)]


# Sections ---------------------------------------------------------------------------------------


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
        flops = vision_flops(config)
        measured: dict[str, Any] = {"flops_per_image": flops, "images_per_s": 0.0, "cases": []}
        cases = [(config, stored, batch) for batch in batches]
        if name == "B/32":
            cases.append((dataclasses.replace(config, dtype="float32"), params, batches[0]))
        for case, given, batch in cases:

            def cells(timing, case=case, batch=batch, flops=flops, measured=measured):
                rate = batch / timing.median
                measured["cases"].append(
                    {"dtype": case.dtype, "batch": batch, "images_per_s": rate}
                )
                if case.dtype == "bfloat16" and rate > measured["images_per_s"]:
                    measured |= {"best_batch": batch, "images_per_s": rate}
                speed = f"{1e3 * timing.median:.3g}", f"{rate:,.0f}", f"{rate * flops / 1e12:.3g}"
                return f"{flops / 1e9:.4g}", *speed, share(rate * flops, ceiling_of(found))

            run = functools.partial(time_encoder, case, given, batch, settings)
            sheet.add((name, case.dtype, batch), run, cells)
        few = pixels_for(config, min(64, batches[0]))

        def compare(config=config, params=params, stored=stored, few=few):
            return agreement(
                image_encoder(config)(stored, few), float32_embeddings(config, params, few)
            )

        close = sheet.note(f"{name}, bfloat16 to float32, {len(few)} images", compare, cosines)
        sheet.data[name] = measured | {"agreement": close}
    return sheet.table()


def time_encoder(config: CLIPConfig, params: Any, batch: int, settings: Settings) -> Timing:
    """Times one batch of images that are on the device."""
    encode, pixels = image_encoder(config), pixels_for(config, batch)
    return clock(lambda: encode(params, pixels), settings.quick)


def peers(settings: Settings, found: Found) -> Table:
    """PyTorch's vision tower (transformers) with the same weights on the same device, in turn with ours."""
    headings = "model | batch | PyTorch | bliss_jax, images/s | PyTorch, images/s | ratio"
    sheet = Sheet(settings, "Beside PyTorch's CLIP, both in bfloat16", headings)
    models = architectures(settings.quick)
    for name in ("B/32",) if settings.quick else models:
        batch = best_batch(found, name, models[name])
        peer = sheet.note(
            f"{name}, bliss_jax and eager PyTorch, both in float32",
            functools.partial(Peer, models[name].config, batch, settings),
            lambda peer: f"smallest cosine {peer.cosine:.6f}",
        )
        for mode in ("eager", "default", "max-autotune") if peer else ():

            def cells(pair, name=name, mode=mode, batch=batch):
                ours, theirs = (batch / timing.median for timing in pair)
                sheet.data[f"{name}, {mode}"] = {"bliss_jax": ours, "pytorch": theirs}
                return f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"

            kind = mode if mode == "eager" else f"torch.compile, {mode}"
            sheet.add((name, batch, kind), functools.partial(peer.run, mode), cells)
    return sheet.table()


class Peer:
    """Both encoders of one architecture, with the same weights and the same batch of images.

    Raises:
        ValueError: torch cannot use JAX's device, or the embeddings do not agree.
    """

    def __init__(self, config: CLIPConfig, batch: int, settings: Settings) -> None:
        import torch

        self._torch, self._quick, self._device = torch, settings.quick, torch_device(torch)
        params, self._pixels = untrained_params(config), pixels_for(config, batch)
        tower = torch_tower(config, params, self._device)
        given = torch.tensor(np.asarray(self._pixels).transpose(0, 3, 1, 2), device=self._device)
        few = min(32, batch)
        with torch.inference_mode():
            theirs = tower(pixel_values=given[:few]).image_embeds.cpu().numpy()
        self.cosine = agreement(
            theirs, float32_embeddings(config, params, self._pixels[:few])
        ).cosine
        if not self.cosine > 0.999:
            raise ValueError(f"PyTorch's embeddings differ: smallest cosine {self.cosine:.5f}")
        self._tower, self._given = tower.to(torch.bfloat16), given.to(torch.bfloat16)
        self._encode, self._params = image_encoder(config), stored_in(params, "bfloat16")

    def run(self, mode: str) -> tuple[Timing, Timing]:
        """Ours and theirs: "eager", or a mode of `torch.compile`."""
        ours = clock(lambda: self._encode(self._params, self._pixels), self._quick)
        tower = self._tower if mode == "eager" else self._torch.compile(self._tower, mode=mode)

        def wait(result: Any) -> None:
            if self._device == "cuda":
                self._torch.cuda.synchronize()

        with self._torch.inference_mode():
            call = functools.partial(tower, pixel_values=self._given)
            return ours, clock(call, self._quick, wait)


def torch_device(torch: Any) -> str:
    """The device of torch that is JAX's.

    Raises:
        ValueError: JAX runs on a device that this torch cannot use.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"JAX runs on {jax.default_backend()}, but torch {torch.__version__} has no CUDA"
        )
    return "cuda"


def torch_tower(config: CLIPConfig, params: Any, device: str) -> Any:
    """`CLIPVisionModelWithProjection`, the vision tower of transformers' CLIPModel, with these weights."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        **dataclasses.asdict(config.vision), projection_dim=config.projection_dim
    )
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(vision)
    state = dict(to_torch(path, np.asarray(leaf)) for path, leaf in flatten(params).items())
    wanted = {name for name, _ in tower.named_parameters()}
    state = {name: torch.tensor(np.ascontiguousarray(state[name])) for name in wanted}
    tower = tower.to_empty(device="cpu")
    tower.load_state_dict(state, strict=False)
    # Buffers are no parameters: the positions that `to_empty` left unset.
    positions = tower.vision_model.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[-1])[None])
    return tower.to(device).eval()


# Variants ---------------------------------------------------------------------------------------


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


def attention_by(implementation: str) -> Callable:
    """`layers.attend` through `jax.nn.dot_product_attention`, in bfloat16: "xla" or "cudnn"."""

    def attend(query, key, value, mask, dtype):
        operands = (x.astype(jnp.bfloat16) for x in (query, key, value))
        mask = None if mask is None else mask[None, None]
        mixed = jax.nn.dot_product_attention(*operands, mask=mask, implementation=implementation)
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


def flags(settings: Settings, found: Found) -> Table:
    """XLA's command buffers (CUDA graphs) on and off, each in a process of its own: flags bind at start."""
    architecture = architectures(settings.quick)["B/32"]
    title = "Command buffers: B/32, bfloat16, one image and the best batch"
    sheet = Sheet(settings, title, "XLA flags | batch | ms | images/s")
    before = os.environ.get("XLA_FLAGS", "")
    for kind, value in _XLA_FLAGS.items():
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


def time_untrained(name: str, batch: int, settings: Settings) -> Timing:
    """Times one batch of an architecture with weights of its own."""
    config = architectures(settings.quick)[name].config
    return time_encoder(config, stored_in(untrained_params(config), "bfloat16"), batch, settings)


# Roofline ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """One kind of layer alone."""

    function: Callable
    arguments: tuple[jax.Array, ...]
    flops: int
    count: int
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

    def dense(inputs: int, outputs: int, count: int = depth) -> Part:
        arguments = (draw(batch, length, inputs), draw(inputs, outputs, kind="bfloat16"))
        function = functools.partial(layers.contract, "...i,io->...o", dtype=dtype)
        return Part(lambda x, y: function(x, y), arguments, 2 * tokens * inputs * outputs, count)

    def patches(pixels: jax.Array, kernel: jax.Array) -> jax.Array:
        n, p, grid = len(pixels), v.patch_size, v.image_size // v.patch_size
        cut = pixels[:, : grid * p, : grid * p].reshape(n, grid, p, grid, p, 3)
        cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid**2, p * p * 3)
        return layers.contract("...i,io->...o", cut, kernel, dtype)

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
        "attention": Part(_attention(dtype), (draw(*heads),) * 3, 4 * batch * length**2 * d, depth),
        "out": dense(d, d),
        "fc1": dense(d, f),
        "activation": Part(layers.ACTIVATIONS[v.hidden_act], (draw(batch, length, f),), 0, depth),
        "fc2": dense(f, d),
    }


def _attention(dtype: Any) -> Callable:
    """The library's attention alone, or its equation where it is not a function of its own."""
    if hasattr(layers, "attend"):
        return lambda q, k, v: layers.attend(q, k, v, None, dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def attend(query, key, value):
        logits = layers.contract("nqhd,nkhd->nhqk", query, key, dtype) * query.shape[-1] ** -0.5
        return layers.contract("nhqk,nkhd->nqhd", jax.nn.softmax(logits, axis=-1), value, dtype)

    return attend


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
            total += part.count * seconds
            sheet.data[kind] = {"seconds": seconds, "flops": flops, "bytes": size}
            roof = max(flops / peak, size / bandwidth) if peak and bandwidth else 0.0
            return (
                f"{1e3 * seconds:.3g}", f"{flops / 1e9:.4g}", f"{size / 1e6:.4g}", f"{flops / size:.3g}",
                f"{flops / seconds / 1e12:.3g}", share(flops / seconds, peak), share(roof, seconds),
            )  # fmt: skip

        def run(program=program, given=part.arguments):
            return clock(lambda: program(*given), settings.quick)

        sheet.add((kind, part.count), run, cells)
    whole = sheet.note(
        "the encoder as a whole",
        functools.partial(time_untrained, name, batch, settings),
        lambda timing: (
            f"{1e3 * timing.median:.4g} ms; the parts times their number {1e3 * total:.4g}"
        ),
    )
    sheet.notes.append(
        "bytes: every input and output once; share of roof: the time that FLOPs and bytes allow, of that taken"
    )
    if not peak:
        sheet.notes.append("shares: nothing to compare with, the section `ceiling` did not run")
    sheet.data |= {"parts_seconds": total, "whole_seconds": whole.median if whole else None}
    return sheet.table()


# Text -------------------------------------------------------------------------------------------


def prompt_tokens(number: int, config: CLIPConfig) -> np.ndarray:
    """Random token ids [number, context]: start, about eight words, end, then the end token as padding."""
    rng = np.random.default_rng(0)
    text = config.text
    lengths = np.clip(
        rng.normal(10, 2, number).round().astype(int), 6, text.max_position_embeddings
    )
    tokens = rng.integers(1, text.vocab_size - 2, (number, text.max_position_embeddings))
    tokens[:, 0] = text.vocab_size - 2
    tokens[np.arange(tokens.shape[1]) >= lengths[:, None] - 1] = text.eos_token_id
    return tokens.astype(np.int32)


def buckets(tokens: np.ndarray, end: int, step: int) -> list[np.ndarray]:
    """Rows by length up to the end token, in multiples of `step`, each group cut to its length."""
    lengths = (tokens == end).argmax(axis=1) + 1
    rounded = np.minimum(-(-lengths // step) * step, tokens.shape[1])
    return [tokens[rounded == length][:, :length] for length in np.unique(rounded)]


def texts(settings: Settings, found: Found) -> Table:
    """1,860 prompts at 77 tokens, at the longest prompt's length, and by length."""
    number = 64 if settings.quick else 1860
    headings = "model | tokens per prompt | shapes compiled | ms | prompts/s | ratio to 77"
    sheet = Sheet(settings, f"Text tower, {number:,} prompts, bfloat16", headings)
    for name in ("B/32", "L/14"):
        config = architectures(settings.quick)[name].config
        params, end = stored_in(untrained_params(config), "bfloat16"), config.text.eos_token_id
        tokens = prompt_tokens(number, config)
        longest = int((tokens == end).argmax(axis=1).max()) + 1
        encode = jax.jit(lambda params, tokens, c=config: bj.encode_text(params, c, tokens))
        cuts = {
            "77": [tokens],
            f"longest prompt, {longest}": [tokens[:, :longest]],
            "by length, in steps of 4": buckets(tokens, end, 4),
        }
        taken = []
        for kind, groups in cuts.items():

            def run(encode=encode, params=params, groups=groups):
                given = [jnp.asarray(group) for group in groups]
                return clock(lambda: [encode(params, group) for group in given], settings.quick)

            def cells(timing, name=name, kind=kind, taken=taken):
                taken.append(timing.median)
                sheet.data[f"{name}, {kind}"] = {"seconds": timing.median}
                rate = f"{number / timing.median:,.0f}"
                return f"{1e3 * timing.median:.4g}", rate, f"{taken[0] / timing.median:.2f}"

            sheet.add((name, kind, len(groups)), run, cells)

        def compare(encode=encode, params=params, tokens=tokens, longest=longest):
            return agreement(encode(params, tokens[:, :longest]), encode(params, tokens))

        sheet.note(f"{name}, cut against 77 tokens", compare, cosines)
    return sheet.table()


# Scores -----------------------------------------------------------------------------------------


def select_sort(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row by sorting it whole."""
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
    values, order = lax.sort((-x, index), dimension=1, num_keys=1, is_stable=True)
    return -values[:, :k], order[:, :k]


def select_groups(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row in two stages, exactly: they lie in the k groups of the largest maxima."""
    n, width = x.shape
    if width % _GROUP or width < 2 * k * _GROUP:
        return lax.top_k(x, k)  # pyright: ignore[reportReturnType]
    grouped = x.reshape(n, width // _GROUP, _GROUP)
    _, group = lax.top_k(grouped.max(axis=2), k)
    candidates = jnp.take_along_axis(grouped, group[:, :, None], axis=1).reshape(n, k * _GROUP)
    values, place = lax.top_k(candidates, k)
    chosen = jnp.take_along_axis(group, place // _GROUP, axis=1)
    return values, chosen * _GROUP + place % _GROUP


SELECTORS: dict[str, Callable[[jax.Array, int], Any]] = {
    "lax.top_k": lax.top_k,
    "sort": select_sort,
    "two stages": select_groups,
    "lax.approx_max_k": functools.partial(lax.approx_max_k, recall_target=0.95),
}


def nearest(
    select: Callable, images: jax.Array, dictionary: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """The K nearest texts of each image: `select` on every chunk, then the best of all chunks."""

    def step(best, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        values, index = select(_similarity(images, some), K)
        values = jnp.concatenate([best[0], values], axis=1)
        index = jnp.concatenate([best[1], index.astype(jnp.int32) + start], axis=1)
        values, place = lax.top_k(values, K)
        return values, jnp.take_along_axis(index, place, axis=1)

    start = jnp.full((len(images), K), -jnp.inf), jnp.zeros((len(images), K), jnp.int32)
    return _fold(step, start, len(dictionary), chunk)


def product_alone(images: jax.Array, dictionary: jax.Array, chunk: int) -> jax.Array:
    """The similarities of every chunk of texts, of which all but one column each is thrown away."""

    def step(total, start, size):
        some = lax.dynamic_slice_in_dim(dictionary, start, size)
        # Without the barrier XLA would compute the one column alone.
        return total + lax.optimization_barrier(_similarity(images, some))[:, 0]

    return _fold(step, jnp.zeros(len(images)), len(dictionary), chunk)


def _similarity(images: jax.Array, some: jax.Array) -> jax.Array:
    return jnp.matmul(images, some.T, precision=lax.Precision.HIGHEST)


def _fold(step: Callable, carry: Any, length: int, chunk: int) -> Any:
    full, rest = divmod(length, chunk)
    starts = jnp.arange(full, dtype=jnp.int32) * chunk
    carry, _ = lax.scan(lambda c, start: (step(c, start, chunk), None), carry, starts)
    # A rest smaller than K would leave nothing to select; it is taken from the texts before it.
    return step(carry, jnp.int32(full * chunk), rest) if rest >= K else carry


def scores(settings: Settings, found: Found) -> Table:
    """Top-k by several means, and the whole score, beside the similarity product alone."""
    n = 64 if settings.quick else 10_000
    sizes: dict[int, tuple[int, ...]] = {1_860: (1_860,), 80_000: (4_096, 16_384, 40_000)}
    sizes[1_000_000] = (4_096, 16_384, 65_536)
    if settings.quick:
        sizes = {2_000: (512,), 4_000: (2_560,)}
    headings = "texts | chunk | what | ms | ratio to product | recall"
    sheet = Sheet(settings, f"Scores of {n:,} images", headings)
    images, labels = _unit(0, n), _unit(3, CLASSES)
    classes = jnp.arange(50 * CLASSES, dtype=jnp.int32) % CLASSES
    moments = bj.fit_moments(_unit(1, 50 * CLASSES), classes, num_classes=CLASSES)
    for number, chunks in sizes.items():
        dictionary = _unit(2, number)
        exact: list[np.ndarray] = []
        for chunk in chunks:

            def whole(images, dictionary, chunk=chunk):
                return bj.bliss_score(images, labels, dictionary, moments, K, chunk_size=chunk)

            programs = {"product alone": functools.partial(product_alone, chunk=chunk)}
            for kind, select in SELECTORS.items():
                # A sort gains nothing from other chunks, and takes longest.
                if kind != "sort" or chunk == chunks[0]:
                    programs[kind] = functools.partial(nearest, select, chunk=chunk)
            programs["bliss_score"] = whole
            alone = []
            for kind, function in programs.items():

                def run(function=function, dictionary=dictionary):
                    program = jax.jit(function)
                    timing = clock(lambda: program(images, dictionary), settings.quick)
                    return timing, program(images, dictionary)

                def cells(
                    measured, kind=kind, number=number, chunk=chunk, exact=exact, alone=alone
                ):
                    timing, result = measured
                    seconds, recall = timing.median, BLANK
                    if kind == "product alone":
                        alone.append(seconds)
                    if kind in SELECTORS:
                        exact.append(np.asarray(result[1]))
                        recall = f"{recall_of(exact[-1], exact[0]):.5f}"
                    sheet.data[f"{number}, {chunk}, {kind}"] = {
                        "texts": number, "chunk": chunk, "what": kind, "seconds": seconds,
                        "recall": recall, "images_per_s": n / seconds,
                    }  # fmt: skip
                    return (
                        f"{1e3 * seconds:.4g}",
                        f"{seconds / alone[0]:.2f}" if alone else BLANK,
                        recall,
                    )

                sheet.add((number, chunk, kind), run, cells)
    sheet.notes.append(
        f"{DIM} dimensions, k = {K}, {CLASSES} classes, float32 at highest precision, fit not included; "
        "recall against the first `lax.top_k` of as many texts"
    )
    return sheet.table()


def _unit(seed: int, n: int) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (n, DIM)).at[:, 0].add(DIM**0.5)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def recall_of(index: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact texts that are among those found, over all images."""
    return float((index[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def stream(settings: Settings, found: Found) -> Table:
    """Images from the host as uint8 32 x 32, resized and encoded on the device, two batches in flight."""
    architecture = architectures(settings.quick)["B/32"]
    config, batch = architecture.config, best_batch(found, "B/32", architecture)
    number = 1024 if settings.quick else 1_000_000
    number -= number % batch
    stored = stored_in(untrained_params(config), "bfloat16")
    size = config.vision.image_size
    # One pool over and over, larger than the host's caches.
    pool = np.random.default_rng(0).integers(0, 256, (min(number, 64 * batch), 32, 32, 3), np.uint8)
    program = jax.jit(
        lambda params, images: bj.encode_image(params, config, preprocess(images, size))
    )
    on_device = jax.device_put(pool[:batch])
    alone = clock(lambda: program(stored, on_device), settings.quick).median
    encoder = time_encoder(config, stored, batch, settings).median
    started, sending, waiting, done, pending = time.perf_counter(), 0.0, 0.0, 0, []
    while done < number and not settings.spent():
        place = done % len(pool)
        before = time.perf_counter()
        pending.append(program(stored, jax.device_put(pool[place : place + batch])))
        sending += time.perf_counter() - before
        done += batch
        if len(pending) > 2:
            before = time.perf_counter()
            np.asarray(pending.pop(0))
            waiting += time.perf_counter() - before
    for embeddings in pending:
        np.asarray(embeddings)
    total = time.perf_counter() - started
    idle = total - done / batch * alone
    title, headings = "Stream from the host, B/32, bfloat16", "what | images/s | share of encoder"
    sheet = Sheet(settings, title, headings)
    rates = {
        "encoder alone, pixels on the device": batch / encoder,
        "resize and encode, uint8 on the device": batch / alone,
        "uint8 on the host to embeddings on the host": done / total,
    }
    for what, rate in rates.items():
        sheet.add(
            (what,),
            lambda rate=rate: rate,
            lambda rate: (f"{rate:,.0f}", f"{rate * encoder / batch:.2f}"),
        )
    sheet.notes += [
        f"{done:,} images of 32 x 32 in batches of {batch}, {total:.3g} s; the device waited {idle:.3g} s "
        "of them: the total less batches times resize and encode alone",
        f"the host took {sending:.3g} s to send and launch, and waited {waiting:.3g} s for results",
    ]
    sheet.data |= rates | {"images": done, "seconds": total, "device_waited_s": idle}
    sheet.data |= {"host_sending_s": sending, "host_waited_s": waiting, "batch": batch}
    return sheet.table()


# The command ------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Settings, Found], Table]] = {
    "ceiling": ceiling, "encoders": encoders, "scores": scores, "variants": variants, "roofline": roofline,
    "texts": texts, "stream": stream, "flags": flags, "peers": peers,
}  # fmt: skip
"""In this order: what others refer to first, the peer, which compiles longest, last."""


def machine() -> dict[str, str]:
    """Device and versions."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
    return {
        "device": f"{device.device_kind} ({device.platform}), {jax.device_count()} of them",
        "host CPUs": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
    }


def _read(path: Path | None, facts: dict[str, str], quick: bool) -> dict[str, Any]:
    """The numbers of earlier sections, of the same machine and mode."""
    fresh = {"machine": facts, "quick": quick, "sections": {}}
    if path is None or not path.exists():
        return fresh
    kept = json.loads(path.read_text())
    if (kept.get("machine"), kept.get("quick")) != (facts, quick):
        raise ValueError(f"{path}: holds numbers of another machine or mode: {kept.get('machine')}")
    return kept


def main() -> None:
    """Runs the sections, prints their tables and keeps their numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Speed on an accelerator."
    )
    parser.add_argument(
        "--quick", action="store_true", help="shrunken models, a few seconds a section"
    )
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated")
    parser.add_argument("--json", type=Path, help="keep the numbers here, and refer to those kept")
    parser.add_argument(
        "--budget", type=float, default=540, help="seconds after which no case is begun"
    )
    parser.add_argument("--embeddings-images", help=".npz with images to measure fp8's AUROC on")
    parser.add_argument("--model", help="the checkpoint for --embeddings-images")
    given = parser.parse_args()
    settings = Settings(
        given.quick, time.time() + given.budget, given.embeddings_images, given.model
    )
    # PyTorch shares the device with JAX in `peers`, which would otherwise reserve three quarters of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    facts = in_fresh_process(machine)
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()), flush=True)
    numbers = _read(given.json, facts, given.quick)
    for name in given.only or SECTIONS:
        start = time.perf_counter()
        # `flags` starts processes of its own, which would find the device taken.
        run = (
            SECTIONS[name]
            if name == "flags"
            else functools.partial(in_fresh_process, SECTIONS[name])
        )
        result, reason = attempt(functools.partial(run, settings, numbers["sections"]), settings)
        took = time.perf_counter() - start
        print(f"\n{result.markdown() if result else f'### {name}: {reason}'}", flush=True)
        print(
            f"- `python -m benchmarks.gpu {'--quick ' * given.quick}--only {name}`, {took:.0f} s",
            flush=True,
        )
        numbers["sections"][name] = {
            "took_s": took,
            **(result.data if result else {"reason": reason}),
        }
        if given.json is not None:
            given.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
