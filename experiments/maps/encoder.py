"""Trains the encoder of the measurement of maps: `bliss-jax/tiny` with more patches, on scenes of several symbols.

    pip install -e '.[train]' && python -m experiments.maps.encoder --output runs/scenes

`bliss-jax/tiny` has 4 x 4 patches and was trained on scenes of one large symbol. Its vision tower starts here with
positions interpolated to 12 x 12 patches, and learns scenes of 96 x 96 pixels with up to nine symbols in the faces and
shades of the training split. The text tower does not change. With T the embeddings of the prompts of all symbols, the
loss of a scene x that shows the symbols S is the cross-entropy to captions that name each of them equally often,

    loss(x) = -mean over s in S of log softmax(100 T f(x))_s

so the encoder learns no places: like CLIP it sees captions only.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bliss_jax as bj
from bliss_jax.datasets import odd_glyphs
from bliss_jax.datasets.glyphs import FAMILIES, glyph_name
from bliss_jax.models.export import save_checkpoint
from bliss_jax.storage import replacing
from bliss_jax.text import PROMPT, fill_prompt
from experiments.tiny_model.data import ahead
from experiments.tiny_model.train import Phase, Settings, optimizer

SYMBOLS = tuple("".join(FAMILIES.values()))
SCALE = 100.0


def scenes(seed: tuple[int, ...], number: int, table: np.ndarray) -> dict[str, np.ndarray]:
    """Draws a batch: uint8 images, and the share of each symbol in the captions [number, symbols].

    Half of the scenes repeat one symbol beside one other. The rest shows up to three kinds of symbols.
    """
    rng = np.random.default_rng(seed)
    shape = (number, odd_glyphs.SLOTS)
    kinds = rng.integers(0, len(SYMBOLS), (number, 3))
    which = rng.integers(0, rng.integers(1, 4, (number, 1)), shape)
    which[: number // 2] = (np.arange(odd_glyphs.SLOTS) > 0).astype(int)
    symbol = np.take_along_axis(kinds, which, axis=1)
    size = rng.choice(np.asarray(odd_glyphs.SIZES, np.int32), shape)
    size[np.arange(odd_glyphs.SLOTS) >= rng.integers(1, odd_glyphs.SLOTS + 1, (number, 1))] = 0
    images, _ = odd_glyphs.render_symbols(rng, "train", table, symbol, size)
    shown = np.zeros((number, len(SYMBOLS)), np.float32)
    there = size > 0
    shown[np.nonzero(there)[0], symbol[there]] = 1
    return {"images": images, "shares": shown / shown.sum(axis=1, keepdims=True)}


def train(
    model: bj.Model, steps: int, batch: int, rate: float, seed: int, scale: float = SCALE
) -> tuple[Any, list[dict[str, float]]]:
    """Trains the vision tower, and returns the model's parameters and the loss over the steps."""
    table = odd_glyphs.symbol_masks(SYMBOLS, "train")
    texts = model.encode_texts(fill_prompt(PROMPT, tuple(map(glyph_name, SYMBOLS))))
    transform = optimizer(Settings(), Phase("scenes", steps, batch, rate, 0.0))

    def loss(tower: Any, drawn: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        pixels = bj.preprocess(drawn["images"], size=model.image_size)
        logits = scale * bj.encode_image(model.params | tower, model.config, pixels) @ texts.T
        named = jnp.take_along_axis(drawn["shares"], logits.argmax(-1)[:, None], axis=1)
        return optax.softmax_cross_entropy(logits, drawn["shares"]).mean(), (named > 0).mean()

    @jax.jit
    def step(tower: Any, state: Any, drawn: dict[str, jax.Array]) -> Any:
        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(tower, drawn)
        update, state = transform.update(gradient, state, tower)
        return optax.apply_updates(tower, update), state, jnp.stack([value, right])

    tower = {name: model.params[name] for name in ("vision_model", "visual_projection")}
    state, curve, recent, began = transform.init(tower), [], [], time.perf_counter()
    for k, drawn in enumerate(ahead(scenes((seed, k), batch, table) for k in range(steps)), 1):
        tower, state, measured = step(tower, state, drawn)
        recent.append(measured)
        if k % 50 == 0 or k == steps:
            value, right = np.mean(np.asarray(recent), axis=0)
            curve.append({"step": k, "loss": float(value), "first text is shown": float(right)})
            seconds = (time.perf_counter() - began) / k
            click.echo(
                f"{k}/{steps}: loss {value:.3f}, first text shown {right:.3f}, {seconds:.2f} s per step"
            )
            recent = []
    return model.params | tower, curve


@click.command(context_settings={"show_default": True})
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to write to.",
)
@click.option("--steps", default=1300, help="Training steps.")
@click.option("--batch", default=32, help="Scenes per step.")
@click.option("--rate", default=2e-3, help="Peak of the learning rate.")
@click.option("--seed", default=0, help="Seed of the scenes.")
def main(output: Path, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train the encoder and write it to OUTPUT/model."""
    model = bj.load_model("bliss-jax/tiny", image_size=odd_glyphs.SIDE)
    (output / "model").mkdir(parents=True, exist_ok=True)
    params, curve = train(model, steps, batch, rate, seed)
    save_checkpoint(
        output / "model",
        model.config,
        params,
        model.preprocessing,
        dtype="float16",
        tokenizer=model.tokenizer,
    )
    with replacing(output / "curve.json") as file:
        file.write(json.dumps(curve, indent=1).encode())


if __name__ == "__main__":
    main()
