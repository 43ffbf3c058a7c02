"""The data set `glyphs`: class names, rendering and protocols."""

import unicodedata

import numpy as np
import pytest

from bliss_jax.datasets import GLYPH_PROTOCOLS, load_dataset, load_protocol
from bliss_jax.datasets import glyph_scenes as gs
from bliss_jax.datasets.glyph_splits import glyph_splits
from bliss_jax.datasets.glyphs import FACES, FAMILIES, family_classes, glyph_names, load_glyphs
from bliss_jax.text import find_overlap, load_dictionary

SYMBOLS = "".join(FAMILIES.values())
SPLITS = ("train", "validation", "test")


def scenes(n=6, split="train", seed=0, small=1):
    rng = np.random.default_rng(seed)
    return gs.draw_scenes(rng, np.zeros(n, np.int32), split, num_faces=1, num_small=small)


def test_class_names_are_the_unicode_names_of_distinct_symbols():
    names = glyph_names()
    assert len(set(SYMBOLS)) == len(SYMBOLS) == len(names)
    assert [unicodedata.lookup(name) for name in names] == list(SYMBOLS)


def test_the_first_face_of_each_split_contains_every_symbol():
    for split in SPLITS:
        assert not set(SYMBOLS) - set(gs.characters(FACES[split][0])), split


def test_splits_share_no_face_and_no_shade():
    faces = [face for split in SPLITS for face in FACES[split]]
    assert len(set(faces)) == len(faces)
    shades = {split: set(np.unique(scenes(200, split).shade)) for split in SPLITS}
    assert not shades["train"] & shades["test"]
    assert not shades["train"] & shades["validation"]
    assert not shades["validation"] & shades["test"]


def test_rendering_is_deterministic():
    first, second = load_glyphs("validation"), load_glyphs("validation")
    np.testing.assert_array_equal(np.asarray(first.images), np.asarray(second.images))
    assert (np.bincount(first.labels) == 10).all()


@pytest.mark.slow
def test_the_test_split_has_twenty_images_of_each_class():
    dataset = load_dataset("glyphs", "test")
    assert dataset.name == "glyphs"
    assert np.asarray(dataset.images).shape == (20 * len(SYMBOLS), 32, 32, 3)
    assert (np.bincount(dataset.labels) == 20).all()
    assert dataset.class_names == glyph_names()


def test_a_mask_placed_at_its_own_size_is_unchanged():
    mask = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    there = gs.place_masks(mask, np.array([32.0]), np.array([[16.0, 16.0]]), np.zeros(1), 32)
    np.testing.assert_allclose(there, mask / 255, atol=1e-5)


def test_a_mask_is_translated_and_rotated():
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[0, 4, 20] = 255
    moved = gs.place_masks(mask, np.array([32.0]), np.array([[18.0, 17.0]]), np.zeros(1), 32)
    assert np.unravel_index(moved[0].argmax(), (32, 32)) == (5, 22)
    # A quarter turn clockwise (y points down) moves a point from right of the centre to below it.
    turned = gs.place_masks(
        mask, np.array([32.0]), np.array([[16.0, 16.0]]), np.array([np.pi / 2]), 32
    )
    assert np.unravel_index(turned[0].argmax(), (32, 32)) == (20, 27)


def test_a_plain_scene_has_the_colours_of_the_glyph_and_the_background():
    import dataclasses

    plain = dataclasses.replace(
        scenes(),
        noise=np.zeros((6, 32, 32, 3)),
        clutter=np.full((6, gs.MAX_CLUTTER), -1),
        texture=np.zeros(6, np.int32),
    )
    full = np.full((1, 1, len(gs.STROKES), gs.LARGE, gs.LARGE), 255, np.uint8)
    images = gs.render(plain, full, np.zeros((1, gs.SMALL, gs.SMALL), np.uint8))
    colours = gs.palette()
    for i, image in enumerate(images):
        x, y = plain.centre[i].astype(int)
        np.testing.assert_array_equal(image[y, x], colours[plain.colour[i, 0], plain.shade[i, 0]])
        ground = colours[plain.colour[i, 1], plain.shade[i, 1]]
        assert (image == ground).all(axis=-1).any()


def test_glyph_and_background_differ_in_luma():
    drawn = scenes(2000)
    luma = gs.palette() @ np.array([0.299, 0.587, 0.114])
    glyph, ground = (luma[drawn.colour[:, i], drawn.shade[:, i]] for i in range(2))
    assert np.abs(glyph - ground).min() > 30


def test_noise_has_mean_zero():
    assert abs(scenes(300).noise.mean()) < 0.1


@pytest.mark.parametrize("name", GLYPH_PROTOCOLS)
def test_the_splits_of_a_protocol_contain_only_classes_of_the_data_set(name):
    protocol = load_protocol(name, dataset="glyphs", num_classes=len(SYMBOLS))
    assert protocol.family == "glyphs"
    for split in protocol.splits:
        assert max(split.normal + split.anomalous) < len(SYMBOLS)


def test_each_protocol_divides_the_families_as_documented():
    families = list(family_classes().values())
    assert [normal for normal, _ in glyph_splits("glyphs-family")] == families
    for (normal, anomalous), family in zip(
        glyph_splits("glyphs-half-family"), families, strict=True
    ):
        assert sorted(normal + anomalous) == list(family)
        assert 0 <= len(normal) - len(anomalous) <= 1
    for normal, anomalous in glyph_splits("glyphs-leave-sibling-out"):
        assert len(anomalous) == 1
        assert tuple(sorted(normal + anomalous)) in families
    thirds = glyph_splits("glyphs-third")
    assert sorted(i for _, anomalous in thirds for i in anomalous) == list(range(len(SYMBOLS)))
    for normal, anomalous in (*thirds, *glyph_splits("glyphs-leave-one-out")):
        assert sorted(normal + anomalous) == list(range(len(SYMBOLS)))
    assert all(len(anomalous) == 1 for _, anomalous in glyph_splits("glyphs-leave-one-out"))
    counts = {name: len(glyph_splits(name)) for name in GLYPH_PROTOCOLS}
    assert list(counts.values()) == [20, 20, 53, 20, 3, 26]


def test_protocols_of_glyphs_are_refused_for_other_data_sets():
    with pytest.raises(ValueError, match="glyphs"):
        load_protocol("glyphs-third", dataset="cifar10", num_classes=10)


def test_the_dictionary_unicode_names_has_the_names_of_the_visible_characters():
    dictionary = load_dictionary("unicode-names")
    assert [unicodedata.lookup(name) for name in dictionary] == list(gs.characters())
    assert len(find_overlap(dictionary, glyph_names())) == len(SYMBOLS)
