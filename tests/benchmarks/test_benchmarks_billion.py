"""The cost of a billion images follows from its inputs; the limits are where the arithmetic breaks."""

import json
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bliss_jax as bj


@pytest.fixture
def billion(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    return import_module("benchmarks.billion")


def moments(count, mean):
    return bj.ClassMoments(
        jnp.full(1, count, jnp.int32), jnp.full((1, 1), mean, jnp.float32), jnp.ones((1, 1, 1))
    )


def test_costs_are_images_over_rates(billion):
    given = {
        "encode-rate": 1000.0, "score-rate": 3000.0, "decode-rate": 50.0, "device-watts": 500.0,
        "read-rate": 2e6, "image-bytes": 1e5,
    }  # fmt: skip
    stages = {s.name: s for s in billion.stages({name: (x, "") for name, x in given.items()})}
    assert billion.hours(stages["encode"], 3.6e6) == 1
    assert billion.kilowatt_hours(stages["encode"], 3.6e6) == 0.5
    assert stages["read"].rate == 20
    assert billion.units_per_encoder(stages["decode"], 1000.0) == 20
    # Encoding and scoring take turns on a device: 1 / (1 / 1000 + 1 / 3000).
    units = {"core": 30.0, "device": 2.0, "drive": 40.0}
    found = billion.bottlenecks(list(stages.values()), units)
    assert [name for name, _ in found] == ["read", "decode", "encode and score"]
    np.testing.assert_allclose([rate for _, rate in found], [800, 1500, 1500])


def test_what_is_unknown_stays_blank(billion):
    values = {"encode-rate": (1000.0, "command line")}
    (table,) = [
        {row[0]: row[2:] for row in billion.costs_table(values, 1e9).rows},
    ]
    assert table["encode"] == ("1,000", "278", "1", "", "")
    assert table["decode"] == table["send"] == ("",) * 5
    assert [name for name, _ in billion.bottlenecks(billion.stages(values), {"core": 1.0})] == []


def test_rates_come_from_kept_numbers_but_not_from_shrunken_models(billion, tmp_path):
    case = {"what": "bliss_score", "texts": 1860, "images_per_s": 7.0}
    sections = {
        "encoders": {"B/32": {"images_per_s": 5.0}},
        "scores": {"a": case, "b": case | {"texts": 80_000}, "took_s": 1.0},
    }
    file = tmp_path / "kept.json"
    kept = {"quick": False, "machine": {"device": "some device"}, "sections": sections}
    file.write_text(json.dumps(kept))
    values = billion.from_gpu(file, "B/32")
    assert {name: value for name, (value, _) in values.items()} == {
        "encode-rate": 5.0,
        "score-rate": 7.0,
    }
    with pytest.raises(ValueError, match="L/14"):
        billion.from_gpu(file, "L/14")
    file.write_text(json.dumps(kept | {"quick": True}))
    with pytest.raises(ValueError, match="shrunken"):
        billion.from_gpu(file, "B/32")


def test_int32_counts_of_a_class_break_at_two_to_the_31(billion):
    """The number in the table of limits: one image less still counts."""
    most = bj.merge_moments(moments(2**31 - 2, 0.0), moments(1, 0.0))
    assert int(most.count[0]) == 2**31 - 1
    assert int(bj.merge_moments(most, moments(1, 0.0)).count[0]) < 0
    assert any("2,147,483,648" in row[1] for row in billion.limits(512, 256, 1e11, None))


@pytest.mark.parametrize("count", [10**6, 10**8, 2 * 10**9])
def test_smaller_shifts_than_the_stated_one_leave_a_float32_mean_unmoved(billion, count):
    batch, mean = 256, 0.03
    least = billion.smallest_shift_seen(count + batch, batch, mean)
    start = np.float32(mean)

    def merged(shift):
        return np.asarray(bj.merge_moments(moments(count, mean), moments(batch, mean + shift)).mean)

    assert merged(0.8 * least) == start
    assert merged(1.3 * least) > start


def test_a_billion_images_in_small_merges_miss_a_shift_that_larger_merges_see():
    """Half of the images lie at 0.03, half at 0.031: the mean is 0.0305."""

    def final_mean(batch):
        merges = 10**9 // batch

        def merge(state, i):
            mean = jnp.where(i < merges // 2, 0.03, 0.031).astype(jnp.float32)
            return bj.merge_moments(state, moments(batch, mean)), None

        start = moments(0, 0.0)
        return float(jax.jit(lambda: lax.scan(merge, start, jnp.arange(merges))[0].mean)()[0, 0])

    assert final_mean(256) == np.float32(0.03)
    assert final_mean(10_000) == pytest.approx(0.0305, abs=1e-6)


def test_reading_an_embeddings_file_takes_a_multiple_of_it(billion):
    """The embeddings themselves, and the bytes of the file, which are hashed."""
    from benchmarks.measure import in_fresh_process

    assert in_fresh_process(billion.measure_load_factor, 20_000, 512) > 2
