"""Cases that run the library from end to end: `embed_images`, CIFAR-10's evaluation, and prompts."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

import bliss_jax as bj
from benchmarks.gpu.architectures import (
    architectures,
    encode,
    model_batch,
    random_images,
    random_model,
)
from benchmarks.gpu.measuring import Context, clock
from bliss_jax.datasets import ImageDataset, Protocol, load_protocol
from bliss_jax.embedding import embed_dataset, embed_images
from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.models.model import text_batch_size
from bliss_jax.models.text_batches import shared_prefix, text_batches
from bliss_jax.models.tokenize import Tokenizer
from bliss_jax.text import PROMPT, fill_prompt

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip


def embedded_images(name: str, size: int, context: Context) -> Iterator[dict[str, Any]]:
    """Measures `embed_images` on uint8 images in the host's memory, beside the encoder alone.

    The first call embeds two batches, so that everything is compiled. The second call is timed.
    """
    model, _, pixels = model_batch(name, context.quick)
    batch = len(pixels)
    alone = clock(lambda: encode(model.params, model.config, pixels), context.quick).median
    number = batch * (4 if context.quick else 128 if size == 32 else 64)
    images = random_images(number, size)
    yield {"encoder_images_per_s": batch / alone, "images": number, "batch": batch}
    for part in (images[: 2 * batch], images):
        dataset = ImageDataset("random", part, np.zeros(len(part), int), ("a", "b"), "random")
        start = time.perf_counter()
        embed_images(model, dataset, batch_size=batch)
        seconds = time.perf_counter() - start
        if part is not images:
            yield {"first_call_s": seconds}
    yield {"seconds": seconds, "images_per_s": number / seconds}


def cifar10(context: Context) -> Iterator[dict[str, Any]]:
    """Measures CIFAR-10's whole evaluation with B/16: texts, 60,000 images, all scores, all 25 splits.

    The pixels are synthetic. The first run includes compilation. The second run does not.
    """
    model = random_model("B/16", context.quick)
    batch = architectures(context.quick)["B/16"].batch
    numbers = (400, 100) if context.quick else (50_000, 10_000)
    train, test = (
        ImageDataset(
            "cifar10", random_images(n, 32, seed), np.arange(n) % 10, CIFAR10, "synthetic pixels"
        )
        for seed, n in enumerate(numbers)
    )
    words = bj.load_dictionary("imagenet1k")[: 100 if context.quick else None]
    protocols = [
        load_protocol(name, dataset="cifar10", num_classes=10)
        for name in ("one-class", "zoc-6", "leave-one-out")
    ]
    # One protocol of all splits, so that the evaluation is compiled once and not three times.
    splits = tuple(split for protocol in protocols for split in protocol.splits)
    protocol = Protocol("all of CIFAR-10's", "custom", "cifar10", splits)
    for run in ("first run, compilation included", "second run"):
        stages: dict[str, float] = {}
        start = time.perf_counter()
        embeddings = embed_dataset(
            model, train, test, words, batch_size=batch, track=_stopwatch(stages)
        )
        yield {run: stages}
        with _stage(stages, "evaluation"):
            evaluate(embeddings, protocol, Settings())
        total = time.perf_counter() - start
        yield {run: {"total_s": total, **stages}}
    yield {"images": sum(numbers), "texts": len(words), "splits": len(splits)}


def _stopwatch(stages: dict[str, float]) -> Any:
    """Returns the `track` of `embed_dataset` that adds the seconds of each stage to `stages`."""

    @contextmanager
    def track(what: str, total: int):
        with _stage(stages, what):
            yield lambda done: None

    return track


@contextmanager
def _stage(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - start


def dictionary_prompts(number: int) -> list[str]:
    """Returns prompts with the words of the shipped dictionary, repeated up to `number`."""
    words = bj.load_dictionary("imagenet1k")
    return list(fill_prompt(PROMPT, np.resize(words, number).tolist(), allow_repeats=True))


class GivenTokens(Tokenizer):
    """A tokenizer that returns the same token ids for every call."""

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Returns the token ids that are the tokenizer's backend."""
        return self.backend


def prompts(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures `Model.encode_texts` on the 1,860 prompts of the dictionary and on ten times as many.

    The token ids are given, because the benchmark has no tokenizer of the usual speed.
    """
    model = random_model(name, context.quick)
    tokenizer = model.tokenizer
    number = 64 if context.quick else 1860
    for count in (number, 10 * number):
        texts = dictionary_prompts(count)
        tokens = tokenizer(texts)
        given = GivenTokens(tokens, tokenizer.context_length, tokenizer.vocab_size)
        model = dataclasses.replace(model, tokenizer=given)
        start = time.perf_counter()
        jax.block_until_ready(model.encode_texts(texts))
        first = time.perf_counter() - start
        timing = clock(lambda model=model, texts=texts: model.encode_texts(texts), context.quick)
        batches = prompt_batches(tokens, model.config)
        yield {
            f"{count} prompts": {
                "seconds": timing.median,
                "prompts_per_s": count / timing.median,
                "first_call_s": first,
                "shapes": len({batch.shape for batch in batches}),
                "tokens": sum(batch.size for batch in batches),
            }
        }


def prompts_in_full(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """Measures the text tower on the same prompts without the library's cutting, for comparison."""
    model = random_model(name, context.quick)
    number = 64 if context.quick else 1860
    texts = dictionary_prompts(number)
    tokens = model.tokenize(texts)
    longest = int(model.config.used_lengths(tokens).max())
    encode = jax.jit(bj.encode_text, static_argnums=1)
    ours = np.asarray(model.encode_texts(texts))
    for way, given in {"77 tokens": tokens, f"{longest} tokens": tokens[:, :longest]}.items():
        on_device = jnp.asarray(given)
        timing = clock(lambda x=on_device: encode(model.params, model.config, x), context.quick)
        whole = np.asarray(encode(model.params, model.config, on_device))
        yield {
            way: {
                "seconds": timing.median,
                "prompts_per_s": number / timing.median,
                "cosine": float((whole * ours).sum(axis=1).min()),
            }
        }


def prompt_batches(tokens: np.ndarray, config: Any) -> Sequence[np.ndarray]:
    """Returns the batches of token ids that `Model.encode_texts` sends through the tower."""
    lengths = config.used_lengths(tokens)
    prefix = shared_prefix(tokens, lengths)
    return [batch.tokens for batch in text_batches(tokens, lengths, prefix, text_batch_size())]
