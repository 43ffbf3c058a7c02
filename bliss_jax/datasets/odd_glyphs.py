"""Scenes with one odd symbol at a known place, to measure maps of anomalies. They need no download.

    normal scene    copies of one symbol of `glyphs`, its class, on a textured background with noise
    odd scene       a normal scene with one symbol of another family, whose place is the mask

Every symbol has a size, a position, a rotation, a stroke width, a font face and a colour of its own, and the odd one is
drawn from the same distributions as the others, so only its shape is odd. Boxes of symbols do not overlap. Training,
validation and test scenes differ in font faces, shades and seeds, and odd symbols of validation scenes are not odd in
test scenes. The validation scenes are for choices, e.g. of the method that computes maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from bliss_jax.datasets import glyph_scenes as scenes
from bliss_jax.datasets.glyphs import FACES, FAMILIES, glyph_name

SIDE = 96
"""Height and width of a scene in pixels."""
SIZES = (12, 20, 28)
"""Side lengths of the symbols' boxes in pixels."""
CLUTTER = (2, 4, 8)
"""Numbers of normal symbols in a scene. A symbol that does not fit beside the others is left out."""
NORMAL_SYMBOLS = tuple(symbols[0] for symbols in FAMILIES.values())
"""Symbols of the normal classes: the first of each family."""
ODD_SYMBOLS = {
    "validation": tuple(s for symbols in FAMILIES.values() for s in symbols[1::2]),
    "test": tuple(s for symbols in FAMILIES.values() for s in symbols[2::2]),
}
"""Odd symbols of each split."""

SLOTS = 1 + max(CLUTTER)
"""Largest number of symbols in a scene; the first one may be odd."""

_SEED = {"train": 11, "validation": 12, "test": 13}
_TRIES = 60
_PART = 128
_NOISE = 14.0


@dataclass(frozen=True, eq=False)
class OddScenes:
    """Rendered scenes."""

    images: UInt8[np.ndarray, "n 96 96 3"]
    masks: Bool[np.ndarray, "n 96 96"]
    """Whether a pixel belongs to the box of the odd symbol; all false in a normal scene."""
    labels: Int[np.ndarray, " n"]
    """Class of the normal symbols, a position in `NORMAL_SYMBOLS`."""
    odd_names: tuple[str, ...]
    """Unicode name of the odd symbol in lower case; empty in a normal scene."""
    odd_size: Int[np.ndarray, " n"]
    """Side length of the odd symbol's box; 0 in a normal scene."""
    clutter: Int[np.ndarray, " n"]
    """Number of normal symbols, before those that do not fit are left out."""

    def __len__(self) -> int:
        return len(self.labels)


def normal_names() -> tuple[str, ...]:
    """Returns the class names: Unicode names of `NORMAL_SYMBOLS` in lower case."""
    return tuple(map(glyph_name, NORMAL_SYMBOLS))


def draw_odd_scenes(split: str, number: int, *, odd: bool, seed: int | None = None) -> OddScenes:
    """Renders scenes in which classes, sizes of the odd symbol and numbers of normal symbols are balanced.

    Args:
        split: "train", "validation" or "test"; determines faces, shades, odd symbols and the seed.
        number: Number of scenes.
        odd: Whether each scene has an odd symbol. Training scenes have none.
        seed: A seed other than the split's.

    Raises:
        ValueError: Training scenes with an odd symbol are requested.
    """
    if odd and split not in ODD_SYMBOLS:
        raise ValueError(
            f"split: expected one of {list(ODD_SYMBOLS)} for odd scenes, got {split!r}"
        )
    rng = np.random.default_rng([_SEED[split] if seed is None else seed, odd])
    labels = np.arange(number, dtype=np.int32) % len(NORMAL_SYMBOLS)
    # 20 classes and 9 pairs of size and clutter have no common divisor, so 180 scenes show every combination.
    pair = np.arange(number) % (len(SIZES) * len(CLUTTER))
    clutter = np.asarray(CLUTTER, np.int32)[pair % len(CLUTTER)]
    odd_size = np.asarray(SIZES, np.int32)[pair // len(CLUTTER)] * np.int32(odd)
    symbol = np.repeat(labels[:, None], SLOTS, axis=1)
    if odd:
        symbol[:, 0] = [_odd_symbol(rng, label, split) for label in labels.tolist()]
    size = rng.choice(np.asarray(SIZES, np.int32), symbol.shape)
    size[:, 0] = odd_size
    size[np.arange(SLOTS) > clutter[:, None]] = 0
    symbols = NORMAL_SYMBOLS + ODD_SYMBOLS.get(split, ())
    table = symbol_masks(symbols, split)
    parts = [slice(start, start + _PART) for start in range(0, number, _PART)]
    drawn = [render_symbols(rng, split, table, symbol[part], size[part]) for part in parts]
    images, masks = (np.concatenate(part) for part in zip(*drawn, strict=True))
    names = tuple(glyph_name(symbols[i]) if odd else "" for i in symbol[:, 0])
    return OddScenes(images, masks, labels, names, odd_size, clutter)


def symbol_masks(
    symbols: Sequence[str], split: str
) -> UInt8[np.ndarray, "symbols faces strokes 32 32"]:
    """Renders the coverage of symbols in the faces of a split."""
    return scenes.glyph_masks(symbols, FACES[split], scenes.STROKES, scenes.LARGE)


def _odd_symbol(rng: np.random.Generator, label: int, split: str) -> int:
    """Returns the position of an odd symbol of another family than the normal one."""
    own = tuple(FAMILIES.values())[label]
    others = [i for i, symbol in enumerate(ODD_SYMBOLS[split]) if symbol not in own]
    return len(NORMAL_SYMBOLS) + int(rng.choice(others))


def _centres(
    rng: np.random.Generator, size: Int[np.ndarray, "n slots"]
) -> Float[np.ndarray, "n slots 2"]:
    """Draws the centres of boxes that do not overlap. The size of a box that fits nowhere becomes 0."""
    centre = np.zeros((*size.shape, 2))
    for scene in range(len(size)):
        sizes, centres = size[scene], centre[scene]
        for slot in np.flatnonzero(sizes).tolist():
            free = rng.uniform(sizes[slot] / 2, SIDE - sizes[slot] / 2, (_TRIES, 2))
            before = np.flatnonzero(sizes[:slot])
            apart = np.abs(free[:, None] - centres[before]).max(axis=2)
            fits = (apart >= (sizes[slot] + sizes[before]) / 2).all(axis=1)
            centres[slot] = free[fits.argmax()]
            sizes[slot] *= fits.any()
    return centre


def render_symbols(
    rng: np.random.Generator,
    split: str,
    table: UInt8[np.ndarray, "symbols faces strokes 32 32"],
    symbol: Int[np.ndarray, "n slots"],
    size: Int[np.ndarray, "n slots"],
) -> tuple[UInt8[np.ndarray, "n 96 96 3"], Bool[np.ndarray, "n 96 96"]]:
    """Renders scenes of given symbols at random places.

    Args:
        rng: The only source of randomness.
        split: "train", "validation" or "test"; determines the shades.
        table: Coverage of each symbol, from `symbol_masks`.
        symbol: Position in `table` of each symbol of a scene.
        size: Side length of each symbol's box; 0 for no symbol.

    Returns:
        The images, and the pixels in the boxes of the scenes' first symbols.
    """
    size = size.copy()
    centre = _centres(rng, size)
    n, slots = symbol.shape
    ground, texture, ink = _colours(rng, split, n, slots)
    direction = rng.uniform(0, np.pi, n)
    image = scenes.draw_ground(
        rng.integers(0, len(scenes.TEXTURES), n),
        rng.uniform(3.0, 10.0, n),
        direction,
        np.stack([ground, texture], axis=1),
        scenes.gradient_extent(direction, SIDE),
        SIDE,
    )
    face, stroke = (rng.integers(0, count, symbol.shape) for count in table.shape[1:3])
    angle = rng.uniform(-0.3, 0.3, symbol.shape)
    box = np.zeros((n, SIDE, SIDE), bool)
    for slot in range(slots):
        there = np.flatnonzero(size[:, slot])
        at = there, slot
        place = (size[at].astype(np.float64), centre[at], angle[at], SIDE)
        cover = scenes.place_masks(table[symbol[at], face[at], stroke[at]], *place)
        image[there] += cover[..., None] * (ink[at][:, None, None] - image[there])
        if slot == 0:
            full = np.full((len(there), *table.shape[-2:]), 255, np.uint8)
            box[there] = scenes.place_masks(full, *place) >= 0.5
    strength = rng.uniform(0.0, _NOISE, (n, 1, 1, 1))
    image += strength * rng.uniform(-1.0, 1.0, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), box


def _colours(
    rng: np.random.Generator, split: str, n: int, slots: int
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n slots 3"]]:
    """Draws the colours of backgrounds, textures and symbols. Symbols and background differ in luma."""
    shades = scenes.SHADES_OF[split]
    table = scenes.palette()[:, shades.start : shades.stop].reshape(-1, 3).astype(np.float32)
    luma = table @ np.array([0.299, 0.587, 0.114], np.float32)
    ground, texture = rng.integers(0, len(table), (2, n))
    far = np.abs(luma - luma[ground, None]) > scenes.FAR
    ink = (rng.random((n, slots, len(table))) * far[:, None]).argmax(axis=2)
    return table[ground], table[texture], table[ink]
