"""Scenes of the data set `glyphs`: one large glyph on a textured background with clutter and noise.

An image contains much more information than its caption: small glyphs, a texture in two colours, position,
size, rotation, stroke width, font face and noise. A caption (`experiments/tiny_model/captions.py`) names
the large glyph and only sometimes a colour, the position or the background. Such an imbalance of
information is a known cause of CLIP's modality gap (Schrodi et al., "Two effects, one trigger", ICLR 2025;
Liang et al., "Mind the gap", NeurIPS 2022).

Many scenes are rendered at once in NumPy: glyph masks made by FreeType are rotated, scaled and translated
with bilinear interpolation and then composited onto the background one after the other. All randomness
comes from uniform numbers of one `numpy.random.Generator`.
"""

import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from bliss_jax import _require

SIZE = 32
LARGE, SMALL = 32, 12
"""Side lengths of the masks of large and small glyphs, in pixels."""
MAX_CLUTTER = 5
STROKES = (0, 2, 4)
"""Stroke widths that are added to the outline of a glyph 96 pixels high, in pixels."""

# Lower and upper RGB corner of each colour; every shade is a point in the box between them.
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((150, 0, 0), (255, 60, 50)),
    "orange": ((225, 95, 0), (255, 150, 50)),
    "yellow": ((220, 195, 0), (255, 245, 90)),
    "green": ((0, 90, 10), (70, 190, 80)),
    "blue": ((0, 20, 120), (50, 100, 255)),
    "purple": ((85, 0, 110), (165, 60, 200)),
    "pink": ((235, 110, 160), (255, 180, 215)),
    "brown": ((80, 45, 10), (140, 85, 45)),
    "grey": ((95, 95, 95), (165, 165, 165)),
    "black": ((0, 0, 0), (40, 40, 40)),
    "white": ((225, 225, 225), (255, 255, 255)),
    "cyan": ((0, 160, 170), (90, 230, 240)),
}
SHADES = 16
SHADES_OF = {"train": range(12), "validation": range(12, 14), "test": range(14, 16)}
PLACES = (
    ("upper left corner", "top", "upper right corner"),
    ("left side", "middle", "right side"),
    ("lower left corner", "bottom", "lower right corner"),
)
# Number of candidate colours per scene, from which glyph, background and texture take one each, and the
# least difference in luma (0 to 255) between glyph and background if the candidates allow it.
_CANDIDATES, FAR = 18, 70
_PART = 512
"""Number of scenes that are rendered at once."""
TEXTURES = ("plain", "gradient", "striped", "checked", "dotted")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Parameters of n scenes. Ids are positions in `symbols`, `faces`, `COLOURS` and `TEXTURES`."""

    symbol: Int[np.ndarray, " n"]
    face: Int[np.ndarray, " n"]
    stroke: Int[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]
    """Side length of the large glyph's box in pixels."""
    centre: Float[np.ndarray, "n 2"]
    """Centre (x, y) of the large glyph's box in pixels."""
    angle: Float[np.ndarray, " n"]
    """Rotation in radians."""
    colour: Int[np.ndarray, "n 3"]
    """Colours of the glyph, of the background and of the background's texture."""
    shade: Int[np.ndarray, "n 3"]
    texture: Int[np.ndarray, " n"]
    period: Float[np.ndarray, " n"]
    """Period of the texture in pixels."""
    direction: Float[np.ndarray, " n"]
    clutter: Int[np.ndarray, "n clutter"]
    """Ids of the small glyphs; -1 marks an absent one."""
    clutter_size: Float[np.ndarray, "n clutter"]
    clutter_centre: Float[np.ndarray, "n clutter 2"]
    clutter_angle: Float[np.ndarray, "n clutter"]
    clutter_colour: Int[np.ndarray, "n clutter"]
    clutter_shade: Int[np.ndarray, "n clutter"]
    noise: Float[np.ndarray, "n 32 32 3"]

    def __len__(self) -> int:
        return len(self.symbol)

    def __getitem__(self, part: slice) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[part] for field in fields(self)))


def draw_scenes(
    rng: np.random.Generator,
    symbol: Int[np.ndarray, " n"],
    split: str,
    *,
    num_faces: int,
    num_small: int,
) -> Scenes:
    """Draws random scenes with the given large glyphs.

    Args:
        rng: The only source of randomness.
        symbol: Id of each scene's large glyph.
        split: "train", "validation" or "test"; determines the shades.
        num_faces: Number of font faces to choose from.
        num_small: Number of small glyphs to choose from.

    Returns:
        The parameters of the scenes.
    """
    n = len(symbol)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * rng.random((n, *shape))

    def choose(count: int, *shape: int) -> np.ndarray:
        return (rng.random((n, *shape)) * count).astype(np.int32)

    size = uniform(21.0, 29.0)
    margin = (SIZE - size) / 2 + 1
    clutter = choose(num_small, MAX_CLUTTER)
    absent = np.arange(MAX_CLUTTER) >= choose(MAX_CLUTTER + 1)[:, None]
    colour, shade = _contrasting(
        choose(len(COLOURS), _CANDIDATES), _shade(choose, split, _CANDIDATES)
    )
    return Scenes(
        symbol=np.asarray(symbol, np.int32),
        face=choose(num_faces),
        stroke=choose(len(STROKES)),
        size=size,
        centre=SIZE / 2 + margin[:, None] * uniform(-1.0, 1.0, 2),
        angle=uniform(-0.3, 0.3),
        colour=colour,
        shade=shade,
        texture=choose(len(TEXTURES)),
        period=uniform(3.0, 10.0),
        direction=uniform(0.0, np.pi),
        clutter=np.where(absent, -1, clutter),
        clutter_size=uniform(6.0, 11.0, MAX_CLUTTER),
        clutter_centre=uniform(0.0, float(SIZE), MAX_CLUTTER, 2),
        clutter_angle=uniform(-np.pi, np.pi, MAX_CLUTTER),
        clutter_colour=choose(len(COLOURS), MAX_CLUTTER),
        clutter_shade=_shade(choose, split, MAX_CLUTTER),
        noise=uniform(0.0, 14.0)[:, None, None, None] * uniform(-1.0, 1.0, SIZE, SIZE, 3),
    )


def _shade(choose, split: str, count: int) -> Int[np.ndarray, "n count"]:
    shades = SHADES_OF[split]
    return shades.start + choose(len(shades), count)


def _contrasting(colours: Int[np.ndarray, "n candidates"], shades: Int[np.ndarray, "n candidates"]):
    """Chooses the colours of glyph, background and texture from the candidates.

    The glyph takes the first candidate. The background takes the first candidate whose luma is far from the
    glyph's, or the farthest one if none is far. The texture takes the last candidate.
    """
    values = palette()[colours, shades].astype(np.float64)
    luma = values @ np.array([0.299, 0.587, 0.114])
    distance = np.abs(luma - luma[:, :1])[:, :-1]
    far = distance > FAR
    ground = np.where(far.any(axis=1), far.argmax(axis=1), distance.argmax(axis=1))
    last = np.full_like(ground, colours.shape[1] - 1)
    chosen = np.stack([np.zeros_like(ground), ground, last], axis=1)
    pick = np.take_along_axis
    return pick(colours, chosen, axis=1), pick(shades, chosen, axis=1)


@cache
def palette() -> UInt8[np.ndarray, "colours shades 3"]:
    """Returns the RGB values of every shade: points in the box between the corners of its colour."""
    # Weyl's sequence spreads evenly and does not depend on a random generator.
    steps = np.arange(1, SHADES + 1)[:, None] * np.sqrt([2.0, 3.0, 5.0])
    steps = steps - np.floor(steps)
    corners = np.asarray(list(COLOURS.values()), np.float64)
    low, high = corners[:, :1], corners[:, 1:]
    return np.round(low + (high - low) * steps).astype(np.uint8)


def render(
    scenes: Scenes,
    large: UInt8[np.ndarray, "symbols faces strokes 32 32"],
    small: UInt8[np.ndarray, "small 12 12"],
) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Renders scenes from the masks that `glyph_masks` makes."""
    extent = gradient_extent(scenes.direction, SIZE)
    # A part fits in the processor's cache. NumPy releases the GIL, so the threads run in parallel.
    parts = (scenes[start : start + _PART] for start in range(0, len(scenes), _PART))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(lambda part: _render(part, large, small, extent), parts))
    return np.concatenate(images)


def _render(
    scenes: Scenes,
    large: UInt8[np.ndarray, "symbols faces strokes 32 32"],
    small: UInt8[np.ndarray, "small 12 12"],
    extent: tuple[float, float],
) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Renders one part. `extent` holds the positions at which the gradients start and end."""
    colours = palette().astype(np.float32)
    image = draw_ground(
        scenes.texture,
        scenes.period,
        scenes.direction,
        colours[scenes.colour[:, 1:], scenes.shade[:, 1:]],
        extent,
        SIZE,
    )
    for i in range(MAX_CLUTTER):
        there = np.flatnonzero(scenes.clutter[:, i] >= 0)
        cover = place_masks(
            small[scenes.clutter[there, i]],
            scenes.clutter_size[there, i],
            scenes.clutter_centre[there, i],
            scenes.clutter_angle[there, i],
            SIZE,
        )
        paint = colours[scenes.clutter_colour[there, i], scenes.clutter_shade[there, i]]
        image[there] += 0.8 * cover[..., None] * (paint[:, None, None] - image[there])
    masks = large[scenes.symbol, scenes.face, scenes.stroke]
    cover = place_masks(masks, scenes.size, scenes.centre, scenes.angle, SIZE)
    paint = colours[scenes.colour[:, 0], scenes.shade[:, 0]]
    image += cover[..., None] * (paint[:, None, None] - image)
    return np.clip(np.round(image + scenes.noise), 0, 255).astype(np.uint8)


def draw_ground(
    texture: Int[np.ndarray, " n"],
    period: Float[np.ndarray, " n"],
    direction: Float[np.ndarray, " n"],
    pair: Float[np.ndarray, "n 2 3"],
    extent: tuple[float, float],
    side: int,
) -> Float[np.ndarray, "n side side 3"]:
    """Draws backgrounds: the first colour of each pair, blended by up to 35 % with the second in a texture.

    Args:
        texture: Position in `TEXTURES`.
        period: Period of the texture in pixels.
        direction: Direction of the texture in radians.
        pair: RGB values of both colours.
        extent: Positions along the directions at which gradients start and end (`gradient_extent`).
        side: Height and width of the images.
    """
    y, x = np.mgrid[:side, :side].astype(np.float32)
    along, across = _along(direction, x, y), _along(direction, y, -x)
    first_end, last_end = extent
    period = period[:, None, None]
    phase, other = (np.mod(z / period, 1) for z in (along, across))
    kinds = np.stack(
        [
            np.zeros_like(phase),
            (along - first_end) / (last_end - first_end),
            phase < 0.5,
            (phase < 0.5) ^ (other < 0.5),
            (phase - 0.5) ** 2 + (other - 0.5) ** 2 < 0.09,
        ]
    )
    amount = 0.35 * kinds[texture, np.arange(len(texture))][..., None]
    first, second = pair[:, 0, None, None], pair[:, 1, None, None]
    return (first + amount * (second - first)).astype(np.float32)


def gradient_extent(direction: Float[np.ndarray, " n"], side: int) -> tuple[float, float]:
    """Returns the smallest and largest coordinate of the images' corners along all directions."""
    last = side - 1
    corners = _along(
        direction,
        np.array([[0, last], [0, last]], np.float32),
        np.array([[0, 0], [last, last]], np.float32),
    )
    return corners.min(), corners.max()


def _along(
    direction: Float[np.ndarray, " n"], x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "n h w"]:
    """Returns the coordinate of each point along each scene's direction."""
    cos, sin = np.cos(direction)[:, None, None], np.sin(direction)[:, None, None]
    return x * cos + y * sin


def place_masks(
    masks: UInt8[np.ndarray, "n side side"],
    size: Float[np.ndarray, " n"],
    centre: Float[np.ndarray, "n 2"],
    angle: Float[np.ndarray, " n"],
    canvas: int,
) -> Float[np.ndarray, "n canvas canvas"]:
    """Scales masks to `size`, rotates and translates them with bilinear interpolation.

    Returns:
        Coverage of the pixels of canvases of `canvas` x `canvas` pixels, in [0, 1]; 0 outside the masks.
    """
    n, side = masks.shape[:2]
    y, x = np.mgrid[:canvas, :canvas].astype(np.float32) + 0.5
    dx = x - centre[:, 0, None, None].astype(np.float32)
    dy = y - centre[:, 1, None, None].astype(np.float32)
    scale = (side / size).astype(np.float32)
    cos = (np.cos(angle) * scale).astype(np.float32)[:, None, None]
    sin = (np.sin(angle) * scale).astype(np.float32)[:, None, None]
    # A border of zeros around each mask, so that points at the edge need no special case.
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).reshape(n, (side + 2) ** 2)
    u = np.clip(cos * dx + sin * dy + side / 2 + 0.5, 0, side + 0.999)
    v = np.clip(cos * dy - sin * dx + side / 2 + 0.5, 0, side + 0.999)
    left, top = u.astype(np.int32), v.astype(np.int32)
    u, v = u - left, v - top
    at = (top * (side + 2) + left).reshape(n, canvas**2)

    def corner(offset: int) -> np.ndarray:
        return np.take_along_axis(padded, at + offset, axis=1).reshape(u.shape)

    upper = corner(0) * (1 - u) + corner(1) * u
    lower = corner(side + 2) * (1 - u) + corner(side + 3) * u
    return (upper * (1 - v) + lower * v) / np.float32(255)


def font_path(face: str) -> Path:
    """Returns the file of a font face that matplotlib contains."""
    _require("matplotlib", "datasets")
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@cache
def characters(face: str = "DejaVuSans") -> tuple[str, ...]:
    """Returns the characters of a face that have a Unicode name and are visible on their own, in order."""
    _require("matplotlib", "datasets")
    from matplotlib.ft2font import FT2Font

    drawn = (chr(code) for code in sorted(FT2Font(str(font_path(face))).get_charmap()))
    return tuple(
        char
        for char in drawn
        if unicodedata.name(char, "") and unicodedata.category(char)[0] not in "MZC"
    )


def glyph_masks(
    symbols: Sequence[str], faces: Sequence[str], strokes: Sequence[int], side: int
) -> UInt8[np.ndarray, "symbols faces strokes side side"]:
    """Renders the coverage of each symbol; the larger side of a symbol fills the mask.

    If a face does not contain a symbol, the symbol is taken from DejaVu Sans.
    """
    masks = np.zeros((len(symbols), len(faces), len(strokes), side, side), np.uint8)
    for f, face in enumerate(faces):
        font, fallback, known = _font(face), _font("DejaVuSans"), set(characters(face))
        for i, symbol in enumerate(symbols):
            for s, stroke in enumerate(strokes):
                masks[i, f, s] = _mask(symbol, font if symbol in known else fallback, stroke, side)
    return masks


@cache
def _font(face: str) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(font_path(face)), 96, layout_engine=ImageFont.Layout.BASIC)


def _mask(symbol: str, font: Any, stroke: int, side: int) -> UInt8[np.ndarray, "side side"]:
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(symbol, stroke_width=stroke)
    width, height = right - left, bottom - top
    extent = max(width, height, 1)
    canvas = Image.new("L", (extent, extent))
    corner = ((extent - width) // 2 - left, (extent - height) // 2 - top)
    ImageDraw.Draw(canvas).text(corner, symbol, 255, font, stroke_width=stroke)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))
