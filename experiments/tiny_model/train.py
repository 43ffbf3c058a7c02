"""Trains `bliss-jax/tiny`, the small CLIP model shipped with the library, on scenes of `glyphs`.

    pip install -e '.[train]' && python -m experiments.tiny_model.train --output runs/tiny

    1  classification   the vision tower learns to classify the symbols, in scenes of increasing difficulty
    2  contrast         both towers learn InfoNCE in both directions (Radford et al. 2021), with a
                        temperature that decreases from 0.1 to 0.01 within 150 steps

The second phase starts from a random text tower and random projections, and soon uses the final temperature
of CLIP. At this temperature, differences of a few hundredths of cosine are sufficient, so the separate cones
into which untrained towers map images and texts remain separate (Liang et al. 2022, "Mind the gap"). Together
with captions that describe only a part of the images, this gives the small model the similarity bias of the
large models.

A run that was stopped continues from its last checkpoint and ends with the same numbers. Every choice was
made on the validation renders; the test renders are embedded once, at the end.

The output folder contains `model/` in transformers' CLIP format, `curves.json`, `curves.png`, `result.json`
and `checkpoint.msgpack`.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from optax.contrib import MuonDimensionNumbers, muon

import bliss_jax as bj
from bliss_jax.datasets.glyphs import glyph_names, load_glyphs
from bliss_jax.embedding import embed_dataset
from bliss_jax.models import Preprocessing
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.export import save_checkpoint
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.preprocessing import apply_preprocessing
from bliss_jax.models.tokenize import Tokenizer, load_tokenizer
from bliss_jax.storage import package_versions, replacing
from experiments.tiny_model.data import Scenery, ahead
from experiments.tiny_model.tokenizer import train_tokenizer, write_tokenizer

CONTEXT, MERGES = 77, 700
CAPTION_TOKENS = 24
PREPROCESSING = Preprocessing(32)


@dataclass(frozen=True)
class Phase:
    """One phase of the training."""

    name: str
    steps: int
    batch: int
    rate: float
    """Peak of the learning rate, which has a linear warm-up and a cosine decay to 2 %."""
    ramp: float
    """Share of the steps after which the scenes have full difficulty."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run. Its result depends only on them and on the code."""

    seed: int = 0
    phases: tuple[Phase, ...] = (
        Phase("classification", 2400, 256, 2e-3, 0.2),
        Phase("contrast", 2000, 256, 1.5e-3, 0.0),
    )
    tail: float = 0.25
    max_tail: int | None = None
    inverse_temperature: tuple[float, float] = (10.0, 100.0)
    """First and last inverse temperature of the contrastive loss. It grows exponentially in between."""
    cooling_steps: int = 150
    """Number of steps from the first to the last inverse temperature."""
    weight_decay: float = 0.05
    every: int = 100
    """Number of steps between checkpoints."""


def quick(settings: Settings) -> Settings:
    """Returns settings with a few steps of each phase, to test the script."""
    phases = tuple(replace(phase, steps=3, batch=8) for phase in settings.phases)
    return replace(settings, phases=phases, max_tail=20, every=2)


def configuration(vocab_size: int) -> CLIPConfig:
    """Returns the configuration of the model, which has 1.8 million parameters."""
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    return CLIPConfig(
        vision=VisionConfig(**tower, num_hidden_layers=5, image_size=32, patch_size=8),
        text=CLIPTextConfig(
            **tower,
            num_hidden_layers=3,
            vocab_size=vocab_size,
            max_position_embeddings=CONTEXT,
            eos_token_id=vocab_size - 1,
        ),
        projection_dim=64,
    )


def optimizer(settings: Settings, phase: Phase) -> optax.GradientTransformation:
    """Returns the optimizer: Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest."""

    def matrices(params: Any) -> Any:
        def dimensions(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if not name.endswith("kernel") or "projection" in name:
                return None
            return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(dimensions, params)

    warm_up = min(200, phase.steps // 5)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, phase.rate, warm_up, phase.steps, phase.rate / 50
    )
    return muon(
        rate,
        # With updates of the same size as Adam's, both can share one learning rate.
        consistent_rms=0.2,
        weight_decay=settings.weight_decay,
        adam_weight_decay=settings.weight_decay,
        weight_decay_mask=partial(jax.tree.map, lambda leaf: leaf.ndim > 1),
        adam_b2=0.98,
        muon_weight_dimension_numbers=matrices,
    )


def classification_loss(params: Any, config: CLIPConfig, pixels: Any, batch: Any):
    """Computes the cross-entropy of a linear head on the vision tower's pooled state, and the accuracy."""
    state = config.module().apply(
        {"params": params["clip"]}, pixels, method=lambda clip, x: clip.vision_model(x)
    )
    logits = state @ params["head"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["symbols"]).mean()
    return loss, (logits.argmax(-1) == batch["symbols"]).mean()


def contrastive_loss(params: Any, config: CLIPConfig, pixels: Any, batch: Any, scale: Any):
    """Computes InfoNCE over the batch in both directions, and the share of images that find their text."""
    images = bj.encode_image(params["clip"], config, pixels)
    texts = bj.encode_text(params["clip"], config, batch["tokens"])
    logits = scale * images @ texts.T
    own = jnp.arange(len(logits))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = (cross_entropy(logits, own).mean() + cross_entropy(logits.T, own).mean()) / 2
    return loss, (logits.argmax(-1) == own).mean()


@dataclass
class Run:
    """A training run and its folder."""

    settings: Settings
    folder: Path

    def __post_init__(self) -> None:
        self.model_folder = self.folder / "model"
        self.model_folder.mkdir(parents=True, exist_ok=True)
        self.scenery = Scenery(self.settings.tail, self.settings.max_tail)
        captions = [c for i in range(4) for c in self.scenery.captions((self.settings.seed, 9, i))]
        names = [f"This is a photo of a {name}" for name, *_ in self.scenery.called]
        size = write_tokenizer(
            self.model_folder, train_tokenizer(names + captions, MERGES, CONTEXT)
        )
        self.config = configuration(size)
        self.curves: list[dict[str, float]] = []

    def train(self) -> Any:
        """Runs all phases, starting at the last checkpoint, and returns CLIP's parameters."""
        size, tokens = self.config.vision.image_size, jnp.zeros((1, CAPTION_TOKENS), jnp.int32)
        key = jax.random.key(self.settings.seed)
        init = jax.jit(self.config.module().init)
        clip = init(key, jnp.zeros((1, size, size, 3)), tokens)["params"]
        head = jnp.zeros((self.config.vision.hidden_size, len(glyph_names())))
        params = {"clip": clip, "head": head}
        # The tokenizer's loader needs the configuration file that this writes.
        save_checkpoint(self.model_folder, self.config, clip, PREPROCESSING, dtype="float16")
        self.tokenizer = load_tokenizer(self.model_folder, self.config)
        start = self._resume(params)
        params = start["params"]
        for number, phase in enumerate(self.settings.phases):
            if number >= start["phase"]:
                params = self._phase(number, phase, params, start)
                start = {"phase": number + 1, "step": 0}
        return params["clip"]

    def _phase(self, number: int, phase: Phase, params: Any, start: dict[str, Any]) -> Any:
        transform = optimizer(self.settings, phase)
        state, done = transform.init(params), start["step"]
        if done > 0:
            state = serialization.from_state_dict(state, start["state"])
        step = self._step(phase, transform)
        batches = ahead(self._batch(number, phase, k) for k in range(done, phase.steps))
        recent, began = [], time.perf_counter()
        for k, batch in enumerate(batches, start=done + 1):
            params, state, measured = step(params, state, batch)
            recent.append(measured)
            if k % self.settings.every == 0 or k == phase.steps:
                loss, accuracy = np.mean(np.asarray(recent), axis=0)
                seconds = (time.perf_counter() - began) / len(recent)
                self.curves.append(
                    {"phase": number, "step": k, "loss": float(loss), "accuracy": float(accuracy)}
                )
                click.echo(
                    f"{phase.name} {k}/{phase.steps}: loss {loss:.3f}, accuracy {accuracy:.3f}, "
                    f"{seconds:.2f} s per step"
                )
                self._save(number, k, phase, params, state)
                recent, began = [], time.perf_counter()
        return params

    def _step(self, phase: Phase, transform: optax.GradientTransformation):
        config, (first, last) = self.config, self.settings.inverse_temperature

        def loss(params, batch):
            pixels = apply_preprocessing(batch["images"], PREPROCESSING)
            if phase.name == "classification":
                return classification_loss(params, config, pixels, batch)
            cooled = jnp.minimum(batch["step"] / self.settings.cooling_steps, 1.0)
            return contrastive_loss(params, config, pixels, batch, first * (last / first) ** cooled)

        @jax.jit
        def step(params, state, batch):
            (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
            update, state = transform.update(gradient, state, params)
            return optax.apply_updates(params, update), state, (value, accuracy)

        return step

    def _batch(self, number: int, phase: Phase, k: int) -> dict[str, np.ndarray]:
        difficulty = 1.0 if phase.ramp == 0 else min(1.0, k / (phase.ramp * phase.steps))
        contrast = phase.name == "contrast"
        drawn = self.scenery.batch(
            (self.settings.seed, number, k), phase.batch, difficulty, contrast
        )
        batch = {"images": drawn.images, "symbols": drawn.symbols, "step": np.float32(k)}
        return batch | (
            {"tokens": caption_tokens(self.tokenizer, drawn.captions)} if contrast else {}
        )

    def _save(self, number: int, k: int, phase: Phase, params: Any, state: Any) -> None:
        over = k == phase.steps
        content = {
            "settings": json.dumps(asdict(self.settings)),
            "phase": number + over,
            "step": 0 if over else k,
            "params": params,
            "state": {} if over else serialization.to_state_dict(state),
            "curves": json.dumps(self.curves),
        }
        with replacing(self.folder / "checkpoint.msgpack") as file:
            file.write(serialization.msgpack_serialize(jax.tree.map(_host, content)))

    def _resume(self, params: Any) -> dict[str, Any]:
        file = self.folder / "checkpoint.msgpack"
        if not file.is_file():
            return {"phase": 0, "step": 0, "params": params, "state": {}}
        content: Any = serialization.msgpack_restore(file.read_bytes())
        if content["settings"] != json.dumps(asdict(self.settings)):
            raise click.ClickException(
                f"{file} is from a run with other settings; choose another --output or delete the file"
            )
        self.curves = json.loads(content["curves"])
        content["params"] = serialization.from_state_dict(params, content["params"])
        click.echo(f"continuing at phase {content['phase']}, step {content['step']}")
        return content


def _host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def caption_tokens(tokenizer: Tokenizer, captions: list[str]) -> np.ndarray:
    """Returns token ids [n, CAPTION_TOKENS]. Longer captions are truncated and keep an end token."""
    tokens = tokenizer(captions, truncate=True)[:, :CAPTION_TOKENS].copy()
    tokens[:, -1] = tokenizer.backend.eos_token_id
    return tokens


def measure(model_folder: Path, split: str) -> dict[str, Any]:
    """Measures zero-shot accuracy and mean cosines on the renders of one split."""
    from bliss_jax.evaluation import similarity_bias

    model = bj.load_model(model_folder)
    images = load_glyphs(split)
    # The images are passed as training and as test set, because nothing is fitted here.
    embedded = embed_dataset(model, images, images, bj.load_dictionary("unicode-names"))
    cosines = embedded.test_embeddings @ embedded.label_embeddings.T
    found = cosines.argmax(axis=1) == embedded.test_labels
    return {
        "split": split,
        "images": len(found),
        "names": embedded.num_classes,
        "zero_shot_accuracy": float(found.mean()),
        "mean_cosines": asdict(similarity_bias(embedded)),
    }


def draw_curves(curves: list[dict[str, float]], phases: tuple[Phase, ...], file: Path) -> None:
    """Draws loss and accuracy of both phases over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for number, phase in enumerate(phases):
            own = [point for point in curves if point["phase"] == number]
            axes.plot([p["step"] for p in own], [p[name] for p in own], label=phase.name)
        axes.set(xlabel="step", ylabel=name)
        axes.legend()
    figure.savefig(file, dpi=150)


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the model and the checkpoint.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the run.")
@click.option(
    "--quick", "is_quick", is_flag=True, help="Run only a few steps, to check that the script runs."
)
def main(output: Path, seed: int, is_quick: bool) -> None:
    """Train the model, or continue its training, and write it to OUTPUT/model."""
    settings = Settings(seed=seed)
    settings = quick(settings) if is_quick else settings
    began = time.perf_counter()
    run = Run(settings, output)
    clip = run.train()
    save_checkpoint(run.model_folder, run.config, clip, PREPROCESSING, dtype="float16")
    result = {
        "settings": asdict(settings),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(clip)),
        "seconds_of_this_call": time.perf_counter() - began,
        "versions": package_versions(),
        "validation": measure(run.model_folder, "validation"),
        "test": measure(run.model_folder, "test"),
    }
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "curves.json").write_text(json.dumps(run.curves) + "\n")
    draw_curves(run.curves, settings.phases, output / "curves.png")
    for split in ("validation", "test"):
        click.echo(f"zero-shot accuracy, {split}: {result[split]['zero_shot_accuracy']:.4f}")


if __name__ == "__main__":
    main()
