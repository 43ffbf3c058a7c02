"""Measures maps of anomalies on scenes with one odd symbol at a known place (`bliss_jax.datasets.odd_glyphs`).

    python -m experiments.maps.encoder --output runs/scenes                         # the encoder, 16 minutes
    python -m experiments.maps.compare --model runs/scenes/model --output runs/maps

Every map is resized to the pixels of its scene. The pixel AUROC and AUPR of a scene compare the map with the box of the
odd symbol; tables show their means over scenes. The pointing game is the share of scenes whose largest pixel is in the
box. The method and the number of blocks of the library's default were chosen by the pointing game on validation scenes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

import bliss_jax as bj
from bliss_jax.datasets import odd_glyphs
from bliss_jax.datasets.odd_glyphs import OddScenes, draw_odd_scenes, normal_names
from bliss_jax.storage import replacing
from bliss_jax.text import PROMPT, fill_prompt
from experiments.maps import methods

BATCH = 60
WINDOWED = 160
"""Number of training scenes whose windows are fitted."""
Method = Callable[..., Any]
"""Takes a model, uint8 images and a direction for each, and returns maps [images, side, side]."""


class Fitted(NamedTuple):
    """Texts and moments of an encoder on the training scenes."""

    model: bj.Model
    labels: Any
    words: Any
    prepared: bj.PreparedBliss
    patches: bj.ClassMoments
    """Moments of the patches of the training scenes."""
    k: int


def fit(model: bj.Model, scenes: OddScenes, k: int) -> Fitted:
    """Fits moments of images and patches."""
    labels = model.encode_texts(fill_prompt(PROMPT, normal_names()))
    words = model.encode_texts(fill_prompt(PROMPT, bj.load_dictionary("unicode-names")))
    moments = bj.fit_moments(embed(model, scenes.images), scenes.labels, num_classes=len(labels))
    patches = None
    for rows in batches(scenes.images):
        part = bj.fit_patch_moments(
            embed_patches(model, scenes.images[rows]), scenes.labels[rows], num_classes=len(labels)
        )
        patches = part if patches is None else bj.merge_moments(patches, part)
    assert patches is not None
    return Fitted(model, labels, words, bj.prepare_bliss(labels, words, moments), patches, k)


def batches(images: np.ndarray) -> list[slice]:
    """Returns slices of at most `BATCH` images."""
    return [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]


def embed(model: bj.Model, images: np.ndarray) -> jax.Array:
    """Returns embeddings of images."""
    return jnp.concatenate([model.encode_images(images[rows]) for rows in batches(images)])


def embed_patches(model: bj.Model, images: np.ndarray) -> jax.Array:
    """Returns embeddings of the patches of images."""
    pixels = (bj.preprocess(images[rows], size=model.image_size) for rows in batches(images))
    found = [bj.encode_patches(model.params, model.config, x) for x in pixels]
    return jnp.concatenate(found)


def bliss_methods() -> dict[str, Method]:
    """Returns the maps of a direction, of which one is the library's default."""
    return {
        **{block_name(b): partial(methods.values_x_gradient, blocks=b) for b in BLOCKS},
        "tokens x gradient, 1 block": partial(methods.tokens_x_gradient, blocks=1),
        "tokens x gradient, 2 blocks": partial(methods.tokens_x_gradient, blocks=2),
        "Grad-ECLIP": methods.grad_eclip,
        "LeGrad, 3 blocks": partial(methods.legrad, blocks=3),
        "pixel gradient": methods.pixel_gradient,
        "integrated gradients": methods.integrated_gradients,
        "occlusion": methods.occlusion,
    }


BLOCKS = (1, 2, 3, 5)
"""Candidates for the number of attentions of the library's default."""


def block_name(blocks: int) -> str:
    """Returns the name of the default method with a number of attentions."""
    return f"values x gradient, {blocks} attention{'s' * (blocks > 1)}"


SLOW = ("integrated gradients", "occlusion")
"""Methods that encode an image many times. They are measured on the first `--slow` scenes."""


def maps_of_directions(
    method: Method, model: bj.Model, images: np.ndarray, w: jax.Array
) -> np.ndarray:
    """Returns the maps [images, side, side] of a method, one batch after the other."""
    run = jax.jit(lambda params, x, w: method(replace(model, params=params), x, w))
    return np.concatenate([np.asarray(run(model.params, images[r], w[r])) for r in batches(images)])


def dense_maps(fitted: Fitted, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns maps of scores of patches."""
    patches = embed_patches(fitted.model, images)
    nearest = explain(fitted, images).nearest_class
    texts = fitted.labels, fitted.words, fitted.patches
    rows = patches.reshape(-1, patches.shape[2])

    def of_class(label: Any, patches: Any) -> jax.Array:
        mask = jnp.arange(len(fitted.labels)) == label
        return bj.dense_bliss_score(patches[None], *texts, fitted.k, normal=mask)[0]

    by_class = jax.jit(lambda both: jax.lax.map(lambda pair: of_class(*pair), both))
    found = {
        "dense BLISS": bj.dense_bliss_score(patches, *texts, fitted.k),
        "dense BLISS of the nearest class": by_class((nearest, patches)),
        "dense Mahalanobis": bj.mahalanobis_score(rows, fitted.patches),
    }
    side = round(patches.shape[1] ** 0.5)
    return {name: np.asarray(scores).reshape(-1, side, side) for name, scores in found.items()}


def window_maps(tiny: bj.Model, train: OddScenes, images: np.ndarray, k: int) -> np.ndarray:
    """Returns maps of the window score by BLISS of `bliss-jax/tiny`, fitted on windows of normal scenes."""
    labels = tiny.encode_texts(fill_prompt(PROMPT, normal_names()))
    words = tiny.encode_texts(fill_prompt(PROMPT, bj.load_dictionary("unicode-names")))
    normal = methods.window_images(train.images[:WINDOWED])
    classes = np.repeat(train.labels[:WINDOWED], normal.shape[1])
    moments = bj.fit_moments(
        embed(tiny, normal.reshape(-1, *normal.shape[2:])), classes, num_classes=len(labels)
    )
    cut = methods.window_images(images)
    embedded = embed(tiny, cut.reshape(-1, *cut.shape[2:]))
    scores = bj.bliss_score(embedded, labels, words, moments, k).reshape(cut.shape[:2])
    masks = methods.windows(images.shape[1], methods.WINDOW, methods.STRIDE)
    return np.asarray(methods.spread(scores.T, masks))


def explain(fitted: Fitted, images: np.ndarray) -> bj.BlissExplanation:
    """Returns the explanations of images."""
    embedded = embed(fitted.model, images)
    return bj.explain_bliss_prepared(embedded, fitted.prepared, fitted.k)


def resized(maps: np.ndarray, side: int) -> np.ndarray:
    """Returns maps at the scenes' size, by bilinear interpolation."""
    return np.asarray(jax.image.resize(jnp.asarray(maps), (len(maps), side, side), "linear"))


@jax.jit
def _pixel_metrics(maps: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(lambda pair: (bj.auroc(*pair), bj.aupr(*pair)), (maps, masks))


def measured(maps: np.ndarray, scenes: OddScenes) -> dict[str, float]:
    """Returns the pixel AUROC and AUPR and the pointing game, all and per size and clutter."""
    flat = resized(maps, odd_glyphs.SIDE).reshape(len(maps), -1)
    masks = scenes.masks[: len(maps)].reshape(len(maps), -1)
    auroc, aupr = _pixel_metrics(jnp.asarray(flat), jnp.asarray(masks))
    hit = masks[np.arange(len(maps)), flat.argmax(axis=1)]
    found = {"pointing": hit.mean(), "auroc": np.mean(auroc), "aupr": np.mean(aupr)}
    for name, levels in (("size", odd_glyphs.SIZES), ("clutter", odd_glyphs.CLUTTER)):
        of_scene = getattr(scenes, "odd_size" if name == "size" else name)[: len(maps)]
        found |= {f"{name} {level}": hit[of_scene == level].mean() for level in levels}
    return {"scenes": len(maps)} | {name: float(value) for name, value in found.items()}


def measure_split(
    fitted: Fitted,
    tiny: bj.Model,
    train: OddScenes,
    scenes: OddScenes,
    slow: int,
    blocks: int | None,
) -> tuple[dict[str, dict[str, float]], int]:
    """Returns the measurements of every map on one split, and the number of attentions for further directions.

    If `blocks` is None, this number is the candidate with the best pointing game.
    """
    images, model = scenes.images, fitted.model
    directions = bj.bliss_directions(explain(fitted, images), fitted.prepared, fitted.k)
    largest = -fitted.labels[(embed(model, images) @ fitted.labels.T).argmax(1)]
    own_name = model.encode_texts(fill_prompt(PROMPT, scenes.odd_names, allow_repeats=True))
    y, x = np.mgrid[: odd_glyphs.SIDE, : odd_glyphs.SIDE] - (odd_glyphs.SIDE - 1) / 2
    shape = len(images), odd_glyphs.SIDE, odd_glyphs.SIDE
    rows: dict[str, dict[str, float]] = {}

    def add(name: str, maps: np.ndarray) -> None:
        rows[name] = measured(maps, scenes)
        click.echo(f"  {name}: " + ", ".join(f"{n} {v:.3f}" for n, v in rows[name].items()))

    add("centre prior", np.broadcast_to(-np.hypot(x, y), shape).astype(np.float32))
    add("random", np.random.default_rng(0).random(shape, np.float32))
    gradient = maps_of_directions(methods.pixel_gradient, model, images, largest)
    add("pixel gradient of max cosine", gradient)
    for name, method in bliss_methods().items():
        part = slice(slow if name in SLOW else len(images))
        add(name, maps_of_directions(method, model, images[part], directions.score[part]))
    if blocks is None:
        blocks = max(BLOCKS, key=lambda b: rows[block_name(b)]["pointing"])
    default = partial(methods.values_x_gradient, blocks=blocks)
    for name, w in (
        ("internal part", directions.internal),
        ("external part", directions.external),
        ("max cosine", largest),
        ("name of the odd symbol", own_name),
    ):
        add(f"{block_name(blocks)}: {name}", maps_of_directions(default, model, images, w))
    for name, maps in dense_maps(fitted, images).items():
        add(name, maps)
    add("windows, bliss-jax/tiny", window_maps(tiny, train, images[:slow], fitted.k))
    return rows, blocks


def image_scores(fitted: Fitted, odd: OddScenes, normal: OddScenes) -> dict[str, float]:
    """Returns the AUROC of scores of whole images: odd scenes against normal ones."""
    images = np.concatenate([odd.images, normal.images])
    is_odd = np.arange(len(images)) < len(odd)
    embedded, patches = embed(fitted.model, images), embed_patches(fitted.model, images)
    prepared, labels = fitted.prepared, fitted.labels
    scores = {
        "BLISS": bj.bliss_score_prepared(embedded, prepared, fitted.k),
        "max cosine": bj.max_cosine_score(embedded, labels),
        "MCM": bj.mcm_score(embedded, labels),
        "GL-MCM": bj.gl_mcm_score(embedded, patches, labels),
    }
    dense = dense_maps(fitted, images)
    scores |= {f"maximum of {name}": maps.max((1, 2)) for name, maps in dense.items()}
    return {name: float(bj.auroc(score, is_odd)) for name, score in scores.items()}


def flagged(
    fitted: Fitted, odd: OddScenes, normal: OddScenes, blocks: int, alpha: float = 0.05
) -> dict[str, float]:
    """Returns the share of odd scenes that BLISS flags, and the pointing game of the default method on them.

    The threshold is the 1 - alpha quantile of the scores of the normal scenes.
    """
    scores = [np.asarray(explain(fitted, scenes.images).score) for scenes in (odd, normal)]
    found = scores[0] > np.quantile(scores[1], 1 - alpha)
    w = bj.bliss_directions(explain(fitted, odd.images), fitted.prepared, fitted.k).score
    method = partial(methods.values_x_gradient, blocks=blocks)
    flat = resized(maps_of_directions(method, fitted.model, odd.images, w), odd_glyphs.SIDE)
    flat, masks = (a.reshape(len(odd), -1) for a in (flat, odd.masks))
    hit = masks[np.arange(len(odd)), flat.argmax(axis=1)]
    return {
        "flagged": float(found.mean()),
        "pointing if flagged": float(hit[found].mean()),
        "pointing if not flagged": float(hit[~found].mean()),
    }


def randomised(fitted: Fitted, scenes: OddScenes, blocks: int) -> dict[str, float]:
    """Returns the mean rank correlation of default maps with those of the same tower with random parameters.

    The parameters of the last layer, of the last two, and of the whole vision tower are replaced by those of a new
    initialisation (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.1). The last row is the
    correlation with maps of the same direction at another image.
    """
    model, images = fitted.model, scenes.images[:BATCH]
    w = bj.bliss_directions(explain(fitted, images), fitted.prepared, fitted.k).score
    method = partial(methods.values_x_gradient, blocks=blocks)
    own = maps_of_directions(method, model, images, w)
    image, text = (
        jnp.zeros(x.shape, x.dtype) for x in jax.tree.leaves(model.config.example_inputs())
    )
    module = model.config.module()
    fresh = module.init(jax.random.key(0), image, text)["params"]
    layers = model.params["vision_model"]["encoder"]["layers"]
    found = {}
    for name, count in (("last layer", 1), ("last two layers", 2), ("whole vision tower", None)):
        tower = fresh["vision_model"]
        if count is not None:
            last = sorted(layers, key=int)[-count:]
            new = layers | {key: tower["encoder"]["layers"][key] for key in last}
            tower = model.params["vision_model"] | {"encoder": {"layers": new}}
        other = replace(model, params=model.params | {"vision_model": tower})
        found[name] = _rank_correlation(own, maps_of_directions(method, other, images, w))
    rolled = maps_of_directions(method, model, np.roll(images, 1, axis=0), w)
    found["another image"] = _rank_correlation(own, rolled)
    return found


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    ranks = (rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second))
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())


def table(rows: dict[str, dict[str, float]]) -> str:
    """Returns a table in Markdown; all values x 100."""
    names = list(next(iter(rows.values())))
    heading = f"| map | {' | '.join(names)} |\n|---|{'---:|' * len(names)}\n"
    lines = []
    for name, values in rows.items():
        cells = [f"{int(v)}" if n == "scenes" else f"{100 * v:.1f}" for n, v in values.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return heading + "\n".join(lines) + "\n"


@click.command(context_settings={"show_default": True})
@click.option("--model", required=True, help="Encoder: a folder written by encoder.py, or a name.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder to write to."
)
@click.option("--train", default=800, help="Normal training scenes.")
@click.option("--validation", default=180, help="Odd validation scenes.")
@click.option("--test", default=360, help="Odd test scenes.")
@click.option("--slow", default=90, help="Scenes for the slow methods.")
@click.option("--size", default=odd_glyphs.SIDE, help="Side of the encoder's input in pixels.")
@click.option("--k", default=1, help="Dictionary texts per image.")
def main(
    model: str, output: Path, train: int, validation: int, test: int, slow: int, size: int, k: int
) -> None:
    """Measure all maps on validation and test scenes, and write OUTPUT/maps.json and OUTPUT/maps.md."""
    began = time.perf_counter()
    encoder = bj.load_model(model, image_size=size)
    tiny = bj.load_model("bliss-jax/tiny")
    normal = draw_odd_scenes("train", train, odd=False)
    fitted = fit(encoder, normal, k)
    result: dict[str, Any] = {"model": encoder.weights_hash, "k": k}
    text, blocks = "", None
    for split, number in (("validation", validation), ("test", test)):
        click.echo(f"{split}, {time.perf_counter() - began:.0f} s")
        odd = draw_odd_scenes(split, number, odd=True)
        rows, blocks = measure_split(fitted, tiny, normal, odd, slow, blocks)
        others = draw_odd_scenes(split, number, odd=False)
        scores = image_scores(fitted, odd, others)
        result[split] = {
            "maps": rows,
            "image AUROC": scores,
            "flagged at 5 %": flagged(fitted, odd, others, blocks),
            "rank correlation with maps of random parameters": randomised(fitted, odd, blocks),
        }
        facts = {name: values for name, values in result[split].items() if name != "maps"}
        text += f"## {split}\n\n{table(rows)}\n```json\n{json.dumps(facts, indent=1)}\n```\n\n"
    output.mkdir(parents=True, exist_ok=True)
    for name, content in (("maps.json", json.dumps(result, indent=1)), ("maps.md", text)):
        with replacing(output / name) as file:
            file.write(content.encode())
    click.echo(text)


if __name__ == "__main__":
    main()
