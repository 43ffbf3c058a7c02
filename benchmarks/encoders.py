"""The encoders beside their alternatives, with the same random weights, inputs and batch, in turn.

The alternatives are transformers' PyTorch `CLIPModel`, eager and through `torch.compile`, in float32 and
bfloat16; `FlaxCLIPModel` under jit if transformers has it (4.57); and open_clip, OpenVINO and ONNX Runtime if they are
installed. An alternative that cannot be imported is missing from the table, and a note says so. The embeddings of each
contender are compared with the library's float32 embeddings before it is timed.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from benchmarks.gpu.architectures import ARCHITECTURES, computed_flops
from benchmarks.gpu.measuring import agreement
from benchmarks.measure import Table, compiled, cpus, median, repeat, seconds, spread
from benchmarks.runtimes import RUNTIMES, image_runtimes
from bliss_jax.models import Model, Preprocessing, encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.export import save_checkpoint
from bliss_jax.models.layers import Dtype
from bliss_jax.models.model import ModelConfig, text_batch_size
from bliss_jax.models.text_batches import shared_prefix, text_batches
from bliss_jax.models.tokenize import Tokenizer
from bliss_jax.models.untrained import untrained_params
from bliss_jax.models.weights import Params, load_params

CONTEXT, START, END, VOCABULARY = 77, 49406, 49407, 49408
PROMPT = (START, 589, 533, 320, 1125, 539, 320)
"""The start token and the ids of "This is a photo of a" in OpenAI's vocabulary."""
PROMPT_LENGTHS = {9: 435, 10: 944, 11: 261, 12: 99, 13: 54, 14: 38, 15: 21, 16: 5, 17: 3}
"""Number of OpenAI's tokens, start and end included, to the number of prompts with so many tokens, among
the 1,860 prompts of the dictionary `imagenet1k`."""
MIN_COSINE: dict[Dtype, float] = {"float32": 0.99999, "bfloat16": 0.9995}


@dataclass(frozen=True)
class Contender:
    """One way to compute the same embeddings."""

    name: str
    dtype: Dtype | Literal["int8"]
    encode: Callable[[], Any]
    """Computes one batch and waits for it."""
    seconds: list[float] = field(default_factory=list)


def encoders(quick: bool) -> Table:
    """Measures images per second of the vision towers and texts per second of the text tower."""
    rows, notes, data = [], _absent(), {}
    jobs: list[tuple[str, int]] = [("B/32", 32)] if quick else [("B/32", 32), ("B/16", 8)]
    rounds = 3 if quick else 5
    for name, batch in jobs:
        with tempfile.TemporaryDirectory() as folder:
            images = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
            contenders = _image_contenders(_checkpoint(Path(folder), name), images, quick)
            _measure(f"images, {name}, batch {batch}", contenders, batch, rounds, rows, data)
    with tempfile.TemporaryDirectory() as folder:
        tokens = prompts(32)
        contenders = _text_contenders(_checkpoint(Path(folder), "B/32"), tokens, quick)
        _measure("texts of 77 tokens, batch 32", contenders, len(tokens), rounds, rows, data)
    return Table(
        "Encoders with random weights of the real architectures, measured in turn",
        (
            *(
                "task",
                "encoder",
                "dtype",
                "per second",
                "ratio",
                "ratio to torch compiled, same dtype",
            ),
            *("smallest to largest, s", "lowest cosine to float32"),
        ),
        tuple(rows),
        (
            f"medians of {rounds} batches, measured in turn; ratio: to the library in float32",
            "the times include neither preprocessing nor tokenizing",
            *notes,
        ),
        data,
    )


def prompts_benchmark(quick: bool) -> Table:
    """Measures 1,860 prompts from token ids, cut and batched by the library and at the whole context."""
    times = 3 if quick else 1  # minutes each
    tokens = prompts(256 if quick else sum(PROMPT_LENGTHS.values()))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(Path(folder), "B/32")
        model, torch_model = _model(checkpoint.directory, "float32", tokens), checkpoint.torch_model
    longest = int((tokens == END).argmax(axis=1).max()) + 1
    ways: dict[str, Callable[[], Any]] = {
        "bliss_jax, `Model.encode_texts`": lambda: model.encode_texts(("a prompt",) * len(tokens)),
        "bliss_jax, cut and batched by length, no shared prefix": lambda: _in_batches(
            model, tokens
        ),
        f"bliss_jax, all cut to the longest, {longest} tokens": lambda: _whole(
            model, tokens[:, :longest]
        ),
        "bliss_jax, the whole context, 77 tokens": lambda: _whole(model, tokens),
    }
    if torch_model is not None:
        ways[f"transformers in PyTorch, padded to the longest, {longest} tokens"] = partial(
            _torch_texts, torch_model, tokens[:, :longest]
        )
        ways["transformers in PyTorch, the whole context, 77 tokens"] = partial(
            _torch_texts, torch_model, tokens
        )
    taken: dict[str, list[float]] = {name: [] for name in ways}
    first, found, cosine = {}, {}, {}
    for name, way in ways.items():
        print(f"prompts: {name}", file=sys.stderr)
        start = time.perf_counter()
        found[name] = np.asarray(way())
        first[name] = time.perf_counter() - start
    reference = found["bliss_jax, the whole context, 77 tokens"]
    for name, embeddings in found.items():
        cosine[name] = agreement(embeddings, reference).cosine
        assert cosine[name] > MIN_COSINE["float32"], (name, cosine[name])
    for _ in range(times):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    whole = median(taken["bliss_jax, the whole context, 77 tokens"])
    return Table(
        f"{len(tokens):,} prompts: text tower of B/32, float32",
        ("way", "s", "times faster than 77 tokens", "first call, s", "lowest cosine"),
        tuple(
            (
                name,
                f"{median(times):.2f}",
                f"{whole / median(times):.1f}",
                f"{first[name]:.1f}",
                f"{cosine[name]:.6f}",
            )
            for name, times in taken.items()
        ),
        (
            "random token ids; the prompts have the lengths of the 1,860 prompts in OpenAI's vocabulary",
            f"medians of {times}, without the first call, which compiles",
        ),
        {"seconds": taken, "first": first, "cosine": cosine},
    )


def batches(quick: bool) -> Table:
    """Measures the seconds of batches of images against their operations."""
    rows, cases = [], []
    sizes = {"B/32": (1, 4, 16, 64), "B/16": (1, 4, 16)}
    if not quick:
        sizes = {"B/32": (1, 2, 4, 8, 16, 32, 64, 128), "B/16": (1, 2, 4, 8, 16, 32)}
    for name, numbers in sizes.items():
        config = replace(ARCHITECTURES[name].config, dtype="float32")
        params = untrained_params(config)
        for number in numbers:
            print(f"batches: {name}, {number}", file=sys.stderr)
            shape = (number, config.vision.image_size, config.vision.image_size, 3)
            images = jax.random.normal(jax.random.key(0), shape)
            step, _ = compiled(partial(encode_image, config=config), params, pixels=images)
            taken = repeat(lambda s=step, p=params, x=images: s(p, pixels=x), 3 if quick else 7)
            operations = number * computed_flops(config)
            cases.append({"encoder": name, "batch": number, "flops": operations, "seconds": taken})
    for case in cases:
        own = median(case["seconds"])
        rate = f"{case['batch'] / own:.1f}", f"{case['flops'] / own / 1e9:.0f}"
        sizes_of = (str(case["batch"]), f"{case['flops'] / 1e9:.1f}", f"{1e3 * own:.0f}")
        rows.append((case["encoder"], *sizes_of, *rate))
    return Table(
        "Time of a batch of images, float32",
        ("encoder", "batch", "GFLOP", "ms", "images/s", "GFLOP/s"),
        tuple(rows),
        ("GFLOP: operations of the products that the library computes, two per multiply-add",),
        {"cases": cases},
    )


def prompts(number: int, seed: int = 0) -> Int32[np.ndarray, "texts 77"]:
    """Returns token ids with the beginning, end and lengths of the prompts, and random words between."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.repeat(list(PROMPT_LENGTHS), list(PROMPT_LENGTHS.values())))
    lengths = np.resize(lengths, number)
    tokens = rng.integers(1000, 40000, (number, CONTEXT), np.int32)
    tokens[:, : len(PROMPT)] = PROMPT
    tokens[np.arange(CONTEXT) >= lengths[:, None] - 1] = END
    return tokens


@dataclass(frozen=True)
class _Checkpoint:
    """Random weights as files and in PyTorch."""

    directory: Path
    torch_model: Any
    """transformers' `CLIPModel`, or None if PyTorch is not installed."""


def _checkpoint(directory: Path, name: str) -> _Checkpoint:
    """Writes one of OpenAI's architectures with random weights in transformers' format."""
    config = replace(ARCHITECTURES[name].config, dtype="float32")
    save_checkpoint(directory, config, untrained_params(config), Preprocessing())
    if not _has("torch"):
        return _Checkpoint(directory, None)
    import torch
    from transformers import CLIPModel

    torch.set_num_threads(cpus())
    return _Checkpoint(directory, CLIPModel.from_pretrained(directory).eval())


def _load(directory: Path, dtype: Dtype) -> tuple[Params, ModelConfig]:
    config = read_config(directory, dtype)
    params, _ = load_params(directory, config)
    return params, config


def _model(directory: Path, dtype: Dtype, tokens: Int32[np.ndarray, "texts 77"]) -> Model:
    """Returns a `Model` whose tokenizer returns these tokens for all texts."""
    params, config = _load(directory, dtype)

    class Given(Tokenizer):
        def __call__(self, texts, *, truncate=False):
            return tokens

    return Model("random", config, params, Given(None, CONTEXT, VOCABULARY), Preprocessing(), "")


_text_step = jax.jit(encode_text, static_argnums=1)


def _whole(model: Model, tokens: Int32[np.ndarray, "texts length"]) -> Float[np.ndarray, "texts d"]:
    """Encodes texts of one length, 256 at a time, padded to whole batches."""
    padded = np.concatenate([tokens, tokens[: -len(tokens) % 256]])
    parts = [
        _text_step(model.params, model.config, jnp.asarray(padded[i : i + 256]))
        for i in range(0, len(padded), 256)
    ]
    return np.concatenate([np.asarray(part) for part in parts])[: len(tokens)]


def _in_batches(
    model: Model, tokens: Int32[np.ndarray, "texts 77"]
) -> Float[np.ndarray, "texts d"]:
    """Encodes whole texts in batches by length, like `Model.encode_texts` without the shared prefix."""
    lengths = model.config.used_lengths(tokens)
    assert shared_prefix(tokens, lengths) == len(PROMPT)
    found = np.empty((len(tokens), model.embedding_dim), np.float32)
    for batch in text_batches(tokens, lengths, 0, text_batch_size()):
        encoded = _text_step(model.params, model.config, jnp.asarray(batch.tokens))
        found[batch.rows] = np.asarray(encoded)[: len(batch.rows)]
    return found


def _torch_texts(model: Any, tokens: Int32[np.ndarray, "texts length"]) -> np.ndarray:
    import torch

    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.inference_mode():
        parts = [
            model.text_projection(model.text_model(input_ids=ids[i : i + 256])[1])
            for i in range(0, len(ids), 256)
        ]
    return torch.cat(parts).numpy()


def _image_contenders(
    checkpoint: _Checkpoint, images: Float[np.ndarray, "n 224 224 3"], quick: bool
) -> list[Contender]:
    found = [_ours(checkpoint, dtype, images, encode_image) for dtype in MIN_COSINE]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if checkpoint.torch_model is not None:
        found += _torch_contenders(
            checkpoint.torch_model,
            lambda m, x: m.visual_projection(m.vision_model(pixel_values=x)[1]),
            channels_first,
            quick,
        )
        found += _open_clip_contenders(checkpoint.torch_model, "image", channels_first)
        found += [
            Contender(runtime.name, runtime.dtype, partial(runtime.encode, channels_first))
            for runtime in image_runtimes(checkpoint.torch_model, channels_first, cpus())
        ]
    return found + _flax_contenders(checkpoint.directory, "image", images)


def _text_contenders(
    checkpoint: _Checkpoint, tokens: Int32[np.ndarray, "n 77"], quick: bool
) -> list[Contender]:
    found = [_ours(checkpoint, dtype, tokens, encode_text) for dtype in MIN_COSINE]
    if checkpoint.torch_model is not None:
        found += _torch_contenders(
            checkpoint.torch_model,
            lambda m, x: m.text_projection(m.text_model(input_ids=x)[1]),
            tokens.astype(np.int64),
            quick,
        )
        found += _open_clip_contenders(checkpoint.torch_model, "text", tokens.astype(np.int64))
    return found + _flax_contenders(checkpoint.directory, "text", tokens)


def _ours(checkpoint: _Checkpoint, dtype: Dtype, inputs: np.ndarray, encode: Callable) -> Contender:
    params, config = _load(checkpoint.directory, dtype)
    step = jax.jit(encode, static_argnums=1)
    inputs = jax.device_put(inputs)
    return Contender(
        "bliss_jax", dtype, lambda: jax.block_until_ready(step(params, config, inputs))
    )


def _torch_contenders(
    model: Any, forward: Callable, inputs: np.ndarray, quick: bool
) -> list[Contender]:
    import torch

    found = []
    for dtype in MIN_COSINE:
        kind = getattr(torch, dtype)
        own = copy.deepcopy(model).to(kind)
        given = torch.from_numpy(inputs)
        given = given.to(kind) if given.is_floating_point() else given
        for name, step in (("eager", forward), ("compiled", torch.compile(forward))):
            if quick and name == "compiled":
                continue

            def encode(step=step, own=own, given=given):
                with torch.inference_mode():
                    return step(own, given).float().numpy()

            found.append(Contender(f"transformers in PyTorch, {name}", dtype, encode))
    return found


def _open_clip_contenders(model: Any, side: str, inputs: np.ndarray) -> list[Contender]:
    if not _has("open_clip"):
        return []
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch

    size = model.config.vision_config.patch_size
    theirs = open_clip.create_model(f"ViT-B-{size}-quickgelu", pretrained=None)
    theirs.load_state_dict(to_open_clip(model.state_dict()), strict=True)
    found = []
    for dtype in MIN_COSINE:
        kind = getattr(torch, dtype)
        own = copy.deepcopy(theirs).eval().to(kind)
        given = torch.from_numpy(inputs)
        given = given.to(kind) if given.is_floating_point() else given

        def encode(own=own, given=given):
            with torch.inference_mode():
                step = own.encode_image if side == "image" else own.encode_text
                return step(given).float().numpy()

        found.append(Contender("open_clip", dtype, encode))
    return found


def to_open_clip(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the weights of transformers' `CLIPModel` under open_clip's names."""
    import torch

    found = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder")}
        for i in layers:
            theirs, ours = f"{prefix}transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            norms |= {f"{theirs}.{new}": f"{ours}.{old}" for new, old in parts.items()}
            for kind in ("weight", "bias"):
                qkv = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(qkv)
    for new, old in norms.items():
        found |= {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return found


def _flax_contenders(directory: Path, side: str, inputs: np.ndarray) -> list[Contender]:
    import transformers

    if not hasattr(transformers, "FlaxCLIPModel") or not _has("torch"):
        return []
    from transformers import FlaxCLIPModel  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for dtype in MIN_COSINE:
        kind = jnp.dtype(dtype)
        model = FlaxCLIPModel.from_pretrained(directory, from_pt=True, dtype=kind)
        params = model.params if dtype == "float32" else model.to_bf16(model.params)
        if side == "image":
            given = jnp.asarray(inputs.transpose(0, 3, 1, 2), kind)
            step = jax.jit(lambda p, x, m=model: m.get_image_features(x, params=p))
        else:
            given = jnp.asarray(inputs, jnp.int32)
            step = jax.jit(lambda p, x, m=model: m.get_text_features(x, params=p))
        encode = partial(_flax_step, step, params, given)
        found.append(Contender("FlaxCLIPModel, jitted", dtype, encode))
    return found


def _flax_step(step: Callable, params: Any, given: jax.Array) -> Any:
    return jax.block_until_ready(step(params, given))


def _measure(
    task: str,
    contenders: list[Contender],
    size: int,
    rounds: int,
    rows: list[tuple[str, ...]],
    data: dict[str, Any],
) -> None:
    """Compares the embeddings of all contenders, times them in turn, and adds a row for each."""
    reference = np.asarray(contenders[0].encode())
    cosine = []
    for c in contenders:
        print(f"encoders: {task}: {c.name}, {c.dtype}", file=sys.stderr)
        cosine.append(agreement(c.encode(), reference).cosine)
        # The library must keep its bound. Peers that are in bfloat16 throughout round more.
        if c.dtype == "float32" or (c.name == "bliss_jax" and c.dtype == "bfloat16"):
            assert cosine[-1] > MIN_COSINE[c.dtype], (task, replace(c, encode=None), cosine[-1])
        c.encode()
    for _ in range(rounds):
        for c in contenders:
            c.seconds.append(seconds(c.encode))
    ours = median(contenders[0].seconds)
    compiled = {c.dtype: median(c.seconds) for c in contenders if c.name.endswith("compiled")}
    for c, lowest in zip(contenders, cosine, strict=True):
        own = median(c.seconds)
        rows.append(
            (
                task,
                c.name,
                c.dtype,
                f"{size / own:.1f}",
                f"{ours / own:.2f}",
                f"{compiled[c.dtype] / own:.2f}" if c.dtype in compiled else "",
                spread(c.seconds),
                f"{lowest:.6f}",
            )
        )
    data[task] = [
        {"name": c.name, "dtype": c.dtype, "seconds": c.seconds, "cosine": lowest}
        for c, lowest in zip(contenders, cosine, strict=True)
    ]


def _absent() -> list[str]:
    """Returns a note that names the peers that are not installed, or no note."""
    import transformers

    absent = [name for name in ("torch", "open_clip", *RUNTIMES) if not _has(name)]
    if not hasattr(transformers, "FlaxCLIPModel"):
        absent.append(f"FlaxCLIPModel (transformers {transformers.__version__} has none)")
    return [f"not installed: {', '.join(absent)}"] if absent else []


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
