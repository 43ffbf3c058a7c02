"""The shortest possible time of each case, and the time that was expected before the first measurement.

    floor    = max(operations / rate, bytes / bandwidth)
    expected = operations / rate + 0.6 * bytes between products / bandwidth      (vision towers)

The bytes of the floor are those of each input read once and each result written once. The expected time of a
tower adds the bytes that XLA is estimated to move between the matrix products: activations in float32 that a
product writes and the next operation reads. About four tenths of them were assumed to overlap with products.

The rates in bfloat16 and of copies were measured on the cards, on large matrix products of random data and on
large copies. The rate in fp8 is assumed to be twice that in bfloat16. The float32 rate is the vendor's.
"""

from typing import NamedTuple

from benchmarks.gpu.architectures import (
    ARCHITECTURES,
    computed_flops,
    text_flops,
    vision_flops,
)
from benchmarks.gpu.scores import CLASSES, DIM, K
from benchmarks.measure import Table
from bliss_jax.models.clip import CLIPConfig


class Card(NamedTuple):
    """Rates of an accelerator: operations per second, and bytes read and written per second."""

    bfloat16: float
    float8: float
    float32: float
    bandwidth: float


CARDS = {
    "NVIDIA H200": Card(790e12, 2 * 790e12, 67e12, 4.3e12),
    "NVIDIA H100": Card(798e12, 2 * 798e12, 67e12, 3.0e12),
}
"""Rates by the beginning of JAX's name for the device."""


class Work(NamedTuple):
    """The operations and bytes of a case."""

    bfloat16: float = 0.0
    float8: float = 0.0
    float32: float = 0.0
    moved: float = 0.0
    """Bytes of the inputs and results, each once."""
    between: float | None = None
    """Bytes that a vision tower is estimated to move between its products."""
    units: float = 1.0
    """Images or prompts."""
    expected: str = ""
    """Expectation of the cases that are not vision towers."""


_OVERLAP = 0.4
"""Share of the bytes between products that was assumed to overlap with products."""

# Bytes per position, dimension and layer: layer norms, bias, transposes, residuals and the activation of the
# MLP, whose width counts four times; and bytes per logit of attention, for its softmax.
_FLOAT32, _BFLOAT16_RESULTS, _FP8, _TORCH = (140, 16), (80, 0), (180, 0), (60, 0)

_IMAGES = 10_000
_PROMPT_TOKENS, _PREFIX = 4, 7
"""Tokens of a typical prompt after the shared prefix, as the library rounds them, and of the prefix."""


def works() -> dict[str, Work]:
    """Returns the work of each case."""
    found: dict[str, Work] = {}
    for name, (config, batch) in ARCHITECTURES.items():
        flops, moved = batch * computed_flops(config), vision_bytes(config, batch)
        own = Work(moved=moved, units=batch)
        tower = own._replace(bfloat16=flops)
        found |= {
            f"encoder {name}": tower._replace(between=between(config, batch, *_BFLOAT16_RESULTS)),
            f"torch {name}": own._replace(
                bfloat16=batch * vision_flops(config), between=between(config, batch, *_TORCH)
            ),
            f"{name}, float32 results and XLA's attention": tower._replace(
                between=between(config, batch, *_FLOAT32)
            ),
            f"{name}, fp8": own._replace(float8=flops, between=between(config, batch, *_FP8)),
        }
    b32, b16 = (ARCHITECTURES[name].config for name in ("B/32", "B/16"))
    for size, number in ((32, 128 * 1024), (224, 24 * 1024)):
        found[f"embed_images {size}"] = Work(
            bfloat16=number * computed_flops(b32),
            moved=number * 3 * size**2,
            units=number,
            expected="95 % of the encoder" if size == 32 else "60 to 90 % of the encoder: transfer",
        )
    found["cifar10"] = Work(
        bfloat16=60_000 * computed_flops(b16) + 1_880 * text_flops(b16, _PROMPT_TOKENS, _PREFIX),
        units=60_000,
        expected="6 to 8 s",
    )
    for texts in (1_000_000, 80_000, 1_860):
        product = 2.0 * _IMAGES * texts * DIM
        variances = 2.0 * min(texts, K * _IMAGES) * CLASSES * DIM**2
        own = Work(moved=4.0 * DIM * (_IMAGES + texts), units=_IMAGES)
        many = texts > 1_860
        found[f"scores {texts}, top k"] = own._replace(
            float32=product, expected=f"{'15 to 30' if many else '8 to 15'} % of the floor's rate"
        )
        found[f"scores {texts}, bliss"] = own._replace(
            float32=product + variances,
            expected=f"{'10 to 25' if many else '5 to 10'} % of the floor's rate",
        )
    for name in ("B/32", "L/14"):
        config = ARCHITECTURES[name].config
        found[f"prompts {name}"] = Work(
            bfloat16=1_860 * text_flops(config, _PROMPT_TOKENS, _PREFIX),
            moved=text_bytes(config),
            units=1_860,
            expected="5 to 10 ms: starting of kernels",
        )
    return found


def between(config: CLIPConfig, batch: int, per_dimension: int, per_logit: int) -> float:
    """Returns the bytes that a tower is estimated to move between its products.

    With L positions, width d, h heads and N layers:   batch L N (per_dimension d + per_logit h L)
    """
    v = config.vision
    length = v.num_patches + 1
    per_position = per_dimension * v.hidden_size + per_logit * v.num_attention_heads * length
    return float(batch * length * v.num_hidden_layers * per_position)


def vision_bytes(config: CLIPConfig, batch: int) -> float:
    """Returns the bytes of the kernels in bfloat16 and of float32 pixels, each read once."""
    v = config.vision
    layer = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size
    kernels = v.num_hidden_layers * layer + 3 * v.patch_size**2 * v.hidden_size
    return 2.0 * kernels + 4.0 * batch * 3 * v.image_size**2


def text_bytes(config: CLIPConfig) -> float:
    """Returns the bytes of the text tower's kernels in bfloat16, read once."""
    t = config.text
    layer = 4 * t.hidden_size**2 + 2 * t.hidden_size * t.intermediate_size
    return 2.0 * t.num_hidden_layers * layer


def floor_seconds(work: Work, card: Card) -> tuple[float, str]:
    """Returns the shortest possible seconds of a case, and the rate that limits it."""
    terms = {
        "bfloat16": work.bfloat16 / card.bfloat16,
        "fp8": work.float8 / card.float8,
        "float32": work.float32 / card.float32,
        "bandwidth": work.moved / card.bandwidth,
    }
    limit = max(terms, key=lambda name: terms[name])
    return terms[limit], limit


def expected_seconds(work: Work, card: Card) -> float | None:
    """Returns the seconds expected of a vision tower, or None for other cases."""
    if work.between is None:
        return None
    return floor_seconds(work, card)[0] + (1 - _OVERLAP) * work.between / card.bandwidth


def card_of(device: str) -> Card | None:
    """Returns the rates of a card by the beginning of the device's name, or None if it is unknown."""
    return next((card for name, card in CARDS.items() if device.startswith(name)), None)


def floors_table() -> Table:
    """Returns the floors and the expected times of all cases on each card."""
    rows = []
    for name, work in works().items():
        operations = work.bfloat16 + work.float8 + work.float32
        cells, limits = [name, f"{operations / 1e12:.4g}", f"{work.moved / 1e9:.3g}"], []
        for card in CARDS.values():
            seconds, limit = floor_seconds(work, card)
            expected = expected_seconds(work, card)
            share = f"{1e3 * expected:.3g} ({100 * seconds / expected:.0f} %)" if expected else ""
            cells += [
                f"{1e3 * seconds:.3g}",
                share or work.expected,
                f"{work.units / seconds:,.0f}",
            ]
            limits.append(limit)
        rows.append((*cells, " or ".join(dict.fromkeys(limits))))
    headings = ("case", "TFLOP", "GB")
    for card in CARDS:
        name = card.removeprefix("NVIDIA ")
        headings += (
            f"{name}: floor, ms",
            f"{name}: expected, ms",
            f"{name}: per second at the floor",
        )
    return Table(
        "Floors, and what was expected before the first measurement",
        (*headings, "limited by"),
        tuple(rows),
        (
            "per second: images or prompts",
            "in brackets: share of the floor's rate that the expected time is",
            "PyTorch computes the last layer for all positions, the library for the class token only",
        ),
    )
