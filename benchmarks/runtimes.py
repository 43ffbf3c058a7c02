"""Inference runtimes that people use on CPUs, as contenders of the benchmarks: OpenVINO and ONNX Runtime.

Both run transformers' PyTorch `CLIPModel` as their own converters translate it, in float32 and in int8. They are
measured if they are installed (`pip install openvino nncf onnx onnxruntime`). int8 is each runtime's usual
post-training form:

    OpenVINO        NNCF's `quantize` for transformers: weights and activations, with ranges from calibration images
    ONNX Runtime    `quantize_dynamic`: weights per channel, activations with ranges found in every call
"""

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

RUNTIMES = ("openvino", "nncf", "onnxruntime")
"""Names of the packages."""


class Runtime(NamedTuple):
    """An image tower in one runtime."""

    name: str
    dtype: Literal["float32", "int8"]
    encode: Callable[[np.ndarray], np.ndarray]
    """Returns the embeddings, not normalised, of pixels of the example's shape."""


def image_runtimes(model: Any, images: np.ndarray, threads: int) -> Iterator[Runtime]:
    """Yields the image tower in each runtime that is installed.

    Args:
        model: transformers' `CLIPModel`.
        images: Pixels, float32 [n, 3, size, size]. They set the shape of every call, and calibrate int8.
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
        yield from _openvino(tower, example, threads)
    if find_spec("onnxruntime"):
        yield from _onnxruntime(tower, example, threads)


def _openvino(tower: Any, example: Any, threads: int) -> Iterator[Runtime]:
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    converted = openvino.convert_model(tower, example_input=example, input=list(example.shape))

    def runtime(model: Any, dtype: Literal["float32", "int8"]) -> Runtime:
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        return Runtime("OpenVINO", dtype, lambda pixels: compiled(pixels)[0])

    yield runtime(converted, "float32")
    if find_spec("nncf"):
        import nncf  # pyright: ignore[reportMissingImports]

        kind = nncf.ModelType.TRANSFORMER
        yield runtime(
            nncf.quantize(converted, nncf.Dataset([example.numpy()]), model_type=kind), "int8"
        )


def _onnxruntime(tower: Any, example: Any, threads: int) -> Iterator[Runtime]:
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import torch
    from onnxruntime.quantization import quantize_dynamic  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def runtime(file: Path, dtype: Literal["float32", "int8"]) -> Runtime:
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        return Runtime("ONNX Runtime", dtype, lambda x: session.run(None, {"pixels": x})[0])

    with tempfile.TemporaryDirectory() as folder:
        file, quantised = Path(folder) / "tower.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(tower, (example,), str(file), input_names=["pixels"], dynamo=False)
        yield runtime(file, "float32")
        # Convolutions are left out: ONNX Runtime has no dynamic int8 form of the patch embedding.
        quantize_dynamic(file, quantised, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        yield runtime(quantised, "int8")
