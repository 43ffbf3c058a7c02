"""Small folders in the official layouts of OpenOOD v1.5 and of the ImageNet suite of MCM."""

from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_OOD = ("cifar100", "tin", "mnist", "svhn", "texture", "places365")


def _picture(path: Path, tint: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 60, (16, 16, 3)) + np.array([tint * 19 % 190, tint * 53 % 190, 90])
    Image.fromarray(noise.astype(np.uint8)).save(path)


def write_openood_cifar10(root: Path) -> Path:
    """Writes 2 training images and 1 test image per class, and 3 images of each OOD set. Returns the folder."""
    rng = np.random.default_rng(0)
    lists = root / "benchmark_imglist" / "cifar10"
    lists.mkdir(parents=True)
    for split, number in (("train", 2), ("test", 1)):
        lines = []
        for label, name in enumerate(CIFAR10):
            for i in range(number):
                path = f"cifar10/{split}/{name}/{i:04d}.png"
                _picture(root / "images_classic" / path, label, rng)
                lines.append(f"{path} {label}")
        (lists / f"{split}_cifar10.txt").write_text("\n".join(lines) + "\n")
    for name in _OOD:
        lines = []
        for i in range(3):
            path = f"{name}/test/{i}.png"
            _picture(root / "images_classic" / path, int(rng.integers(100)), rng)
            lines.append(f"{path} -1")
        (lists / f"test_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_mcm_imagenet(root: Path, wnids: tuple[str, ...]) -> Path:
    """Writes 2 training images and 1 validation image per class, and 3 images of each OOD set. Returns the folder."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 2), ("val", 1)):
        for label, wnid in enumerate(wnids):
            for i in range(number):
                _picture(root / "ImageNet" / split / wnid / f"{wnid}_{i}.png", label, rng)
    for folder in ("iNaturalist/images", "SUN/images", "Places/images", "dtd/images/banded"):
        for i in range(3):
            _picture(root / "ImageNet_OOD_dataset" / folder / f"{i}.png", i, rng)
    return root
