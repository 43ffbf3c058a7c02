"""Captions for the scenes of `glyphs`. They describe only a part of a scene and are sometimes wrong.

    This is a photo of a white chess king
    a picture of a red umbrella with rain drops on a grey background in the upper left corner
    the saturn and a small cyrillic capital letter zhe
    a symbol

Most captions name the large glyph or its kind. Some add a colour, the background, the place or a small glyph.
Some are generic, and some name a small glyph instead of the large one, which is noise as in captions from the
web. How often a glyph is called by its name and not by its kind differs between the glyphs, as people write
"king of spades" but "a bird".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bliss_jax.datasets.glyph_scenes import COLOURS, PLACES, SIZE, TEXTURES, Scenes

TEMPLATES = (
    "This is a photo of a {}",
    "a photo of a {}",
    "a photo of the {}",
    "{}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "the {}",
    "a {}",
    "This is a {}",
    "a photo of {}",
    "a sign with a {}",
    "one {}",
)
GENERIC = (
    "a symbol",
    "a photo of something",
    "a photo of a symbol",
    "a picture",
    "a small picture with a sign",
    "something",
    "an image",
    "This is a photo of a thing",
    "a photo of an object",
)
KINDS = {
    "chess": "chess piece",
    "zodiac": "zodiac sign",
    "dice": "die",
    "card suits": "card suit",
    "weather": "weather symbol",
    "hands": "hand",
    "astronomy": "astronomical symbol",
    "music": "musical note",
    "faces": "face",
    "crosses": "cross",
    "stars": "star",
    "flowers": "flower",
    "arrows": "arrow",
    "shapes": "geometric shape",
    "trigrams": "trigram",
    "dominoes": "domino tile",
    "tools": "tool",
    "signs": "sign",
    "letters": "letter",
    "digits": "digit",
}
"""Kind of the symbols of each family of `glyphs`, for captions that do not use the symbol's name."""


class Called(NamedTuple):
    """Name and kind of a large glyph. A share `rate` of the captions uses the name, the others the kind."""

    name: str
    kind: str
    rate: float


# Rates at which a caption is generic, names a small glyph instead of the large one, or adds a detail.
_GENERIC, _MISTAKEN = 0.08, 0.04
_COLOUR, _GROUND, _TEXTURE, _PLACE, _SMALL = 0.35, 0.15, 0.06, 0.12, 0.10
# Pixels at which the second and the third row and column of PLACES begin.
_THIRDS = (SIZE / 2 - 2, SIZE / 2 + 2)


def draw_captions(
    rng: np.random.Generator, scenes: Scenes, called: Sequence[Called], small_names: Sequence[str]
) -> list[str]:
    """Draws one caption for each scene.

    Args:
        rng: Source of all randomness.
        scenes: Scenes to describe.
        called: Names and kinds of the large glyphs, indexed by `scenes.symbol`.
        small_names: Names of the small glyphs, indexed by `scenes.clutter`.
    """
    draws = rng.random((len(scenes), 10))
    return [
        _caption(scenes, i, draw, called[scenes.symbol[i]], small_names)
        for i, draw in enumerate(draws)
    ]


def _caption(scenes: Scenes, i: int, draw, called: Called, small_names: Sequence[str]) -> str:
    generic, mistaken, named, colour, template, ground, texture, place, small, which = draw
    if generic < _GENERIC:
        return GENERIC[int(which * len(GENERIC))]
    colours = list(COLOURS)
    first = scenes.clutter[i, 0]
    small_name = small_names[first] if first >= 0 else None
    phrase = called.name if named < called.rate else called.kind
    if mistaken < _MISTAKEN and small_name:
        phrase = small_name
    if colour < _COLOUR:
        phrase = f"{colours[scenes.colour[i, 0]]} {phrase}"
    # The power makes the first templates more frequent.
    caption = TEMPLATES[int(template**1.5 * len(TEMPLATES))].format(phrase)
    if ground < _GROUND:
        caption += f" on a {colours[scenes.colour[i, 1]]} background"
    if texture < _TEXTURE:
        caption += f", {TEXTURES[scenes.texture[i]]}"
    if place < _PLACE:
        column, row = np.digitize(scenes.centre[i], _THIRDS)
        caption += f" in the {PLACES[row][column]}"
    if small < _SMALL and small_name:
        caption += f" and a small {small_name}"
    return caption
