"""Cost of maps: images per second that are embedded and explained, with and without maps."""

import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from benchmarks.measure import Table, compiled, median, repeat
from benchmarks.random_detector import random_encoder
from bliss_jax.models import Model

_TEXTS, _CLASSES, _K, _WORDS = 1860, 10, 10, 5


def maps(quick: bool) -> Table:
    """Measures `bliss-jax/tiny` and ViT-B/32 in float32."""
    models = {"bliss-jax/tiny": bj.load_model("bliss-jax/tiny")}
    if not quick:
        models["ViT-B/32"] = random_encoder("B/32", "float32")
    rows, data = [], {}
    for name, model in models.items():
        for number in (1, 8):
            plain, mapped = _seconds(model, number, 3 if quick else 7)
            rows.append(
                (
                    name,
                    str(number),
                    f"{number / plain:.1f}",
                    f"{number / mapped:.1f}",
                    f"{mapped / plain:.2f}",
                )
            )
            data[f"{name}, {number}"] = {"without_s": plain, "with_s": mapped}
    return Table(
        title="Maps of anomalies",
        headings=(
            "encoder",
            "images per call",
            "images/s without maps",
            "with maps",
            "times as long",
        ),
        rows=tuple(rows),
        notes=(
            f"{2 + _WORDS} maps per image: internal part, external part, {_WORDS} words; {_TEXTS} texts, k = {_K}, "
            f"{_CLASSES} classes; medians.",
        ),
        data=data,
    )


def _seconds(model: Model, number: int, times: int) -> tuple[float, float]:
    """Returns the seconds per call without and with maps."""
    config, params = model.config, model.params
    rng = np.random.default_rng(0)

    def unit(*shape: int) -> jax.Array:
        x = rng.normal(size=shape).astype(np.float32)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    dim, size = model.embedding_dim, model.image_size
    labels = np.arange(100) % _CLASSES
    moments = bj.fit_moments(unit(100, dim), labels, num_classes=_CLASSES)
    prepared = bj.prepare_bliss(unit(_CLASSES, dim), unit(_TEXTS, dim), moments)
    images = jnp.asarray(rng.integers(0, 256, (number, size, size, 3), np.uint8))

    def explained(params, images):
        pixels = bj.preprocess(images, size=size)
        embedded = bj.encode_image(params, config, pixels)
        return pixels, bj.explain_bliss_prepared(embedded, prepared, _K)

    def without(params, images):
        return explained(params, images)[1]

    def with_maps(params, images):
        pixels, why = explained(params, images)
        along = bj.bliss_directions(why, prepared, _K)
        parts = jnp.stack([along.internal, along.external], axis=1)
        w = jnp.concatenate([parts, along.words[:, :_WORDS]], axis=1)
        return why, bj.attribute_patches(params, config, pixels, w)

    found = []
    for function in (without, with_maps):
        program, _ = compiled(function, params, images)
        run = lambda program=program: jax.block_until_ready(program(params, images))  # noqa: E731
        found.append(median(repeat(run, times)))
    return found[0], found[1]
