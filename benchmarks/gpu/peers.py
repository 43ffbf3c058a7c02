"""Cases: the vision towers of transformers in PyTorch, with the same weights and images."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.architectures import architectures, random_images, random_tensors
from benchmarks.gpu.encoders import COMPARED_IMAGES, file_name
from benchmarks.gpu.measuring import Context, agreement, clock
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.export import to_torch
from bliss_jax.models.preprocessing import STATS
from bliss_jax.models.weights import flatten

SMALLEST_COSINE = 0.999
"""Smallest cosine to PyTorch's float32 embeddings. With a smaller one, the times are not compared."""


def torch_encoder(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures PyTorch's vision tower in bfloat16: eager, and compiled by `torch.compile`.

    First its embeddings in float32 are compared with those that the case `encoder` kept. They are kept
    themselves, as the reference of the variants.

    Raises:
        ValueError: If the library's embeddings differ from PyTorch's.
    """
    import torch

    config, batch = architectures(context.quick)[name]
    device = torch_device(torch, context.platform)
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding of the float32 reference
    start = time.perf_counter()
    tower = torch_tower(config, random_tensors(config, ["vision"]), device)
    pixels = torch_pixels(batch, config.vision.image_size, device)
    yield {"device": device, "batch": batch, "prepare_s": time.perf_counter() - start}

    def unit_norm(embeddings: Any) -> np.ndarray:
        return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()

    def wait(result: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        reference = unit_norm(tower(pixel_values=pixels[:COMPARED_IMAGES]).image_embeds)
        np.save(context.scratch / f"{file_name(name)} float32.npy", reference)
        yield from _compare_with_ours(name, reference, context)
        tower, pixels = tower.to(torch.bfloat16), pixels.to(torch.bfloat16)
        theirs = unit_norm(tower(pixel_values=pixels[:COMPARED_IMAGES]).image_embeds)
        yield {"torch_cosine": agreement(theirs, reference).cosine}
        eager = clock(functools.partial(tower, pixel_values=pixels), context.quick, wait)
        yield {"eager_images_per_s": batch / eager.median}
        # The usual backend compiles C++ code on CPUs, which takes half a minute for each tower.
        compiled = torch.compile(tower, backend="aot_eager" if context.quick else "inductor")
        start = time.perf_counter()
        wait(compiled(pixel_values=pixels))
        yield {"torch_compile_s": time.perf_counter() - start}
        timing = clock(functools.partial(compiled, pixel_values=pixels), context.quick, wait)
        yield {"compiled_images_per_s": batch / timing.median}


def _compare_with_ours(name: str, reference: np.ndarray, context: Context) -> Iterator[dict]:
    """Compares the library's embeddings in bfloat16 with PyTorch's in float32, if there are any."""
    ours = context.scratch / f"{file_name(name)}.npy"
    if not ours.exists():
        yield {"note": f"not compared: the case `encoder {name}` did not run"}
        return
    close = agreement(np.load(ours), reference)
    yield {"cosine": close.cosine, "centred": close.centred}
    if not close.cosine > SMALLEST_COSINE:
        raise ValueError(
            f"{name}: expected cosines above {SMALLEST_COSINE} between the library's bfloat16 embeddings "
            f"and PyTorch's float32 embeddings of the same images, found {close.cosine:.5f}"
        )


def torch_pixels(number: int, size: int, device: str) -> Any:
    """Returns the images of `random_images` as PyTorch's pixels [n, 3, size, size], in float32."""
    import torch

    images = torch.tensor(random_images(number, size), device=device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(x, device=device).reshape(1, 3, 1, 1) for x in STATS["clip"])
    return ((images.float() / 255 - mean) / std).contiguous()


def torch_device(torch: Any, platform: str) -> str:
    """Returns PyTorch's name of the device on which JAX runs.

    Raises:
        ValueError: If JAX runs on a device that this torch cannot use.
    """
    if platform == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(f"JAX runs on {platform}, but torch {torch.__version__} has no CUDA")
    return "cuda"


def torch_tower(config: CLIPConfig, params: Any, device: Any) -> Any:
    """Returns `CLIPVisionModelWithProjection`, the vision tower of transformers' CLIPModel.

    Args:
        config: Sizes of the model.
        params: Its parameters, as a tree or by name.
        device: PyTorch's device.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        **dataclasses.asdict(config.vision), projection_dim=config.projection_dim
    )
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(vision)
    state = dict(to_torch(path, np.asarray(leaf)) for path, leaf in flatten(params).items())
    wanted = {name for name, _ in tower.named_parameters()}
    state = {name: torch.tensor(np.ascontiguousarray(state[name])) for name in wanted}
    tower = tower.to_empty(device="cpu")
    tower.load_state_dict(state, strict=False)
    # `to_empty` leaves buffers unset, and the positions are a buffer.
    positions = tower.vision_model.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[-1])[None])
    return tower.to(device).eval()
