"""The cost of a billion images follows from its inputs, and the stated limits are those of the arithmetic."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bliss_jax as bj
from benchmarks import billion
from benchmarks.measure import in_fresh_process


def moments(count, mean):
    return bj.ClassMoments(
        jnp.full(1, count, jnp.float32), jnp.full((1, 1), mean, jnp.float32), jnp.ones((1, 1, 1))
    )


def test_costs_are_images_over_rates():
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


def test_cells_of_unknown_rates_are_blank():
    values = {"encode-rate": (1000.0, "command line")}
    (table,) = [
        {row[0]: row[2:] for row in billion.costs_table(values, 1e9).rows},
    ]
    assert table["encode"] == ("1,000", "278", "1", "", "")
    assert table["decode"] == table["send"] == ("",) * 5
    assert [name for name, _ in billion.bottlenecks(billion.stages(values), {"core": 1.0})] == []


def write_results(file, quick):
    records = {
        "machine": {"device": "some device", "quick": quick},
        "encoder B/32": {"status": "measured", "images_per_s": 5.0},
        "scores 1860": {"status": "measured", "bliss": {"images_per_s": 7.0}},
    }
    lines = [json.dumps({"case": name, **numbers}) for name, numbers in records.items()]
    file.write_text("\n".join(lines))


def test_rates_come_from_results_of_full_models_only(tmp_path):
    file = tmp_path / "results.jsonl"
    write_results(file, quick=False)
    values = billion.from_gpu(file, "B/32")
    assert {name: value for name, (value, _) in values.items()} == {
        "encode-rate": 5.0,
        "score-rate": 7.0,
    }
    with pytest.raises(ValueError, match="expected the case 'encoder L/14'"):
        billion.from_gpu(file, "L/14")
    write_results(file, quick=True)
    with pytest.raises(ValueError, match="found numbers of --quick"):
        billion.from_gpu(file, "B/32")


def test_float32_counts_of_single_images_stop_at_two_to_the_24():
    """This is the number in the table of limits. Up to it, and in batches of 256 beyond it, the count is right."""
    most = bj.merge_moments(moments(2**24 - 1, 0.0), moments(1, 0.0))
    assert int(most.count[0]) == 2**24
    assert int(bj.merge_moments(most, moments(1, 0.0)).count[0]) == 2**24
    assert int(bj.merge_moments(most, moments(256, 0.0)).count[0]) == 2**24 + 256
    assert any("16,777,216" in row[1] for row in billion.limits(512, 256, 1e11, None))


@pytest.mark.parametrize("count", [10**6, 10**8, 2 * 10**9])
def test_shifts_below_the_stated_one_leave_a_float32_mean_unchanged(count):
    batch, mean = 256, 0.03
    least = billion.smallest_shift_seen(count + batch, batch, mean)
    start = np.float32(mean)

    def merged(shift):
        return np.asarray(bj.merge_moments(moments(count, mean), moments(batch, mean + shift)).mean)

    assert merged(0.8 * least) == start
    assert merged(1.3 * least) > start


def test_a_billion_images_merged_in_small_batches_lose_a_shift_that_large_batches_keep():
    """Half of the images are at 0.03 and half at 0.031, so the mean is 0.0305."""

    def final_mean(batch):
        merges = 10**9 // batch

        def merge(state, i):
            mean = jnp.where(i < merges // 2, 0.03, 0.031).astype(jnp.float32)
            return bj.merge_moments(state, moments(batch, mean)), None

        start = moments(0, 0.0)
        return float(jax.jit(lambda: lax.scan(merge, start, jnp.arange(merges))[0].mean)()[0, 0])

    assert final_mean(256) == np.float32(0.03)
    assert final_mean(10_000) == pytest.approx(0.0305, abs=1e-6)


@pytest.mark.slow
def test_reading_an_embeddings_file_needs_more_than_twice_its_size():
    """Memory holds the embeddings and the bytes of the file, which are hashed."""
    assert in_fresh_process(billion.measure_load_factor, 20_000, 512) > 2
