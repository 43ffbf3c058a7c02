"""Reader of a file of real CLIP embeddings: OpenAI's ViT-B/32 on the first 500 test images of CIFAR-10.

The file was made by others. It contains `image_emb` [500, 512], `labels` [500], `class_names` [10],
`class_text_emb` [10, 512] (prompt "a NAME"), `text_emb`, `text_names` and `text_source`. The 1,000 texts of
the source `imagenet1k` (prompt "a photo of a NAME") are the dictionary. The file has no training images, so
a random half of the images is used for fitting and the other half for testing.
"""

from pathlib import Path

import numpy as np

from bliss_jax.embedding import EmbeddingSet

MODEL, DATASET = "openai/clip-vit-base-patch32", "cifar10"


def halves(path: Path, repeats: int, seed: int) -> list[EmbeddingSet]:
    """Returns one embedding set per repeat, with a random half of the images as its training images."""
    with np.load(path, allow_pickle=False) as file:
        of_imagenet = file["text_source"] == "imagenet1k"
        images, labels = _unit(file["image_emb"]), file["labels"]
        texts = _unit(file["class_text_emb"]), _unit(file["text_emb"][of_imagenet])
        class_names = tuple(file["class_names"].tolist())
        dictionary = tuple(file["text_names"][of_imagenet].tolist())
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(repeats):
        fit, test = np.split(rng.permutation(len(images)), 2)
        sets.append(
            EmbeddingSet(
                images[fit], labels[fit], images[test], labels[test],
                class_names, texts[0], dictionary, texts[1],
            )
        )  # fmt: skip
    return sets


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
