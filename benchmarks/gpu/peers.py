"""PyTorch's vision tower (transformers) with the same weights, on the same device, in turn with ours."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.architectures import (
    architectures,
    best_batch,
    float32_embeddings,
    image_encoder,
    pixels_for,
    stored_in,
)
from benchmarks.gpu.measuring import BLANK, Found, Settings, Sheet, Timing, agreement, clock
from benchmarks.measure import Table
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.export import to_torch
from bliss_jax.models.untrained import untrained_params
from bliss_jax.models.weights import flatten


def peers(settings: Settings, found: Found) -> Table:
    """PyTorch's vision tower (transformers) with the same weights on the same device, in turn with ours."""
    headings = "model | batch | PyTorch | bliss_jax, images/s | PyTorch, images/s | ratio"
    sheet = Sheet(settings, "Beside PyTorch's CLIP, both in bfloat16", headings)
    models = architectures(settings.quick)
    for name in ("B/32",) if settings.quick else models:
        batch = best_batch(found, name, models[name])
        peer = sheet.note(
            f"{name}, bliss_jax and eager PyTorch, both in float32",
            functools.partial(Peer, models[name].config, batch, settings),
            lambda peer: f"smallest cosine {peer.cosine:.6f}",
        )
        if peer is None:
            sheet.rows.append((name, f"{batch:,}", *(BLANK,) * 4))
            continue
        for mode in ("eager", "default", "max-autotune"):

            def cells(pair, name=name, mode=mode, batch=batch):
                ours, theirs = (batch / timing.median for timing in pair)
                sheet.data[f"{name}, {mode}"] = {"bliss_jax": ours, "pytorch": theirs}
                return f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"

            kind = mode if mode == "eager" else f"torch.compile, {mode}"
            sheet.add((name, batch, kind), functools.partial(peer.run, mode), cells)
    return sheet.table()


class Peer:
    """Both encoders of one architecture, with the same weights and the same batch of images.

    Raises:
        ValueError: torch cannot use JAX's device, or the embeddings do not agree.
    """

    def __init__(self, config: CLIPConfig, batch: int, settings: Settings) -> None:
        import torch

        self._torch, self._quick, self._device = torch, settings.quick, torch_device(torch)
        params, self._pixels = untrained_params(config), pixels_for(config, batch)
        tower = torch_tower(config, params, self._device)
        # PyTorch's own layout, contiguous: a transposed array would keep its strides.
        contiguous = np.ascontiguousarray(np.asarray(self._pixels).transpose(0, 3, 1, 2))
        given = torch.tensor(contiguous, device=self._device)
        few = min(32, batch)
        with torch.inference_mode():
            theirs = tower(pixel_values=given[:few]).image_embeds.cpu().numpy()
        self.cosine = agreement(
            theirs, float32_embeddings(config, params, self._pixels[:few])
        ).cosine
        if not self.cosine > 0.999:
            raise ValueError(f"PyTorch's embeddings differ: smallest cosine {self.cosine:.5f}")
        self._tower, self._given = tower.to(torch.bfloat16), given.to(torch.bfloat16)
        self._encode, self._params = image_encoder(config), stored_in(params, "bfloat16")

    def run(self, mode: str) -> tuple[Timing, Timing]:
        """Ours and theirs: "eager", or a mode of `torch.compile`."""
        ours = clock(lambda: self._encode(self._params, self._pixels), self._quick)
        tower = self._tower if mode == "eager" else self._torch.compile(self._tower, mode=mode)

        def wait(result: Any) -> None:
            if self._device == "cuda":
                self._torch.cuda.synchronize()

        with self._torch.inference_mode():
            call = functools.partial(tower, pixel_values=self._given)
            return ours, clock(call, self._quick, wait)


def torch_device(torch: Any) -> str:
    """The device of torch that is JAX's.

    Raises:
        ValueError: JAX runs on a device that this torch cannot use.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"JAX runs on {jax.default_backend()}, but torch {torch.__version__} has no CUDA"
        )
    return "cuda"


def torch_tower(config: CLIPConfig, params: Any, device: Any) -> Any:
    """`CLIPVisionModelWithProjection`, the vision tower of transformers' CLIPModel, with these weights."""
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
    # Buffers are no parameters: the positions that `to_empty` left unset.
    positions = tower.vision_model.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[-1])[None])
    return tower.to(device).eval()
