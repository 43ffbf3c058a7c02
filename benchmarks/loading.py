"""Time and memory of `load_model` for a checkpoint of full size with random weights.

    python -m benchmarks.loading [--size L/14] [--dtype float32] [--folder FOLDER]

It writes the checkpoint in the layout of the hub's cache, unless FOLDER holds it already, and loads it in
three new processes: without a remembered hash, with it, and once more. The files are in the page cache.
"seconds" is the time of `load_model` alone, and "CPU s" the processor time of all its threads, which other
programs on the machine disturb less. "peak" is the largest resident memory during the load minus the memory
before it, relative to the size of the weights in the chosen dtype.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZES = {
    "B/32": (512, (768, 12, 12, 32), (512, 8, 12)),
    "L/14": (768, (1024, 16, 24, 14), (768, 12, 12)),
}
"""Joint dimension; width, heads, layers and patch of the vision tower; the first three of the text tower."""

CHILD = """
import json, resource, sys, time
import bliss_jax as bj
import jax, transformers
from transformers import AutoConfig, AutoTokenizer
jax.numpy.zeros(1).block_until_ready()
def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
before = memory("VmRSS")
start, cpu = time.perf_counter(), time.process_time()
model = bj.load_model(sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(model.params)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
found = {"seconds": seconds, "cpu": cpu, "before": before, "peak": memory("VmHWM"), "size": size}
print(json.dumps(found))
"""


def write_checkpoint(folder: Path, size: str) -> Path:
    """Writes a CLIP with random weights in the layout of the hub's cache; returns the snapshot."""
    from safetensors.numpy import save_file

    from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
    from bliss_jax.models.export import config_fields, processor_fields, to_torch
    from bliss_jax.models.layers import VisionConfig
    from bliss_jax.models.preprocessing import Preprocessing
    from bliss_jax.models.untrained import byte_tokenizer
    from bliss_jax.models.weights import expected_shapes

    dim, (width, heads, layers, patch), (words, word_heads, word_layers) = SIZES[size]
    act = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    config = CLIPConfig(
        vision=VisionConfig(
            width, 4 * width, layers, heads, **act, image_size=224, patch_size=patch
        ),
        text=CLIPTextConfig(
            words,
            4 * words,
            word_layers,
            word_heads,
            **act,
            vocab_size=49408,
            max_position_embeddings=77,
            eos_token_id=257,
        ),
        projection_dim=dim,
    )
    repository = folder / "models--random--clip"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    if snapshot.is_dir():
        return snapshot
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "config.json").write_text(json.dumps(config_fields(config)))
    (snapshot / "preprocessor_config.json").write_text(
        json.dumps(processor_fields(Preprocessing()))
    )
    byte_tokenizer().save_pretrained(snapshot)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape, np.float32) / math.sqrt(shape[0] if shape else 1)
        torch_name, tensor = to_torch(name, np.asarray(values, np.float32))
        tensors[torch_name] = np.ascontiguousarray(tensor) if tensor.ndim else tensor
    file = snapshot / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    with file.open("rb") as opened:
        blob = blobs / hashlib.file_digest(opened, "sha256").hexdigest()
    file.rename(blob)
    file.symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def load(snapshot: Path, dtype: str, hashes: Path) -> dict[str, float]:
    """Loads the checkpoint in a new process; returns seconds and bytes."""
    environment = os.environ | {"BLISS_JAX_WEIGHT_HASHES": str(hashes), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHILD, str(snapshot), dtype]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="L/14", choices=sorted(SIZES))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="Folder that keeps the checkpoint.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        snapshot = write_checkpoint(options.folder or Path(temporary), options.size)
        hashes = Path(temporary) / "hashes"
        print("load                  | seconds | CPU s | weights MB | peak MB | peak / weights")
        for title in ("first", "hash remembered", "hash remembered again"):
            found = load(snapshot, options.dtype, hashes)
            peak = found["peak"] - found["before"]
            print(
                f"{title:21} | {found['seconds']:7.1f} | {found['cpu']:5.1f} | {found['size'] / 1e6:10.0f} | "
                f"{peak / 1e6:7.0f} | {peak / found['size']:14.2f}"
            )


if __name__ == "__main__":
    main()
