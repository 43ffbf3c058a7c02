"""The scenes with one odd symbol: balance, masks, and splits that share nothing."""

import numpy as np
import pytest

from bliss_jax.datasets import odd_glyphs as og

NUMBER = len(og.NORMAL_SYMBOLS) * len(og.CLUTTER) * len(og.SIZES)


@pytest.fixture(scope="module")
def drawn():
    return og.draw_odd_scenes("validation", NUMBER, odd=True)


def test_classes_sizes_and_clutter_are_balanced(drawn):
    cells = np.stack([drawn.labels, drawn.odd_size, drawn.clutter], axis=1)
    assert len(np.unique(cells, axis=0)) == NUMBER


def test_a_mask_is_one_box_of_the_odd_symbols_size(drawn):
    area = drawn.masks.sum(axis=(1, 2))
    np.testing.assert_allclose(area, drawn.odd_size.astype(float) ** 2, rtol=0.06)
    for mask, size in zip(drawn.masks, drawn.odd_size, strict=True):
        extent = np.ptp(np.argwhere(mask), axis=0) + 1
        assert (extent >= size - 1).all()
        assert (
            extent <= size * 1.3 + 2
        ).all()  # a box turned by 0.3 is cos 0.3 + sin 0.3 times as wide


def test_only_the_odd_symbol_differs_from_the_same_scene_with_a_normal_symbol():
    table = og.symbol_masks("AX", "test")
    size = np.full((4, og.SLOTS), 12, np.int32)
    normal = np.zeros((4, og.SLOTS), np.int32)
    odd = normal.copy()
    odd[:, 0] = 1
    (first, box), (second, same_box) = (
        og.render_symbols(np.random.default_rng(5), "test", table, symbol, size)
        for symbol in (normal, odd)
    )
    np.testing.assert_array_equal(box, same_box)
    differs = (first != second).any(axis=-1)
    assert differs.any(axis=(1, 2)).all()
    assert (differs & ~box).mean() < 0.002  # antialiased pixels at the border of the box


def test_boxes_do_not_overlap_and_lie_in_the_scene():
    size = np.random.default_rng(0).choice(np.asarray(og.SIZES, np.int32), (40, og.SLOTS))
    centre = og._centres(np.random.default_rng(1), size)
    for sizes, centres in zip(size, centre, strict=True):
        there = np.flatnonzero(sizes)
        assert there[0] == 0
        for i in there:
            assert (np.abs(centres[i] - og.SIDE / 2) <= (og.SIDE - sizes[i]) / 2).all()
            for j in there[there < i]:
                assert np.abs(centres[i] - centres[j]).max() >= (sizes[i] + sizes[j]) / 2


def test_the_odd_symbol_is_of_another_family_and_of_the_split():
    rng = np.random.default_rng(0)
    for label, family in enumerate(og.FAMILIES.values()):
        for _ in range(20):
            odd = og._odd_symbol(rng, label, "test") - len(og.NORMAL_SYMBOLS)
            assert og.ODD_SYMBOLS["test"][odd] not in family
    assert not set(og.ODD_SYMBOLS["test"]) & set(og.ODD_SYMBOLS["validation"])
    assert not set(og.NORMAL_SYMBOLS) & {s for own in og.ODD_SYMBOLS.values() for s in own}


def test_splits_and_seeds_give_other_scenes_and_equal_seeds_the_same():
    first, same = (og.draw_odd_scenes("test", 4, odd=True) for _ in range(2))
    other = og.draw_odd_scenes("test", 4, odd=True, seed=99)
    np.testing.assert_array_equal(first.images, same.images)
    assert (first.images != other.images).any(axis=(1, 2, 3)).all()
    normal = og.draw_odd_scenes("train", 4, odd=False)
    assert not normal.masks.any()
    assert (normal.odd_size == 0).all()
    with pytest.raises(ValueError, match="expected one of"):
        og.draw_odd_scenes("train", 4, odd=True)
