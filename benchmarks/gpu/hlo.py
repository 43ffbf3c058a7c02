"""Checks of lowered and compiled programs, most of which need no accelerator.

JAX lowers a program for CUDA on any machine. The lowered program (StableHLO) shows the types of all matrix
products, transfers to the host, and donated buffers. XLA's optimised program shows fusions and library
calls, but only for the backend on which it is compiled.
"""

import collections
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import bliss_jax as bj
from benchmarks.gpu.architectures import architectures
from benchmarks.measure import Table
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.preprocessing import Preprocessing, apply_preprocessing

_PRODUCT = re.compile(
    r"stablehlo\.(?:dot_general|dot|convolution)\b.*: "
    r"\(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> tensor<(?:\d+x)*(\w+)>"
)
_HOST = re.compile(r"stablehlo\.(infeed|outfeed|send|recv)\b|custom_call @(\w*callback\w*)")
_DONATED = re.compile(r"tf\.aliasing_output|jax\.buffer_donor")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = \S+ ([\w-]+)\(", re.MULTILINE)
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


class Lowered(NamedTuple):
    """Properties of a lowered program."""

    products: dict[str, int]
    """Number of matrix products by the types of their operands and result, e.g. `bf16 x bf16 -> f32`."""
    host_transfers: int
    """Callbacks, infeeds, outfeeds, sends and receives inside the program."""
    donated: int
    """Arguments whose buffers the program may reuse."""


def lowered(function: Any, *arguments: Any, platform: str = "cuda") -> Lowered:
    """Lowers a jitted function for a platform that need not be present, and returns its properties.

    Args:
        function: A jitted function.
        arguments: Arrays, or their shapes and dtypes.
        platform: Platform to lower for.
    """
    program = function.trace(*arguments).lower(lowering_platforms=(platform,))
    return lowered_properties(program.as_text())


def lowered_properties(text: str) -> Lowered:
    """Returns the properties of a program's StableHLO text."""
    products = collections.Counter(
        f"{left} x {right} -> {result}" for left, right, result in _PRODUCT.findall(text)
    )
    return Lowered(
        dict(sorted(products.items())), len(_HOST.findall(text)), len(_DONATED.findall(text))
    )


def compiled_counts(text: str) -> dict[str, int]:
    """Returns the numbers of operations in a compiled program's text that say how it runs.

    Counted are fusions, products that XLA generates itself, loops, and library calls by their target, e.g.
    `__cublas$lt$matmul$f8` for a product in fp8.
    """
    kinds = collections.Counter(_OPERATION.findall(text))
    counts = {kind: kinds[kind] for kind in ("fusion", "dot", "convolution", "while", "sort")}
    counts["triton gemm"] = text.count("__triton_gemm") + text.count("__triton_nested_gemm_fusion")
    counts["to host"] = sum(kinds[kind] for kind in ("infeed", "outfeed", "send", "recv"))
    return {name: n for name, n in counts.items() if n} | dict(
        sorted(collections.Counter(_TARGET.findall(text)).items())
    )


def programs(quick: bool) -> dict[str, tuple[Any, tuple]]:
    """Returns the programs to check, as jitted functions and the shapes of their arguments."""

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    found: dict[str, tuple[Any, tuple]] = {}
    for name, (config, batch) in architectures(quick).items():
        size = config.vision.image_size
        pixels = array(batch, size, size, 3)
        found[f"encode_image, {name}"] = (
            jax.jit(lambda params, x, c=config: bj.encode_image(params, c, x)),
            (_shapes(config), pixels),
        )
        if name in ("B/32", "L/14"):
            found[f"encode_text, {name}, 4 tokens after a prefix of 7"] = (
                jax.jit(lambda params, x, p, c=config: bj.encode_text(params, c, x, p)),
                (_shapes(config), array(256, 4, dtype=jnp.int32), array(7, dtype=jnp.int32)),
            )
    size = architectures(quick)["B/32"].config.vision.image_size
    resize = jax.jit(partial(apply_preprocessing, preprocessing=Preprocessing(size)))
    found["preprocessing, 32 x 32"] = (resize, (array(1024, 32, 32, 3, dtype=jnp.uint8),))
    images, texts, labels = array(10_000, 512), array(1_860, 512), array(10, 512)
    moments = bj.ClassMoments(
        jnp.zeros(10, jnp.int32), jnp.zeros((10, 512)), jnp.zeros((10, 512, 512))
    )
    found["top_k_similar, 1,860 texts"] = (
        jax.jit(partial(bj.top_k_similar, k=10)),
        (images, texts),
    )
    found["bliss_score, 1,860 texts"] = (jax.jit(bj.bliss_score), (images, labels, texts, moments))
    return found


def _shapes(config: CLIPConfig) -> Any:
    """Returns the shapes of a bfloat16 model's parameters: kernels in bfloat16, all others in float32."""
    size = config.vision.image_size
    given = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(config.module().init, jax.random.key(0), *given)["params"]

    def stored(path, leaf):
        dtype = jnp.bfloat16 if path[-1].key == "kernel" else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(stored, shapes)


def hlo_table(quick: bool) -> Table:
    """Returns the properties of the programs lowered for CUDA, and the counts of two compiled ones.

    The compiled programs are the vision tower of B/32 for one batch of 32 images, or of its shrunken
    version, and the scores. They are compiled for the backend of this process.
    """
    rows, data = [], {}
    for name, (function, arguments) in programs(quick).items():
        found = lowered(function, *arguments)
        products = ", ".join(f"{n} {kind}" for kind, n in found.products.items())
        rows.append((name, products or "none", str(found.host_transfers), str(found.donated)))
        data[name] = found._asdict()
    notes = [
        "lowered for CUDA: the products are those of the program, before XLA optimises it",
        "no buffer is donated, because no input has the shape and type of a result",
    ]
    config = architectures(quick)["B/32"].config
    size = config.vision.image_size
    encode, (shapes, _) = programs(quick)["encode_image, B/32"]
    scores, arguments = programs(quick)["bliss_score, 1,860 texts"]
    pixels = jax.ShapeDtypeStruct((32, size, size, 3), jnp.float32)
    for name, program in {
        "encode_image, B/32, 32 images": encode.lower(shapes, pixels),
        "bliss_score, 1,860 texts": scores.lower(*arguments),
    }.items():
        counts = compiled_counts(program.compile().as_text())
        listed = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        notes.append(f"{name}, compiled for {jax.default_backend()}: {listed}")
        data[f"{name}, compiled"] = counts
    headings = ("program", "products", "host transfers", "donated buffers")
    return Table("Programs, lowered for CUDA", headings, tuple(rows), tuple(notes), data)
