"""Inference runtimes that people use on CPUs, as contenders of the encoder benchmark: OpenVINO and ONNX Runtime.

Both run transformers' PyTorch `CLIPModel`, in float32, as their own converters translate it. They are measured if they
are installed (`pip install openvino onnx onnxruntime`).
"""

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

RUNTIMES = ("openvino", "onnxruntime")
"""Names of the packages."""


def image_runtimes(
    model: Any, images: np.ndarray, threads: int
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields the name of each runtime that is installed, and a function that encodes the images.

    Args:
        model: transformers' `CLIPModel`.
        images: Pixels, float32 [n, 3, size, size].
        threads: Number of CPU threads.
    """
    if not any(map(find_spec, RUNTIMES)):
        return
    import torch

    class Tower(torch.nn.Module):
        """The image tower as a module with one input and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.vision, self.projection = model.vision_model, model.visual_projection

        def forward(self, pixels: Any) -> Any:
            return self.projection(self.vision(pixel_values=pixels)[1])

    tower, example = Tower().eval(), torch.from_numpy(images)
    if find_spec("openvino"):
        yield "OpenVINO", _openvino(tower, example, threads)
    if find_spec("onnxruntime"):
        yield "ONNX Runtime", _onnxruntime(tower, example, threads)


def _openvino(tower: Any, example: Any, threads: int) -> Callable[[], np.ndarray]:
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    converted = openvino.convert_model(tower, example_input=example, input=list(example.shape))
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    pixels = example.numpy()
    return lambda: compiled(pixels)[0]


def _onnxruntime(tower: Any, example: Any, threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tower.onnx"
        torch.onnx.export(tower, (example,), str(file), input_names=["pixels"], dynamo=False)
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    pixels = example.numpy()
    return lambda: session.run(None, {"pixels": pixels})[0]
