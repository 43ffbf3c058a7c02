"""AUROC and speed of the trained model `bliss-jax/tiny` by runtime and precision.

    python -m benchmarks.run --only int8

All rows have the same weights, preprocessing and texts, and differ in the embeddings of the images only. BLISS is
evaluated on the protocols of `glyphs`. int8 is calibrated on the first batch of training images. The model is small
(width 128, images of 32 x 32), so the loss of a large model may differ.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import bliss_jax
from benchmarks.measure import Table, cpus, median, seconds
from benchmarks.runtimes import image_runtimes

_CHECKPOINT = Path(bliss_jax.__file__).parent / "models" / "tiny"
_BATCH = 256
_TIMES = 7


def int8(quick: bool) -> Table:
    """Measures images per second of one batch, the smallest cosine to float32, and the mean AUROC of each protocol."""
    from transformers import CLIPModel

    import bliss_jax as bj
    from bliss_jax.datasets import GLYPH_PROTOCOLS, load_dataset, load_protocol
    from bliss_jax.embedding import embed_dataset
    from bliss_jax.evaluation import DATASET, Settings, dataset_defaults, evaluate
    from bliss_jax.models import encode_image
    from bliss_jax.text import load_dictionary

    model = bj.load_model("bliss-jax/tiny")
    train, test = load_dataset(DATASET, "train"), load_dataset(DATASET, "test")
    train_images, test_images = np.asarray(train.images), np.asarray(test.images)
    dictionary, _, k = dataset_defaults(DATASET)
    words = load_dictionary(dictionary)
    embeddings = embed_dataset(model, train, test, words, batch_size=_BATCH)
    protocols = GLYPH_PROTOCOLS[:1] if quick else GLYPH_PROTOCOLS

    def ours(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
        own = bj.load_model("bliss-jax/tiny", dtype=dtype)
        return lambda pixels: np.asarray(encode_image(own.params, own.config, pixels))

    def pixels_of(images: np.ndarray) -> np.ndarray:
        missing = _BATCH - len(images)
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return np.asarray(bj.preprocess(padded, size=model.image_size))

    def channels_first(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    example = pixels_of(train_images[:_BATCH])
    peer: Any = CLIPModel.from_pretrained(os.fspath(_CHECKPOINT))
    towers = {("bliss_jax", dtype): (ours(dtype), example) for dtype in ("float32", "bfloat16")}
    first = channels_first(example)
    for runtime in image_runtimes(peer.float().eval(), first, cpus()):
        towers[runtime.name, runtime.dtype] = (runtime.encode, first)

    def embed(tower: Callable, given: np.ndarray, images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            pixels = pixels_of(part)
            found.append(tower(pixels if given is example else channels_first(pixels))[: len(part)])
        x = np.concatenate(found).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    taken: dict[tuple[str, str], list[float]] = {key: [] for key in towers}
    for _ in range(_TIMES):
        for key, (tower, given) in towers.items():
            taken[key].append(seconds(lambda tower=tower, given=given: tower(given)))
    rows, data, exact = [], {}, embeddings.test_embeddings
    for (name, dtype), (tower, given) in towers.items():
        of_test = embed(tower, given, test_images)
        both = replace(
            embeddings,
            train_embeddings=embed(tower, given, train_images),
            test_embeddings=of_test,
        )
        aurocs = []
        for protocol in protocols:
            of_protocol = load_protocol(protocol, dataset=DATASET, num_classes=both.num_classes)
            (row,) = evaluate(both, of_protocol, Settings(scores=("bliss",), k=k)).rows
            aurocs.append(100 * float(np.mean([split.auroc for split in row.splits])))
        cosine = float((of_test * exact).sum(axis=1).min())
        rate = _BATCH / median(taken[name, dtype])
        rows.append((name, dtype, f"{rate:,.0f}", f"{cosine:.6f}", *(f"{a:.2f}" for a in aurocs)))
        data[f"{name}, {dtype}"] = {
            "images_per_s": rate,
            "cosine": cosine,
            "auroc": dict(zip(protocols, aurocs, strict=True)),
        }
    return Table(
        "bliss-jax/tiny by runtime and precision: AUROC x 100 of BLISS",
        ("encoder", "dtype", "images/s", "smallest cosine to float32", *protocols),
        tuple(rows),
        (
            f"batches of {_BATCH}, medians of {_TIMES} in turn, without preprocessing",
            "means over the splits of each protocol; all normal images",
        ),
        data,
    )
