"""The command export."""

import json

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from jax import export

import bliss_jax as bj
from bliss_jax.cli import main
from bliss_jax.cli.exporting import PLATFORMS
from bliss_jax.detection import DEFAULT_PLATFORMS
from bliss_jax.detection import PLATFORMS as OF_LIBRARY


def run(*arguments: object):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with the detector of an encoder, and one that was fitted to embeddings."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3)).astype(np.uint8)
    words = [f"word {i}" for i in range(20)]
    model = bj.load_model("bliss-jax/untrained")
    bj.Detector.fit(model, images, None, ["cat"], dictionary=words).save(folder / "det")
    rows = np.asarray(model.encode_images(images))
    texts = np.asarray(model.encode_texts(["cat", *words]))
    detector = bj.Detector.fit_embeddings(rows, None, ["cat"], texts[:1], words, texts[1:])
    detector.save(folder / "embeddings")
    np.save(folder / "images.npy", images)
    return folder


def test_export_writes_the_file_of_detector_export(folder, tmp_path):
    file = tmp_path / "det.npz"
    result = run(folder / "det", "-o", file, "--platform", "cpu", "--batch-size", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert f"wrote {file}" in result.stderr
    content = np.load(file)
    described = json.loads(content["metadata.json"])
    assert described["platforms"] == ["cpu"]
    assert described["batch_size"] == 3
    program = export.deserialize(bytearray(content["program"]))
    arrays = {name: content[name] for name in content.files if name.startswith("arrays/")}
    images = np.load(folder / "images.npy")
    expected = bj.Detector.load(folder / "det").score(images)
    scores = jax.jit(program.call)(arrays, images)[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_detector_without_encoder_is_exported_for_embeddings(folder, tmp_path):
    result = run(folder / "embeddings", "-o", tmp_path / "det.npz")
    assert result.exit_code == 1
    assert "this detector has no encoder" in result.stderr
    assert "--inputs 'embeddings' exports a program for embeddings" in result.stderr
    result = run(folder / "embeddings", "-o", tmp_path / "det.npz", "--inputs", "embeddings")
    assert result.exit_code == 0, result.output
    described = json.loads(np.load(tmp_path / "det.npz")["metadata.json"])
    assert described["inputs"] == {"name": "embeddings", "dtype": "float32", "shape": ["n", 64]}
    assert described["platforms"] == list(DEFAULT_PLATFORMS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{folder}/det"], 2, "Missing option '-o'"),
        (["{folder}/det", "-o", "{folder}/none/x.npz"], 1, "there is no folder"),
        (["{folder}/none", "-o", "{folder}/x.npz"], 1, "found no such file"),
        (["{folder}/images.npy", "-o", "{folder}/x.npz"], 1, "not a usable detector"),
        (["{folder}/det", "-o", "{folder}/x.npz", "--platform", "gpu"], 2, "'gpu' is not one of"),
    ],
)
def test_invalid_arguments_are_refused(arguments, code, message, folder):
    result = run(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == code
    assert message in result.stderr
    assert not (folder / "x.npz").exists()


def test_the_command_knows_the_platforms_of_the_library():
    assert PLATFORMS == OF_LIBRARY
    [option] = [p for p in main.commands["export"].params if p.name == "platforms"]
    assert option.default == DEFAULT_PLATFORMS


@pytest.mark.slow
def test_a_detector_of_an_own_score_is_exported_with_its_function(folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def plain(embeddings, label_embeddings):\n    return -(embeddings @ label_embeddings.T).max(axis=1)\n"
    )
    detector = bj.Detector.load(folder / "embeddings")
    place = f"{tmp_path / 'mine.py'}:plain"
    detector.with_score(bj.Score("plain", lambda embeddings: embeddings[:, 0])).save(
        tmp_path / "det"
    )
    arguments = [tmp_path / "det", "-o", tmp_path / "det.npz", "--inputs", "embeddings"]
    refused = run(*arguments, "--platform", "cpu")
    assert refused.exit_code == 1
    assert "is not a score of this library" in refused.stderr
    result = run(*arguments, "--platform", "cpu", "--score", place)
    assert result.exit_code == 0, result.output
    content = np.load(tmp_path / "det.npz")
    program = export.deserialize(bytearray(content["program"]))
    arrays = {name: content[name] for name in content.files if name.startswith("arrays/")}
    x = detector.calibration_embeddings[:0]
    rows = np.asarray(detector.label_embeddings)
    assert jax.jit(program.call)(arrays, x)[0].shape == (0,)
    expected = -(rows @ detector.label_embeddings.T).max(axis=1)
    np.testing.assert_allclose(jax.jit(program.call)(arrays, rows)[0], expected, rtol=1e-5)
