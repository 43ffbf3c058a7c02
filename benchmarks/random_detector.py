"""Encoders and detectors with random weights, of which a benchmark measures time and memory, but no score."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bliss_jax import Detector
    from bliss_jax.models import Model

CLASSES, PHRASES, CALIBRATION = 10, 1_860, 400


def random_encoder(name: str, dtype: Any) -> "Model":
    """Returns `bliss-jax/untrained`, or an encoder of one of the architectures of the GPU benchmark."""
    from benchmarks.gpu.architectures import ARCHITECTURES
    from bliss_jax.models import Preprocessing, load_model
    from bliss_jax.models.untrained import untrained_params
    from bliss_jax.models.weights import as_params, flatten

    model = load_model("bliss-jax/untrained", dtype=dtype)
    if name == "untrained":
        return model
    config = replace(ARCHITECTURES[name].config, dtype=dtype)
    tensors = flatten(untrained_params(replace(config, dtype="float32")))
    params = as_params({key: np.asarray(leaf) for key, leaf in tensors.items()}, dtype)
    return replace(
        model, config=config, params=params, preprocessing=Preprocessing(config.vision.image_size)
    )


def random_detector(model: "Model") -> "Detector":
    """Returns a detector of 10 classes, 1,860 phrases and 400 calibration images, from random embeddings."""
    import bliss_jax as bj

    rng = np.random.default_rng(0)

    def unit(number: int) -> np.ndarray:
        x = rng.normal(size=(number, model.embedding_dim)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    normal = 2 * CALIBRATION
    return bj.Detector.fit_embeddings(
        unit(normal), np.arange(normal) % CLASSES, [f"class {i}" for i in range(CLASSES)],
        unit(CLASSES), [f"word {i}" for i in range(PHRASES)], unit(PHRASES), calibration=0.5,
        shrinkage=20.0,
    ).with_model(model)  # fmt: skip
