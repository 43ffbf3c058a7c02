"""Takes the pictures of a report for the documentation, in both colour schemes.

    python docs/figures/screenshots.py

The script runs the commands of docs/quickstart.md on chess symbols and opens the report in Chromium: the
system's, or the one that the environment variable BLISS_JAX_CHROMIUM names. It needs the package playwright
(`pip install '.[test]'`), and writes report-light.png and report-dark.png beside this file.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import sync_playwright

import bliss_jax as bj
from bliss_jax.cli import main as bliss_jax_command
from bliss_jax.storage import replacing

HERE = Path(__file__).parent
SHOWN = (0, 25, 50, 75, 1000, 2000, 2600, 3000)
"""Positions of the scored test images: four chess symbols, four others."""
WIDTH, HEIGHT = 960, 1265
COLOURS = 96
"""Colours of the PNG file, a tenth of the bytes of all colours."""


def write_images(folder: Path) -> None:
    """Writes the chess symbols of the training set to normal/ and the shown test images to new/."""
    train, test = bj.load_dataset("glyphs", "train"), bj.load_dataset("glyphs", "test")
    for i in np.flatnonzero(train.labels < 12):
        target = folder / "normal" / train.class_names[train.labels[i]]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images[i]).save(target / f"{i}.png")
    (folder / "new").mkdir()
    for i in SHOWN:
        name = test.class_names[test.labels[i]]
        Image.fromarray(test.images[i]).save(folder / "new" / f"{name}.png")


def run(*arguments: str) -> None:
    """Runs a command of `bliss-jax`.

    Raises:
        RuntimeError: If it fails.
    """
    result = CliRunner().invoke(bliss_jax_command, arguments)
    if result.exit_code:
        raise RuntimeError(result.output)


def main() -> None:
    """Writes the report and its pictures."""
    chromium = os.environ.get("BLISS_JAX_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_images(Path())
        model = ("--model", "bliss-jax/tiny", "--dictionary", "unicode-names", "--k", "1")
        run("fit", "--images", "normal", "--folders", "-o", "chess.safetensors", "--quiet", *model)
        scored = ("score", "chess.safetensors", "new", "-o", "scores.csv", "--alpha", "0.05")
        run(*scored, "--report", "report", "--quiet")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
            )
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme
                )
                page.goto(Path("report", "index.html").resolve().as_uri())
                page.screenshot(path=f"{scheme}.png")
                small = Image.open(f"{scheme}.png").convert("RGB").quantize(COLOURS)
                with replacing(HERE / f"report-{scheme}.png") as file:
                    small.save(file, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
