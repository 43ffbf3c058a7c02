"""What works without optional packages, and the messages about packages that are missing.

Each program runs in a process of its own, in which the hidden packages cannot be imported.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXTRAS = {
    "encoders": ("flax", "huggingface_hub", "sentencepiece", "tokenizers", "transformers"),
    "datasets": ("array_record", "matplotlib", "PIL", "requests", "sklearn", "tensorflow_datasets"),
    "report": ("jinja2", "rich"),
    "cli": ("click", "platformdirs"),
    "parquet": ("pyarrow",),
    "export": ("flatbuffers",),
}
OPTIONAL = tuple(name for names in EXTRAS.values() for name in names)

CORE = """
import numpy as np
import bliss_jax as bj

rng = np.random.default_rng(0)
x = rng.normal(size=(60, 8)).astype(np.float32)
x /= np.linalg.norm(x, axis=1, keepdims=True)
y, texts = np.arange(60) % 3, x[:5]
moments = bj.fit_moments(x, y, num_classes=3)
scores = bj.bliss_score(x, texts[:3], texts, moments, k=2)
assert 0 <= bj.auroc(scores, y == 0) <= 1
bj.conformal_p_values(scores, scores)
"""
DETECTOR = (
    CORE
    + """
words = [f"word {i}" for i in range(5)]
detector = bj.Detector.fit_embeddings(x, y, ("a", "b", "c"), texts[:3], words, texts, k=2)
detector.save("d.safetensors")
again = bj.Detector.load("d.safetensors", embeddings_only=True)
assert np.allclose(again.score(x), detector.score(x))
assert len(again.explain(x[:1])[0].words) == 5 and again.threshold(0.2) > -9
embeddings = bj.EmbeddingSet(x, y, x, y, ("a", "b", "c"), texts[:3], tuple(words), texts)
bj.save_embeddings(embeddings, "e.npz")
protocol = bj.load_protocol("one-class", dataset="mine", num_classes=3)
result = bj.evaluate(bj.load_embeddings("e.npz"), protocol, bj.Settings(scores=("bliss",), k=2))
assert len(result.rows) == 1 and len(bj.load_dictionary("imagenet1k")) == 1860
"""
)


def run(program, hidden, folder):
    """Runs a program in which the hidden packages cannot be imported."""
    hide = f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n"
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", hide + program], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(CORE, id="scores"),
        pytest.param(DETECTOR, id="detector", marks=pytest.mark.slow),
    ],
)
def test_the_core_works_without_any_optional_package(program, tmp_path):
    finished = run(program, OPTIONAL, tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("statement", "hidden", "extra"),
    [
        ('bj.load_model("bliss-jax/untrained")', ["flax"], "encoders"),
        ('bj.load_model("bliss-jax/tiny").encode_texts(["a"])', ["transformers"], "encoders"),
        ('bj.load_model("bliss-jax/untrained")', ["transformers"], "encoders"),
        ('bj.load_dataset("cifar10", "test")', ["tensorflow_datasets"], "datasets"),
        ('bj.load_dataset("digits", "test")', ["sklearn"], "datasets"),
        ('bj.load_dataset("glyphs", "test")', ["matplotlib"], "datasets"),
        ('bj.load_dataset(".", "test").images[0]', ["PIL"], "datasets"),
        ("bj.BlissOutlierDetector", ["sklearn"], "sklearn"),
        ("from bliss_jax.report import write_report", ["matplotlib"], "report"),
        ("from bliss_jax.report import print_summary", ["rich"], "report"),
        ("from bliss_jax.report import templating; templating.render('x')", ["jinja2"], "report"),
    ],
)
def test_the_error_about_a_missing_package_names_the_extra(statement, hidden, extra, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split / "cat"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"")
    attempt = f"try:\n    {statement}\nexcept ModuleNotFoundError as error:\n    print(error)"
    program = f"import bliss_jax as bj\n{attempt}"
    finished = run(program, hidden, tmp_path)
    assert finished.returncode == 0, finished.stderr
    [line] = finished.stdout.splitlines()
    assert line.endswith(f"is needed here and not installed: pip install 'bliss-jax[{extra}]'")


@pytest.mark.parametrize("hidden", ["click", "rich", "platformdirs"])
def test_the_command_without_its_packages_prints_one_line(hidden, tmp_path):
    finished = run("from bliss_jax import _command; _command()", [hidden], tmp_path)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == (
        f"bliss-jax: the package {hidden} is needed here and not installed: "
        "pip install 'bliss-jax[cli]'\n"
    )


def test_a_command_without_the_packages_of_an_extra_prints_one_line(tmp_path):
    program = (
        "import sys\nsys.argv = ['bliss-jax', 'evaluate', '--dataset', 'digits', '--model', "
        "'bliss-jax/untrained']\nfrom bliss_jax import _command\n_command()"
    )
    finished = run(program, ["flax"], tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == (
        "Error: the package flax is needed here and not installed: pip install 'bliss-jax[encoders]'"
    )


def test_every_optional_package_belongs_to_an_extra():
    file = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    for extra, modules in EXTRAS.items():
        listed = {requirement.split(">=")[0] for requirement in extras[extra]}
        for module in modules:
            assert names.get(module, module.replace("_", "-")) in listed
    assert set(EXTRAS) | {"sklearn"} == set(extras["all"][0][10:-1].split(","))
