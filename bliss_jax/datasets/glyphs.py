"""Glyphs: symbols of the DejaVu fonts in cluttered scenes, named as Unicode names them. No download.

    class       the Unicode name of a symbol in lower case: "white chess king", "umbrella with rain drops"
    family      what the protocols divide: chess, zodiac, dice, weather, ...
    image       uint8 [32, 32, 3]: one scene of `glyph_scenes`, whose large glyph is the class

matplotlib ships the fonts. Everything is rendered from a seed: the same images on every machine with the
same FreeType, and up to rounding on any other. Training, validation and test images differ in faces,
shades of colour and seeds; `load_glyphs` opens training and test, the validation set is for choices made
while training a model (`experiments/tiny_model/train.py`).
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
"""The symbols, by family; their order is that of the class ids."""

FACES = {
    "train": ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif"),
    "validation": ("DejaVuSans-BoldOblique",),
    "test": ("DejaVuSans-Bold",),
}
_IMAGES_PER_CLASS = {"train": 40, "validation": 10, "test": 20}
_SEED = {"train": 1, "validation": 2, "test": 3}


def glyph_names() -> tuple[str, ...]:
    """The class names: Unicode names in lower case, in the order of `FAMILIES`."""
    return tuple(glyph_name(symbol) for symbol in "".join(FAMILIES.values()))


def glyph_name(symbol: str) -> str:
    """A symbol's Unicode name in lower case, `WHITE CHESS KING` as `white chess king`."""
    return unicodedata.name(symbol).lower()


def family_classes() -> dict[str, tuple[int, ...]]:
    """The class ids of each family."""
    ids, start = {}, 0
    for family, symbols in FAMILIES.items():
        ids[family] = tuple(range(start, start + len(symbols)))
        start += len(symbols)
    return ids


def load_glyphs(split: str) -> ImageDataset:
    """The images of "train" (40 of each class), "validation" (10) or "test" (20), rendered now."""
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
