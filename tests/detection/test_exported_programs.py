"""Exported detectors: their values, their independence of this library, their memory, and what is refused."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from random_checkpoints import save_random_checkpoint
from record_oracles import NAFLEX
from reference import random_embeddings

import bliss_jax as bj
from bliss_jax.models import resize_on_host
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.naflex import NaflexPreprocessing
from bliss_jax.models.weights import load_params

NAMES = ("cat", "dog")
WORDS = [f"word {i}" for i in range(30)]
BATCH = 4
RUN = """
import json, sys
for name in ("bliss_jax", "flax", "transformers", "safetensors", "jaxtyping"):
    sys.modules[name] = None
import jax, numpy as np
from jax import export

file = np.load("det.npz")
program = jax.jit(export.deserialize(bytearray(file["program"])).call)
arrays = {name: file[name] for name in file.files if name.startswith("arrays/")}
np.savez("found.npz", *program(arrays, np.load("images.npy")))
"""


def load(path):
    """Returns the function of inputs that a file contains, and the program."""
    file = np.load(path)
    program = export.deserialize(bytearray(file["program"]))
    arrays = {name: file[name] for name in file.files if name.startswith("arrays/")}
    call = jax.jit(program.call)
    return lambda rows: [np.asarray(part) for part in call(arrays, rows)], program


def metadata(path):
    return json.loads(np.load(path)["metadata.json"])


def fit(model, pictures, **options):
    fitted, held_out = pictures[:40], pictures[40:60]
    return bj.Detector.fit(
        model,
        fitted,
        np.arange(40) % 2,
        NAMES,
        dictionary=WORDS,
        **{"k": 5, "calibration": bj.ImageDataset("held", held_out, np.arange(20) % 2, NAMES, ""),
           **options},
    )  # fmt: skip


def check(found, detector, images):
    """Compares an exported program's results with those of the detector."""
    scores, p_values, nearest = found
    expected = detector.score(images)
    assert [part.dtype.name for part in found] == ["float32", "float32", "int32"]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(p_values, detector.p_values(expected))
    why = detector.explain(images)
    assert [detector.class_names[c] for c in nearest] == [part.nearest_class for part in why]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(5).integers(0, 256, (70, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def detector(pictures):
    return fit(bj.load_model("bliss-jax/untrained"), pictures)


@pytest.fixture(scope="module")
def path(detector, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "det.npz"
    detector.export(file, batch_size=BATCH)
    return file


@pytest.fixture(scope="module")
def exported(path):
    return load(path)


@pytest.mark.parametrize("number", [1, 10])
def test_the_program_returns_the_scores_p_values_and_classes_of_the_detector(
    number, detector, exported, pictures
):
    new = pictures[60 : 60 + number]
    check(exported[0](new), detector, new)


def test_no_images_give_empty_results(exported, pictures):
    scores, p_values, nearest = exported[0](pictures[:0])
    assert scores.shape == p_values.shape == nearest.shape == (0,)


def test_calibration_images_have_the_scores_with_which_they_calibrate(detector, exported, pictures):
    scores, p_values, _ = exported[0](pictures[40:60])
    np.testing.assert_array_equal(scores, detector.calibration_scores)
    np.testing.assert_array_equal(p_values, detector.p_values(detector.calibration_scores))


def test_the_program_is_for_any_number_of_images_on_several_platforms(path, exported):
    _, program = exported
    assert str(program.in_avals[-1].shape) == "(n_plus_1 - 1, 32, 32, 3)"
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert metadata(path)["platforms"] == ["cpu", "cuda", "tpu"]


def test_the_memory_does_not_grow_with_the_activations_of_all_images(path, exported):
    file, (_, program) = np.load(path), exported
    arrays = {name: file[name] for name in file.files if name.startswith("arrays/")}

    def temporary(number):
        images = jax.ShapeDtypeStruct((number, 32, 32, 3), np.uint8)
        compiled = jax.jit(program.call).lower(arrays, images).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    size = 32 * 32 * 3
    assert (
        temporary(64 + 512) - temporary(64) < 1.5 * 512 * size
    )  # a padded copy; activations are 40 times


def test_the_program_runs_without_this_library(path, detector, pictures, tmp_path):
    (tmp_path / "det.npz").write_bytes(path.read_bytes())
    np.save(tmp_path / "images.npy", pictures[55:])
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    check([found[f"arr_{i}"] for i in range(3)], detector, pictures[55:])


def test_the_file_describes_itself(path, detector, tmp_path):
    described = metadata(path)
    assert described["inputs"] == {"name": "images", "dtype": "uint8", "shape": ["n", 32, 32, 3]}
    assert described["class_names"] == list(NAMES)
    assert described["preprocessing"] == detector.model.preprocessing.describe()
    assert described["thresholds"] == {str(a): detector.threshold(a) for a in (0.1, 0.05)}
    assert described["model"]["weights_sha256"] == detector.model.weights_hash
    detector.save(tmp_path / "det")
    content = (tmp_path / "det").read_bytes()
    assert described["detector_sha256"] == hashlib.sha256(content).hexdigest()


def test_the_file_holds_the_image_tower_only_and_no_paths(path):
    file = np.load(path)
    assert not [name for name in file.files if "text_" in name]
    assert not re.findall(rb"[\w.-]+\.py\b", bytes(file["program"]))
    assert str(Path(bj.__file__).parent).encode() not in bytes(file["program"])


@pytest.mark.parametrize("member", ["program", "arrays/score/mean.npy"])
def test_a_damaged_file_is_an_error(member, path, tmp_path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(member).header_offset
        size = archive.getinfo(member).file_size
    content[offset + 100 + size // 2] ^= 1
    (tmp_path / "det.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        load(tmp_path / "det.npz")


@pytest.mark.slow
def test_a_bfloat16_model_keeps_its_kernels_in_bfloat16(pictures, tmp_path):
    detector = fit(bj.load_model("bliss-jax/untrained", dtype="bfloat16"), pictures)
    detector.export(tmp_path / "det.npz", batch_size=BATCH)
    kernels = [a for name, a in np.load(tmp_path / "det.npz").items() if name.endswith("kernel")]
    assert {kernel.dtype.name for kernel in kernels} == {"uint16"}
    call, _ = load(tmp_path / "det.npz")
    new = pictures[60:]
    scores, p_values, _ = call(new)
    # A rounding of bfloat16 moves a score by several percent of a standard deviation.
    np.testing.assert_allclose(scores, detector.score(new), atol=0.1)
    np.testing.assert_array_equal(p_values, detector.p_values(scores))
    np.testing.assert_array_equal(call(pictures[40:50])[0], detector.calibration_scores[:10])


@pytest.fixture(scope="module")
def of_embeddings(detector, tmp_path_factory):
    file = tmp_path_factory.mktemp("embeddings") / "det.npz"
    replace(detector, model=None).export(file, inputs="embeddings", platforms=["cpu"])
    return load(file)


def test_a_program_for_embeddings_needs_no_encoder(detector, of_embeddings, pictures):
    call, program = of_embeddings
    embeddings = np.asarray(detector.model.encode_images(pictures[60:]))
    check(call(embeddings), detector, embeddings)
    assert program.platforms == ("cpu",)


def test_embeddings_equal_up_to_rounding_have_the_score_of_the_calibration_image(
    detector, of_embeddings
):
    noise = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    noise *= 5e-6 / np.linalg.norm(noise, axis=1, keepdims=True)
    scores, _, _ = of_embeddings[0](detector.calibration_embeddings + noise)
    np.testing.assert_array_equal(scores, detector.calibration_scores)


def test_embeddings_without_unit_norm_have_no_score(detector, of_embeddings):
    rows = detector.calibration_embeddings[:3] * np.array([[1], [2], [np.nan]], np.float32)
    scores, p_values, nearest = of_embeddings[0](rows)
    assert np.isnan(scores).tolist() == np.isnan(p_values).tolist() == [False, True, True]
    assert (nearest == -1).tolist() == [False, True, True]


def test_without_calibration_images_p_values_are_nan(pictures, tmp_path):
    detector = fit(bj.load_model("bliss-jax/untrained"), pictures, calibration=0.0)
    detector.export(tmp_path / "det.npz", batch_size=BATCH, platforms=["cpu"])
    scores, p_values, _ = load(tmp_path / "det.npz")[0](pictures[60:])
    np.testing.assert_allclose(scores, detector.score(pictures[60:]), rtol=1e-4, atol=1e-4)
    assert np.isnan(p_values).all()
    assert metadata(tmp_path / "det.npz")["thresholds"] == {}


class OwnEncoder:
    """An encoder that is not a `Model`."""

    name, embedding_dim, fingerprint = "own", 64, "1"

    def encode_images(self, images): ...

    def encode_texts(self, texts): ...


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"model": None}, {}, r"no encoder.*inputs='embeddings'"),
        ({"model": OwnEncoder()}, {}, r"expected a Model.*got own.*inputs='embeddings'"),
        ({}, {"platforms": ["gpu"]}, "platforms: expected some of cpu, cuda, rocm, tpu, got 'gpu'"),
        ({}, {"platforms": []}, "platforms: expected some of .*, got none"),
        ({}, {"inputs": "pixels"}, "inputs: expected 'images' or 'embeddings', got 'pixels'"),
        ({}, {"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ],
)
def test_invalid_exports_are_refused(change, options, message, detector, tmp_path, unchecked):
    with pytest.raises(ValueError, match=message):
        replace(detector, **change).export(tmp_path / "det.npz", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bliss-jax\[export\]'"):
        detector.export(tmp_path / "det.npz")


@pytest.mark.slow
def test_a_naflex_model_takes_packed_images(tmp_path):
    save_random_checkpoint(tmp_path, NAFLEX)
    config = read_config(tmp_path, "float32")
    half = (0.5, 0.5, 0.5)
    model = replace(
        bj.load_model("bliss-jax/untrained"),
        config=config,
        params=load_params(tmp_path, config)[0],
        preprocessing=NaflexPreprocessing(32, "squash", "bilinear", half, half, 8, 20),
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 40, 3)).astype(np.uint8) for h in (20, 30, 60) * 8]
    rows = random_embeddings(rng, 24, model.embedding_dim)
    detector = bj.Detector.fit_embeddings(
        np.asarray(model.encode_images(images[:20])), None, ["cat"], rows[:1], WORDS[:24], rows, k=5
    )
    detector = replace(detector, model=model)
    detector.export(tmp_path / "det.npz", batch_size=BATCH, platforms=["cpu"])
    packed = np.stack([resize_on_host(image, model.preprocessing) for image in images[20:]])
    check(load(tmp_path / "det.npz")[0](packed), detector, images[20:])
