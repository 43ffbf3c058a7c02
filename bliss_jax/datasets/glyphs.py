"""The data set `glyphs`: symbols of the DejaVu fonts in cluttered scenes. It needs no download.

    class       a symbol, named by its Unicode name in lower case, e.g. "white chess king"
    family      a group of related symbols, e.g. chess, zodiac, dice; protocols divide the families
    image       uint8 [32, 32, 3]: a scene of `glyph_scenes` whose large glyph is the class

matplotlib contains the fonts. Images are rendered from a seed. They are equal on all machines with the same
version of FreeType, and equal up to rounding with other versions. Training, validation and test images
differ in font faces, shades of colour and seeds. The validation set is for choices made while training a
model (`experiments/tiny_model/train.py`).
"""

import unicodedata

import numpy as np

from bliss_jax.datasets import glyph_scenes as scenes
from bliss_jax.datasets.image_dataset import ImageDataset

FAMILIES: dict[str, str] = {
    "chess": "♔♕♖♗♘♙♚♛♜♝♞♟",
    "zodiac": "♈♉♊♋♌♍♎♏♐♑♒♓",
    "dice": "⚀⚁⚂⚃⚄⚅",
    "card suits": "♠♡♢♣♤♥♦♧",
    "weather": "☀☁☂☃☄☈☔☼❄",
    "hands": "☚☛☜☝☞☟✌✍",
    "astronomy": "☉☿♀♁♂♃♄♅♆♇☽⚳⚴⚵⚶⚷",
    "music": "♩♪♫♬♭♮♯",
    "faces": "☹☺☻😁😂😃😉😍😐😒😢😷",
    "crosses": "✙✚✛✜✝✞✟✠☦☧☨☩",
    "stars": "★☆✦✩✪✫✯✰✴✶✷✹✡",
    "flowers": "✢✣✥✻✽✾✿❀❁❂❃❋⚘",
    "arrows": "←↑→↓↔↕↖↗↘↙⇐⇑⇒⇓↩↪↶↷↺↻",
    "shapes": "■□▣▤▥▧▨▩▲△▶▼▽◀◆◇◈◉◎●◐◑◒◓",
    "trigrams": "☰☱☲☳☴☵☶☷",
    "dominoes": "🁣🁫🁳🁻🂃🂋🂓",
    "tools": "☎☏☕⚐⚑⚒⚓⚔⚖⚗⚙⚰⚱✂✈✉✎✒",
    "signs": "☢☣☠☡⚠⚡☮☯☪☭☤⚕⚛⚜♻♿☸☥",
    "letters": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digits": "0123456789",
}
"""Symbols by family, in the order of the class ids."""

FACES = {
    "train": ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif"),
    "validation": ("DejaVuSans-BoldOblique",),
    "test": ("DejaVuSans-Bold",),
}
_IMAGES_PER_CLASS = {"train": 40, "validation": 10, "test": 20}
_SEED = {"train": 1, "validation": 2, "test": 3}


def glyph_names() -> tuple[str, ...]:
    """Returns the class names: Unicode names in lower case, in the order of `FAMILIES`."""
    return tuple(glyph_name(symbol) for symbol in "".join(FAMILIES.values()))


def glyph_name(symbol: str) -> str:
    """Returns a symbol's Unicode name in lower case, e.g. `white chess king`."""
    return unicodedata.name(symbol).lower()


def family_classes() -> dict[str, tuple[int, ...]]:
    """Returns the class ids of each family."""
    ids, start = {}, 0
    for family, symbols in FAMILIES.items():
        ids[family] = tuple(range(start, start + len(symbols)))
        start += len(symbols)
    return ids


def load_glyphs(split: str) -> ImageDataset:
    """Renders the split "train" (40 images per class), "validation" (10) or "test" (20)."""
    symbols = "".join(FAMILIES.values())
    characters = scenes.characters()
    large = scenes.glyph_masks(symbols, FACES[split], scenes.STROKES, scenes.LARGE)
    small = scenes.glyph_masks(characters, FACES[split][:1], scenes.STROKES[:1], scenes.SMALL)
    labels = np.repeat(np.arange(len(symbols), dtype=np.int32), _IMAGES_PER_CLASS[split])
    drawn = scenes.draw_scenes(
        np.random.default_rng(_SEED[split]),
        labels,
        split,
        num_faces=len(FACES[split]),
        num_small=len(characters),
    )
    return ImageDataset(
        name="glyphs",
        images=scenes.render(drawn, large, small[:, 0, 0]),
        labels=labels,
        class_names=glyph_names(),
        source=f"rendered by bliss_jax.datasets.glyphs, {split}: seed {_SEED[split]}, "
        f"faces {', '.join(FACES[split])}",
    )
