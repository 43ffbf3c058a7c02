"""Training batches of `bliss-jax/tiny`: new scenes of `glyphs`, with one seed for each batch.

Three of four scenes show a symbol of the data set. The fourth shows any other character of DejaVu Sans, so
that the model learns the other words of the dictionary.
"""

import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bliss_jax.datasets import glyph_scenes as gs
from bliss_jax.datasets.glyphs import FACES, FAMILIES, glyph_name
from experiments.tiny_model.captions import KINDS, Called, draw_captions

SYMBOLS = tuple("".join(FAMILIES.values()))
_TAIL_FACES = 2


class Batch(NamedTuple):
    """Images uint8 [n, 32, 32, 3], the ids of their large glyphs [n], and their captions."""

    images: np.ndarray
    symbols: np.ndarray
    captions: list[str]


class Scenery:
    """Generator of batches from the glyph masks of the training faces.

    Args:
        tail: Share of scenes with other characters than the symbols of the data set.
        max_tail: Maximum number of these characters. None (the default) uses all of them.
    """

    def __init__(self, tail: float, max_tail: int | None = None):
        characters = gs.characters()
        others = [char for char in characters if char not in SYMBOLS][:max_tail]
        self.tail = tail
        self.symbols = (*SYMBOLS, *others)
        self.called = [*_called(), *(Called(glyph_name(char), "", 1.0) for char in others)]
        self.small_names = [glyph_name(char) for char in characters]
        self._small = gs.glyph_masks(characters, FACES["train"][:1], (0,), gs.SMALL)[:, 0, 0]
        own = gs.glyph_masks(SYMBOLS, FACES["train"], gs.STROKES, gs.LARGE)
        rest = gs.glyph_masks(others, FACES["train"][:_TAIL_FACES], (0,), gs.LARGE)
        repeats = (1, len(FACES["train"]) // _TAIL_FACES, len(gs.STROKES), 1, 1)
        self._large = np.concatenate([own, np.tile(rest, repeats)])

    def batch(self, seed: tuple[int, ...], size: int, difficulty: float, tail: bool) -> Batch:
        """Draws one batch. Equal seeds give equal batches."""
        rng = np.random.default_rng(seed)
        symbols = (rng.random(size) * len(SYMBOLS)).astype(np.int32)
        if tail:
            others = len(self.symbols) - len(SYMBOLS)
            far = len(SYMBOLS) + (rng.random(size) * others).astype(np.int32)
            symbols = np.where(rng.random(size) < self.tail, far, symbols)
        scenes = gs.draw_scenes(
            rng, symbols, "train", num_faces=len(FACES["train"]), num_small=len(self._small)
        )
        scenes = easier(rng, scenes, difficulty)
        captions = draw_captions(rng, scenes, self.called, self.small_names)
        return Batch(gs.render(scenes, self._large, self._small), symbols, captions)

    def captions(self, seed: tuple[int, ...]) -> list[str]:
        """Draws one caption for each symbol and each other character, to train the tokenizer on."""
        rng = np.random.default_rng(seed)
        scenes = gs.draw_scenes(
            rng,
            np.arange(len(self.symbols), dtype=np.int32),
            "train",
            num_faces=len(FACES["train"]),
            num_small=len(self._small),
        )
        return draw_captions(rng, scenes, self.called, self.small_names)


def _called() -> list[Called]:
    """Returns name, kind and rate of the data set's symbols. Most of the rates in [0.05, 1] are low."""
    kinds = [KINDS[family] for family, symbols in FAMILIES.items() for _ in symbols]
    # Weyl's sequence is evenly spread over (0, 1) and does not depend on a random generator.
    steps = np.arange(1, len(SYMBOLS) + 1) * ((np.sqrt(5) - 1) / 2) % 1
    rates = 0.05 + 0.95 * steps**1.5
    names = map(glyph_name, SYMBOLS)
    return [Called(*one) for one in zip(names, kinds, rates.tolist(), strict=True)]


def easier(rng: np.random.Generator, scenes: gs.Scenes, difficulty: float) -> gs.Scenes:
    """Reduces the difficulty of scenes, for the curriculum.

    At difficulty 0, a scene is one upright glyph in the middle of a plain background. At 1, it is unchanged.
    """
    middle = gs.SIZE / 2
    keep = rng.random((len(scenes), gs.MAX_CLUTTER + 1)) < difficulty
    return dataclasses.replace(
        scenes,
        centre=middle + (scenes.centre - middle) * difficulty,
        angle=scenes.angle * difficulty,
        noise=scenes.noise * difficulty,
        texture=np.where(keep[:, 0], scenes.texture, 0),
        clutter=np.where(keep[:, 1:], scenes.clutter, -1),
    )


def ahead(batches: Iterator, depth: int = 4) -> Iterator:
    """Yields the same batches, which a thread prepares in advance. Errors of the thread are raised here."""
    ready: queue.Queue = queue.Queue(depth)

    def fill() -> None:
        try:
            for batch in batches:
                ready.put(batch)
        except Exception as error:  # It is passed on and raised below.
            ready.put(error)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        if isinstance(batch, Exception):
            raise batch
        yield batch
