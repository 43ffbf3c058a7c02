"""The main job end to end: real CIFAR-10 images, tfds, a CLIP B/32 checkpoint, the command line.

The checkpoint is transformers' B/32 with random weights, because trained ones cannot be shipped; its
tokenizer is OpenAI's. The test therefore states that the pipeline runs, that it is reproducible, and that an
encoder without trained weights is at chance.
"""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from official_archives import CIFAR10_NAMES, as_binary, point_at, published_as, write_tar

from bliss_jax.cli import main

TRAIN, TEST = 150, 150


@pytest.fixture(scope="module")
def cifar10_archive(shared, tmp_path_factory):
    """Returns CIFAR-10's archive with fewer images: 30 of each training batch, and 150 test images."""
    from bliss_jax.datasets.cifar import CIFAR10, Cifar10

    with np.load(shared / "data" / "cifar10_lossless_subset.npz") as file:
        train = [file["train_images"][i * 932 :][: TRAIN // 5] for i in range(5)]
        train_labels = [file["train_labels"][i * 932 :][: TRAIN // 5] for i in range(5)]
        test, test_labels = file["test_images"][:TEST], file["test_labels"][:TEST]
    members = {
        f"{CIFAR10.folder}/data_batch_{i + 1}.bin": as_binary(train[i], train_labels[i])
        for i in range(5)
    }
    members[f"{CIFAR10.folder}/test_batch.bin"] = as_binary(test, test_labels)
    members[f"{CIFAR10.folder}/batches.meta.txt"] = "\n".join([*CIFAR10_NAMES, "", ""]).encode()
    file = tmp_path_factory.mktemp("archive") / CIFAR10.file_name
    write_tar(file, members)
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, Cifar10, published_as(CIFAR10, file))
        patch.setattr(Cifar10, "IMAGES", {"train": TRAIN, "test": TEST})
        yield file.parent


@pytest.fixture(scope="module")
def checkpoint(shared, tmp_path_factory):
    """Returns a directory with CLIP B/32 as transformers initialises it and OpenAI's tokenizer."""
    import torch
    from random_checkpoints import save_preprocessor
    from transformers import CLIPConfig, CLIPModel

    directory = tmp_path_factory.mktemp("clip-vit-base-patch32-random")
    torch.manual_seed(0)
    sizes = {"eos_token_id": 49407, "bos_token_id": 49406}
    CLIPModel(CLIPConfig(text_config=sizes)).save_pretrained(directory)
    shutil.copy(shared / "data" / "clip_bpe" / "hf_vocab.json", directory / "vocab.json")
    shutil.copy(shared / "data" / "clip_bpe" / "hf_merges.txt", directory / "merges.txt")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    save_preprocessor(directory, 224)
    return directory


@pytest.mark.shared_data
@pytest.mark.parity
@pytest.mark.slow
def test_the_main_job_end_to_end(cifar10_archive, checkpoint, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"thing number {i}" for i in range(40)))

    def evaluate(name):
        file = tmp_path / f"{name}.json"
        options = {
            "--dataset": "cifar10",
            "--protocol": "zoc-6",
            "--model": checkpoint,
            "--data-dir": tmp_path / "data",
            "--manual-dir": cifar10_archive,
            "--dictionary": words,
            "--batch-size": 50,
            "--json": file,
        }
        arguments = [str(part) for option in options.items() for part in option]
        result = CliRunner().invoke(main, ["evaluate", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout, json.loads(file.read_text())

    table, first = evaluate("first")
    _, second = evaluate("second")
    assert first["rows"] == second["rows"], "results must be reproducible"

    [provenance] = first["provenance"]["evaluations"]
    assert provenance["protocol"] == {
        "name": "zoc-6",
        "family": "zoc",
        "dataset": "cifar10",
        "splits": 5,
    }
    made_with = provenance["embeddings"]
    assert made_with["dataset"]["train"] == "tfds cifar10:3.0.2 train"
    assert made_with["preprocessing"]["stats"] == "clip"
    assert made_with["prompt"] == "This is a photo of a {label}"
    assert provenance["images"] == {"train": TRAIN, "test": TEST}

    # Scores that compare images with texts are at chance, and the table says so. Scores of images alone are
    # not at chance: a random encoder preserves colours, and cars and frogs differ in colour.
    [bliss] = [row for row in first["rows"] if row["score"] == "bliss"]
    assert abs(bliss["auroc"] - 0.5) < 0.1
    at_chance = [row["score"] for row in first["rows"] if row["near_chance"]]
    assert len(at_chance) >= 3
    for score in at_chance:
        assert f"{score} *" in table
    assert "within 5 points of chance" in table
