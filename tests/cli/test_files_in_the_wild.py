"""Folders in the wild on the command line: what is skipped, refused, kept and said, and how fast."""

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import bliss_jax as bj
from bliss_jax.cli import main
from bliss_jax.cli.class_names import odd_class_names

FILES = Path(__file__).parents[1] / "data" / "files"
UNTRAINED = ["--model", "bliss-jax/untrained"]


def run(*arguments: object, **options):
    return CliRunner().invoke(main, [str(a) for a in arguments], **options)


def picture(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("\n".join(f"word {i}" for i in range(20)))
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes with thumbnails, sidecars, a HEIC file without content, a link and an empty class."""
    root = tmp_path_factory.mktemp("photos")
    for name, i in itertools.product(("cat", "dog"), range(10)):
        photo = picture(root / name / f"{i}.png", i + 100 * (name == "cat"))
        picture(root / name / "@eaDir" / photo.name / "SYNOPHOTO_THUMB.png", i)
    (root / "cat" / "clip.MOV").write_bytes(b"movie")
    (root / "cat" / "0.AAE").write_text("")
    (root / "dog" / "0.json").write_text("{}")
    (root / "dog" / "Icon\r").write_text("")
    (root / "dog" / "bad.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(30))
    (root / "dog" / "out.png").symlink_to("/etc/hostname")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def fitted(photos, words, tmp_path_factory):
    """Returns the result of fit, and the detector's file."""
    file = tmp_path_factory.mktemp("detector") / "det.safetensors"
    result = run(
        "fit", "--images", photos, "--folders", "--dictionary", words, *UNTRAINED, "-o", file
    )
    return result, file


SKIPPED = [
    "'dog/out.png': a link that leads out of the folder",
    "'empty': a class folder without images",
]


def test_fit_lists_skips_and_counts_what_is_no_image(fitted, photos, words, tmp_path):
    result, file = fitted
    assert result.exit_code == 3, result.output
    detector = bj.Detector.load(file)
    assert detector.class_names == ("cat", "dog")
    assert sum(detector.provenance["fitted"].values()) + len(detector.calibration_labels) == 20
    for line in SKIPPED:
        assert f"skipped: {line}" in result.stderr
        assert line in detector.provenance["images"]["unreadable"]
    assert "skipped: cannot read image 'dog/bad.heic': H" in result.stderr
    assert "ignored 2 x @eaDir, 1 x 'Icon\\r' (hidden or created by the system)" in result.stderr
    assert "skipped 3 files with no image extension: 1 x .aae, 1 x .json, 1 x .mov" in result.stderr
    assert (
        "1 link was not followed; --follow-links follows links out of the folder" in result.stderr
    )
    strict = run(
        "fit", "--images", photos, "--folders", *UNTRAINED, "--strict", "-o", tmp_path / "d"
    )
    assert strict.exit_code == 1
    assert all(line in strict.stderr for line in SKIPPED)
    assert not (tmp_path / "d").exists()


def test_score_finds_the_same_files_as_fit(fitted, photos):
    result = run("score", fitted[1], photos)
    assert result.exit_code == 3
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    names = [os.path.relpath(row["path"], photos) for row in rows]
    expected = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]
    assert sorted(names) == sorted([*expected, "dog/bad.heic", "dog/out.png"])
    assert "ignored 2 x @eaDir" in result.stderr
    chosen = run("score", fitted[1], photos, "--glob", "cat/1*.png", "--quiet")
    assert [row["path"] for row in csv.DictReader(io.StringIO(chosen.stdout))] == [
        str(photos / "cat" / "1.png")
    ]
    assert chosen.exit_code == 0


def test_a_class_whose_files_are_all_unreadable_is_an_error_with_the_reasons(words, tmp_path):
    result = run("fit", "--images", FILES / "class_unreadable", "--folders", "--dictionary", words,
                 *UNTRAINED, "-o", tmp_path / "det")  # fmt: skip
    assert result.exit_code == 1
    assert "none of the 1 images of class 'a' can be read" in result.stderr
    assert "'a/1.png': the file is empty" in result.stderr


def test_fit_on_the_layout_of_mvtec_uses_the_training_images(words, tmp_path):
    root = tmp_path / "bottle"
    for i in range(30):  # as many as in the test of --group-by, whose programs are compiled
        picture(root / "train" / "good" / f"{i}.png", i)
    picture(root / "test" / "crack" / "0.png", 50)
    picture(root / "ground_truth" / "crack" / "0_mask.png", 90)
    result = run(
        "fit",
        "--images",
        root,
        "--folders",
        "--dictionary",
        words,
        *UNTRAINED,
        "-o",
        tmp_path / "det",
    )
    assert result.exit_code == 0, result.output
    assert "the class 'good' is named like its folder, 'bottle'" in result.stderr
    detector = bj.Detector.load(tmp_path / "det")
    assert detector.class_names == ("bottle",)
    assert int(detector.moments.count[0]) + len(detector.calibration_labels) == 30


def test_group_by_holds_out_whole_groups_and_calibrates_with_one_image_of_each(words, tmp_path):
    for scene, frame in itertools.product(range(10), range(3)):
        picture(tmp_path / "video" / f"scene{scene}_{frame}.png", scene)
    fit = [
        "fit",
        "--images",
        tmp_path / "video",
        "--labels",
        "street",
        "--dictionary",
        words,
        *UNTRAINED,
    ]
    plain = run(*fit, "-o", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    assert "warning: 6 of 6 calibration images are near-duplicates" in plain.stderr
    assert "--group-by" in plain.stderr
    grouped = run(*fit, "--group-by", r"(scene\d+)", "-o", tmp_path / "grouped")
    assert grouped.exit_code == 0, grouped.output
    assert "near-duplicates" not in grouped.stderr
    assert "one of each of 2 held-out groups of 10, which have 6 images" in grouped.stderr
    detector = bj.Detector.load(tmp_path / "grouped")
    assert len(detector.calibration_labels) == 2
    assert int(detector.moments.count[0]) == 24
    assert "one of each of 2 held-out groups" in run("info", tmp_path / "grouped").stdout
    wrong = run(*fit, "--group-by", "room", "-o", tmp_path / "x")
    assert wrong.exit_code == 1
    assert "'room' does not match 30 of 30 names, e.g. 'scene0_0.png'" in wrong.stderr


def test_a_folder_of_calibration_images_replaces_the_held_out_share(photos, words, tmp_path):
    for i in range(8):
        picture(tmp_path / "more" / "cat" / f"{i}.png", 500 + i)
    fit = ["fit", "--images", photos, "--folders", "--dictionary", words, *UNTRAINED]
    result = run(*fit, "--calibration", tmp_path / "more", "-o", tmp_path / "det")
    assert result.exit_code == 3, result.output
    detector = bj.Detector.load(tmp_path / "det")
    assert detector.moments.count.tolist() == [10, 10]
    assert detector.calibration_labels.tolist() == [0] * 8
    assert detector.provenance["calibration"]["source"].startswith("more, folder (8 files)")
    (tmp_path / "more" / "cow").mkdir()
    picture(tmp_path / "more" / "cow" / "1.png", 1)
    wrong = run(*fit, "--calibration", tmp_path / "more", "-o", tmp_path / "det2")
    assert wrong.exit_code == 1
    assert "expected images of the classes cat, dog, got images of cow" in wrong.stderr
    missing = run(
        "fit", "--images", photos, "--folders", "--calibration", "no/dir", "-o", tmp_path / "x"
    )
    assert missing.exit_code == 1
    assert "--calibration: expected a share such as 0.2, or a folder; there is no" in missing.stderr


class Interrupting(io.BytesIO):
    """Standard input that sends a signal to the process when it is read beyond the names."""

    def __init__(self, names: list[str], number: int, output: Path):
        super().__init__("".join(f"{name}\n" for name in names).encode())
        self.number, self.output, self.rows = number, output, len(names)

    def readline(self, *arguments):
        if line := super().readline(*arguments):
            return line
        partial = self.output.with_name(f"{self.output.name}.partial")
        while (
            partial.read_bytes().count(b'"row"') < self.rows
        ):  # the rows are written by another thread
            time.sleep(0.01)
        os.kill(os.getpid(), self.number)
        time.sleep(60)  # a daemon thread: the test does not wait for it
        return b""


@pytest.fixture
def interruptible():
    """Python's handler of SIGINT, which processes in the background of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_run_keeps_its_rows_and_resumes(fitted, photos, tmp_path, name, code):
    detector = fitted[1]
    files = [str(photos / "cat" / f"{i}.png") for i in range(8)]
    output, whole = tmp_path / "scores.csv", tmp_path / "whole.csv"
    assert run("score", detector, *files, "-o", whole, "--alpha", 0.3, "--quiet").exit_code == 0
    arguments = ["score", detector, "-", "-o", output, "--alpha", 0.3, "--quiet"]
    stopped = run(*arguments, input=Interrupting(files[:3], getattr(signal, name), output))
    assert stopped.exit_code == code, stopped.output
    assert "3 rows are kept in" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.csv.partial", "whole.csv"]

    names = "".join(f"{file}\n" for file in files).encode()
    refused = run(*arguments, input=names)
    assert refused.exit_code == 1
    assert "--resume to continue it" in refused.stderr
    other = run(*arguments[:-3], "--alpha", 0.2, "--quiet", "--resume", input=names)
    assert other.exit_code == 1
    assert "alpha: 0.3 then, 0.2 now" in other.stderr
    resumed = run(*arguments, "--resume", input=names)
    assert resumed.exit_code == 0, resumed.output
    assert output.read_text() == whole.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.csv", "whole.csv"]


def test_a_resumed_run_scores_changed_files_again(fitted, photos, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "scores.jsonl"
    for i in range(4):
        picture(folder / f"{i}.png", 700 + i)
    names = [str(folder / f"{i}.png") for i in range(4)]
    arguments = ["score", fitted[1], "-", "-o", output, "--quiet"]
    run(*arguments, input=Interrupting(names[:2], signal.SIGTERM, output))
    picture(folder / "0.png", 800)
    with output.with_name("scores.jsonl.partial").open("ab") as file:
        file.write(b'{"row": {"path": "torn')  # as a killed process may leave it
    resumed = run(*arguments, "--resume", input="".join(f"{name}\n" for name in names).encode())
    assert resumed.exit_code == 0, resumed.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    expected = run("score", fitted[1], folder, "--json", "--quiet").stdout.splitlines()
    assert rows == [json.loads(line) for line in expected]


def test_a_cache_gives_the_same_rows_and_knows_files_by_content(
    fitted, photos, tmp_path, monkeypatch
):
    folder, cache = tmp_path / "images", tmp_path / "cache"
    for i in range(3):
        picture(folder / f"{i}.png", 900 + i)
    plain = run("score", fitted[1], folder, "--quiet").stdout
    for _ in range(2):
        assert run("score", fitted[1], folder, "--quiet", "--cache", cache).stdout == plain
    entries = sorted(cache.rglob("*.f32"))
    assert len(entries) == 3
    facts = (folder / "0.png").stat()
    Image.new("RGB", (20, 24)).save(folder / "0.png")
    os.utime(folder / "0.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    changed = run("score", fitted[1], folder, "--quiet", "--cache", cache).stdout
    assert changed == run("score", fitted[1], folder, "--quiet").stdout != plain
    entries[0].write_bytes(b"damaged")
    assert run("score", fitted[1], folder, "--quiet", "--cache", cache).stdout == changed


ERRORS = [
    (["score", "{det}", "{empty}"], "expected image files, found none"),
    (
        ["score", "{det}", "{other}"],
        "found none (skipped 1 file with no image extension: 1 x .txt)",
    ),
    (["score", "{det}", "no/folder"], "there is no file or folder no/folder"),
    (["score", "no.safetensors", "{empty}"], "no.safetensors: expected a detector that"),
    (["score", "{png}", "{other}"], "is not a usable detector: it is a file in the format PNG"),
    (["explain", "{png}", "{png}"], "is not a usable detector: it is a file in the format PNG"),
    (
        ["info", "{empty}/x"],
        "expected a detector that `bliss-jax fit` wrote, found no such file",
    ),
    (
        ["fit", "--images", "{empty}", "--folders", "-o", "{out}"],
        "has no class folders with images",
    ),
    (
        ["fit", "--images", "no/folder", "--folders", "-o", "{out}"],
        "there is no folder no/folder",
    ),
    (
        ["fit", "--images", "{empty}", "--labels", "a", "-o", "{out}"],
        "expected image files, found none",
    ),
    (
        ["fit", "--images", "{other}", "--folders", "--prompt", "x", "-o", "{out}"],
        "contain {label}",
    ),
    (
        ["fit", "--images", "{other}", "--folders", "--background", "whyte", "-o", "{out}"],
        "whyte",
    ),
    *[
        (["fit", "--images", "{photos}", "--folders", "-o", "{out}", *wrong], message)
        for wrong, message in [
            (["--k", "0"], "--k: expected an integer in 1..1860"),
            (["--lambda", "nan"], "--lambda: expected a finite number, got nan"),
            (["--shrinkage", "-1"], "--shrinkage: expected a finite number >= 0, got -1"),
            (["--calibration", "1"], "--calibration: expected a share of at least 0 and below 1"),
            (["--group-by", "("], "--group-by: '(' is not a regular expression"),
            (["--group-by", "folder"], "--group-by: none of the 2 groups can be held out"),
            (["--exclude-labels", "--k", "1861"], "--k: expected an integer in 1..1860"),
        ]
    ],
    (["score", "{det}", "{photos}", "--alpha", "2"], "--alpha: expected a rate above 0 and below"),
    (["evaluate", "--dataset", "{other}"], "has no class folders with images"),
    (["evaluate", "--embeddings", "no.npz"], "no.npz"),
    (["embed", "--dataset", "cifar11", "-o", "{out}.npz"], "did you mean cifar10"),
]
"""Arguments of commands with a wrong argument or folder, and the message."""

PROGRAM = """
import contextlib, io, json, sys
from bliss_jax.cli import main
from bliss_jax.cli.class_names import odd_class_names
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    heavy = sorted({"jax", "flax", "transformers", "sklearn"} & set(sys.modules))
    print(json.dumps([code, said.getvalue(), heavy]))
"""


def test_errors_in_arguments_and_folders_come_before_heavy_imports(fitted, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    places = {"det": fitted[1], "empty": tmp_path / "empty", "other": tmp_path / "other",
              "png": FILES / "duplicates" / "a.png", "out": tmp_path / "out",
              "photos": photos}  # fmt: skip
    commands = [[argument.format(**places) for argument in arguments] for arguments, _ in ERRORS]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for (arguments, message), line in zip(ERRORS, done.stdout.splitlines(), strict=True):
        code, said, heavy = json.loads(line)
        assert code == 1, (arguments, said)
        assert message in said, arguments
        assert heavy == [], arguments


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(e, marks=pytest.mark.slow) for e in ("latin-1", "cp1252"))]
)
def test_consoles_without_utf_8_print_escapes(fitted, tmp_path, encoding):
    detector = bj.Detector.load(fitted[1], embeddings_only=True)
    labels = np.asarray(detector.label_embeddings)
    detector.with_labels(("日本", "naïve"), labels).save(tmp_path / "det")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "bliss_jax.cli", "info", str(tmp_path / "det")]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert rb"\u65e5\u672c" in done.stdout


def test_explain_prints_escapes_on_a_console_without_utf_8(fitted, photos, tmp_path):
    detector = bj.Detector.load(fitted[1], embeddings_only=True)
    labels = np.asarray(detector.label_embeddings)
    detector.with_labels(("日本", "日本 2"), labels).save(tmp_path / "det")
    arguments = ["explain", str(tmp_path / "det"), str(photos / "cat" / "0.png")]
    result = CliRunner(charset="ascii").invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert r"nearest normal class: \u65e5\u672c" in result.stdout


def test_piped_output_is_not_padded(fitted):
    for command in (["info", fitted[1]], ["models"], ["datasets"]):
        lines = run(*command).stdout.splitlines()
        assert lines
        assert not any(line != line.rstrip() for line in lines)


def test_messages_name_the_options_of_the_command_line(photos, words, tmp_path):
    labels = ",".join(["x" * 2000, "y"])
    result = run("fit", "--images", photos, "--labels", labels, "--dictionary", words, *UNTRAINED,
                 "-o", tmp_path / "det")  # fmt: skip
    assert result.exit_code == 1
    assert "truncate" not in result.stderr
    assert "use a shorter label or --prompt" in result.stderr
    one = tmp_path / "one" / "0"
    picture(one / "1.png", 1)
    alone = run("fit", "--images", one.parent, "--folders", "--dictionary", words, *UNTRAINED,
                "-o", tmp_path / "det")  # fmt: skip
    assert "--shrinkage 20" in alone.stderr
    assert "warning: the fitted images of 0 are identical" in alone.stderr
    assert "class names '0' look like ids" in alone.stderr


def test_odd_class_names_lead_to_notes():
    assert odd_class_names(["cat", "dog", "n02504458x"]) == []
    ids, alike = odd_class_names(["n01440764", "0", "Cat", "cat"])
    assert ids.startswith("class names 'n01440764', '0' look like ids: prompts such as")
    assert "rename the folders" in ids
    assert alike.startswith(
        "class names 'Cat', 'cat' are equal up to case or Unicode normalisation"
    )
    composed, decomposed = (
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "cafe\N{COMBINING ACUTE ACCENT}",
    )
    assert len(odd_class_names([composed, decomposed])) == 1


def test_notes_on_transparency_and_bit_depth_name_the_options(fitted, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (
        "alpha/white_chess_king_alpha.png",
        "sixteen_bit/white_chess_king_camera12bit.png",
    ):
        shutil.copy(FILES / name, folder)
    result = run("score", fitted[1], folder)
    assert result.exit_code == 0, result.output
    assert "has transparent pixels, composited on white" in result.stderr
    assert "--background COLOUR chooses another colour" in result.stderr
    assert "--bit-depth 12 scales samples of 12 bits" in result.stderr
    quiet = run("score", fitted[1], folder, "--quiet", "--background", "black", "--bit-depth", 12)
    assert quiet.stderr == ""
    assert quiet.stdout != result.stdout
