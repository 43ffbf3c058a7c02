"""Tests of the settings of preprocessing: their description, and the refusal of invalid ones."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from bliss_jax.models import Preprocessing
from bliss_jax.models.preprocessing import preprocess, resize, resize_bicubic


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# --- Provenance ----------------------------------------------------------------------------------


def test_describe_returns_json_values_and_names_the_statistics():
    described = Preprocessing(size=32).with_stats("reference").describe()
    assert json.loads(json.dumps(described)) == {
        "size": 32,
        "geometry": "crop",
        "resample": "bicubic",
        "stats": "reference",
        "mean": [0.4913, 0.4821, 0.4465],
        "std": [0.2470, 0.2434, 0.2615],
    }
    assert Preprocessing(mean=(0.1, 0.2, 0.3)).describe()["stats"] == "custom"


def test_with_stats_changes_only_the_statistics():
    squash = Preprocessing(size=20, geometry="squash", resample="bilinear")
    changed = squash.with_stats("siglip")
    assert changed.mean == changed.std == (0.5, 0.5, 0.5)
    assert dataclasses.replace(changed, mean=squash.mean, std=squash.std) == squash
    assert hash(changed.with_stats("clip")) == hash(squash)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"uint8 \[n, h, w, 3\], got float32 \[2, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.int8), "got int8"),
        (np.zeros((8, 8, 3), np.uint8), r"got uint8 \[8, 8, 3\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got uint8 \[2, 8, 8, 4\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"got uint8 \[2, 3, 8, 8\]"),
        (np.zeros((2, 0, 8, 3), np.uint8), r"must not be empty, got shape \[2, 0, 8, 3\]"),
        ([[[[1, 2, 3]]]], "got list"),
        (Image.new("RGB", (8, 8)), "got Image; call this function once per image size"),
    ],
)
def test_invalid_images_are_refused(images, message):
    for function in (resize_bicubic, preprocess):
        with pytest.raises(ValueError, match=message):
            function(images)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size must be a positive int, got 0"),
        ({"size": True}, "size must be a positive int, got True"),
        ({"size": 224.0}, "size must be a positive int, got 224.0"),
        ({"geometry": "crops"}, r"unknown geometry 'crops'.*did you mean 'crop'\?"),
        ({"resample": "lanczos"}, r"unknown resample 'lanczos', expected one of"),
        ({"mean": (0.5, 0.5)}, "mean must be a tuple of three finite numbers"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean must be a tuple of three finite numbers"),
        ({"std": (0.5, 0.5, float("nan"))}, "std must be a tuple of three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be positive in every channel"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


@pytest.mark.usefixtures("unchecked")
def test_errors_for_unknown_names_list_similar_ones():
    images = noise(1, 8, 8, 3)
    with pytest.raises(ValueError, match=r"unknown stats 'clp'.*did you mean 'clip'\?"):
        preprocess(images, 8, "clp")
    with pytest.raises(ValueError, match="unknown geometry 'pad'"):
        resize(images, 8, geometry="pad", resample="bicubic")
    with pytest.raises(ValueError, match="size must be a positive int, got -1"):
        resize(images, -1, geometry="crop", resample="bicubic")
