"""The options that write maps: `explain --map` and `score --report --maps`."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import bliss_jax as bj
from bliss_jax.cli import main


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def test_options_that_do_not_fit_together_are_usage_errors(image):
    detector = image.with_name("det.safetensors")
    detector.touch()
    for arguments, message in (
        (("explain", detector, image, image, "--map", "out.png"), "exactly one image file"),
        (("explain", detector, image.parent, "--map", "out.png"), "exactly one image file"),
        (("explain", detector, image, "--map", "out.jpg"), "ends with .png, got out.jpg"),
        (("score", detector, image, "--maps"), "--maps needs --report DIR"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.output


@pytest.mark.slow
def test_maps_have_the_size_of_the_image_file_and_mark_what_was_cropped_away(image):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    model = bj.load_model("bliss-jax/tiny")
    words = ("black star", "letter")
    fitted = bj.Detector.fit(model, pixels, None, ["noise"], dictionary=words, k=1, calibration=0.0)
    detector, folder = image.with_name("det.safetensors"), image.with_name("report")
    fitted.save(detector)
    out = image.with_name("out.png")
    result = run("explain", detector, image, "--map", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).size == (40, 20)
    array = np.load(out.with_suffix(".npy"))
    assert array.dtype == np.float32
    assert array.shape == (20, 40)
    np.testing.assert_array_equal(
        np.isnan(array).all(axis=0), [*[True] * 10, *[False] * 20, *[True] * 10]
    )
    result = run("score", detector, image, "--report", folder, "--maps", "--quiet")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(folder / "maps" / "001.npy"), array)
    assert 'class="heat"' in (folder / "index.html").read_text()
