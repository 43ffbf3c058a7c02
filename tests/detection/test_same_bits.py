"""The score of an image is the same to the last bit alone, in any batch, in any order and in a stream."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bliss_jax as bj
from bliss_jax.detection.ties import ROUNDING, KnownEmbeddings

FILES = Path(__file__).parents[1] / "data" / "files"
COPIES = 8
WORDS = [f"word {i}" for i in range(20)]
"""Sizes as in the other tests of folders, which share the compiled programs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pictures, several copies each, and other pictures of several sizes."""
    root = tmp_path_factory.mktemp("normal") / "symbols"
    root.mkdir()
    for name, copy in itertools.product("abc", range(COPIES)):
        shutil.copy(FILES / "duplicates" / f"{name}.png", root / f"{name}{copy:02d}.png")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(20, 30), (32, 32), (64, 40), (33, 31), (32, 32), (90, 20)]):
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"other{i}.png")
    return root


@pytest.fixture(scope="module")
def detector(folder):
    model = bj.load_model("bliss-jax/untrained")
    with pytest.warns(bj.detection.NearDuplicateWarning, match=r"near-duplicates of fitted images"):
        return bj.Detector.fit(model, folder.parent, dictionary=WORDS)


@pytest.fixture(scope="module")
def files(folder) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def scores(detector, files) -> dict[Path, float]:
    return dict(zip(files, detector.score(files).tolist(), strict=True))


def test_equal_files_have_equal_scores_and_one_p_value(detector, files, scores):
    for name in "abc":
        copies = {scores[file] for file in files if file.name.startswith(name)}
        assert len(copies) == 1
    together = {row.path: row for row in bj.score_files(detector, [files[0].parent])}
    for file in (files[0], files[COPIES], files[-1]):
        [alone] = bj.score_files(detector, [file])
        assert alone == together[str(file)]
        assert alone.score == scores[file]
        assert alone.p_value == detector.p_values(np.array([scores[file]], np.float32))[0]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_order_changes_a_score(detector, files, scores, batch_size):
    order = np.random.default_rng(batch_size).permutation(len(files))
    chosen = [files[i] for i in order]
    rows = bj.score_files(detector, iter(chosen), batch_size=batch_size, patience=1e-3)
    assert [row.score for row in rows] == [scores[file] for file in chosen]


def test_all_kinds_of_images_have_the_same_score(detector, files, scores):
    some = [files[0], files[COPIES], *files[-6:]]
    expected = [scores[file] for file in some]
    pixels = [bj.read_image(file) for file in some]
    images = [Image.open(file) for file in some]
    contents = [file.read_bytes() for file in some]
    mixed = [some[0], *pixels[1:4], *images[4:6], *contents[6:]]
    for given in (pixels, images, contents, mixed, [str(file) for file in some]):
        np.testing.assert_array_equal(detector.score(given), np.float32(expected))
    same_size = np.stack([pixels[0], pixels[1]])  # one array may be resized on the device elsewhere
    np.testing.assert_array_equal(detector.score(same_size), np.float32(expected[:2]))
    for one in (some[0], str(some[0]), Image.open(some[0])):
        np.testing.assert_array_equal(detector.score(one), np.float32(expected[:1]))
    assert detector.explain([some[0]])[0].score == scores[some[0]]


def test_calibration_images_score_their_calibration_scores(detector, files, scores):
    """The embeddings of the fit have the bits of the embeddings of the score."""
    held_out = sorted(detector.calibration_scores.tolist())
    assert set(held_out) <= set(scores.values())
    copies = detector.update(files[:1], [0])
    assert copies.calibration_labels.tolist() == detector.calibration_labels.tolist()


def test_a_loaded_detector_and_another_batch_size_of_the_fit_keep_their_bits(
    detector, folder, files, tmp_path
):
    detector.save(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det", model=detector.model)
    assert loaded.images_per_device == detector.images_per_device
    np.testing.assert_array_equal(loaded.score(files[:3]), detector.score(files[:3]))
    other = bj.Detector.fit(detector.model, folder.parent, dictionary=WORDS,
                            batch_size=3)  # fmt: skip
    assert other.images_per_device == 3
    rows = {row.path: row.score for row in bj.score_files(other, files[-8:])}
    np.testing.assert_array_equal(other.score(files[-8:]), np.float32(list(rows.values())))


def test_embeddings_of_other_batches_are_tied_with_calibration_images(detector, folder):
    """Embeddings that a caller computes in other batches differ in the last bits; ties must not be lost."""
    rng = np.random.default_rng(1)
    known = detector.calibration_embeddings
    rounded = known * (1 + rng.choice([-1, 1], known.shape) * np.float32(3e-7))
    assert not np.array_equal(rounded, known)
    np.testing.assert_array_equal(detector.score(rounded), detector.calibration_scores)
    p = detector.p_values(detector.score(rounded))
    np.testing.assert_array_equal(p, detector.p_values(detector.calibration_scores))


def test_only_embeddings_within_the_rounding_error_are_replaced():
    rng = np.random.default_rng(2)
    known = rng.normal(size=(500, 16)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    table = KnownEmbeddings(known, ROUNDING["float32"])
    step = rng.normal(size=known.shape).astype(np.float32)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    near, far = known + np.float32(5e-5) * step, known + np.float32(2e-4) * step
    np.testing.assert_array_equal(table.snap(near), known)
    np.testing.assert_array_equal(table.snap(far), far)
    mixed = np.where(np.arange(500)[:, None] % 2 == 0, near, far)
    np.testing.assert_array_equal(table.snap(mixed)[::2], known[::2])
    np.testing.assert_array_equal(table.snap(mixed)[1::2], far[1::2])
    assert KnownEmbeddings(known[:0], 1.0).snap(far) is far


def test_background_and_bit_depth_of_the_fit_are_those_of_the_score(detector, tmp_path):
    drawing = FILES / "alpha" / "white_chess_king_alpha.png"
    camera = FILES / "sixteen_bit" / "white_chess_king_camera12bit.png"
    options = {"dictionary": WORDS}
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(30)]
    fitted = bj.Detector.fit(
        detector.model, images, None, ["x"], background="black", bit_depth=12, **options
    )
    assert fitted.provenance["images"]["decoding"] == {"background": "#000000", "bit_depth": 12}
    for file in (drawing, camera):
        pixels = bj.read_image(file, background="black", bit_depth=12)
        assert fitted.score(file) == fitted.score([pixels])
        assert next(bj.score_files(fitted, [file])).score == fitted.score([pixels])[0]
        assert fitted.score(file) != fitted.score([bj.read_image(file)])


def test_images_of_unknown_kinds_and_unreadable_files_are_named(detector, tmp_path):
    with pytest.raises(ValueError, match=r"image 1 is of type int, expected an array uint8"):
        detector.score([FILES / "duplicates" / "a.png", 3])
    with pytest.raises(ValueError, match=r"1 images cannot be read:\n.*'no\.png': No such file"):
        detector.score([FILES / "duplicates" / "a.png", "no.png"])
    with pytest.raises(ValueError, match="score_files scores folders"):
        detector.score(FILES)


@pytest.mark.slow
def test_the_bits_do_not_depend_on_the_number_of_devices(tmp_path):
    program = (
        "import sys, numpy as np, bliss_jax as bj\n"
        "model = bj.load_model('bliss-jax/tiny')\n"
        "rng = np.random.default_rng(0)\n"
        "x = [rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(21)]\n"
        "det = bj.Detector.fit(model, x, None, ['x'], dictionary=['a', 'b'], k=1, batch_size=2)\n"
        "np.save(sys.argv[1], np.concatenate([det.calibration_embeddings.ravel(), det.score(x)]))\n"
    )
    for devices in (1, 4):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        environment = {**__import__("os").environ, **flags}
        command = [sys.executable, "-c", program, str(tmp_path / f"{devices}.npy")]
        subprocess.run(command, env=environment, check=True, timeout=300)  # noqa: S603
    one, four = (np.load(tmp_path / f"{devices}.npy") for devices in (1, 4))
    np.testing.assert_array_equal(one, four)


@pytest.mark.slow
def test_a_process_that_was_forked_after_jax_started_raises_an_error():
    program = (
        "import os, sys, numpy as np, bliss_jax as bj, jax\n"
        "x = np.eye(8, dtype=np.float32)\n"
        "det = bj.Detector.fit_embeddings(x, None, ['x'], x[:1], ['a', 'b'], x[:2], k=1)\n"
        "det.score(x)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        det.score(x)\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "        os._exit(7)\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert "forked after JAX had started" in done.stdout
    assert "get_context('spawn')" in done.stdout
