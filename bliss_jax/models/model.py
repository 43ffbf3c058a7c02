"""Loaded encoders, which map images and texts to unit-norm embeddings in one space.

`Model` combines the pure functions of `encode.py` with a checkpoint's tokenizer and preprocessing.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from bliss_jax.models.checkpoint import read_config, read_preprocessing, with_image_size
from bliss_jax.models.encode import encode_image, encode_text
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.hub import fetch
from bliss_jax.models.layers import Dtype
from bliss_jax.models.naflex import NaflexPreprocessing, Patches
from bliss_jax.models.preprocessing import Preprocessing, apply_preprocessing, resize_on_host
from bliss_jax.models.registry import REGISTRY, TINY, UNTRAINED, NamedCheckpoint, near_misses
from bliss_jax.models.text_batches import shared_prefix, text_batches
from bliss_jax.models.tokenize import Tokenizer, clean_clip, load_tokenizer
from bliss_jax.models.untrained import byte_tokenizer, untrained_config, untrained_params
from bliss_jax.models.weights import Params, as_params, fingerprint, flatten, load_params

Images = UInt8[Array, "n h w 3"] | UInt8[np.ndarray, "n h w 3"]

# Texts per call of the text tower on a CPU and on an accelerator. It bounds the memory and the number of shapes that
# are compiled. An accelerator takes as long to start the kernels of a small batch as to compute a large one.
_CPU_TEXTS, _ACCELERATOR_TEXTS = 256, 1024
_TINY_DIRECTORY = Path(__file__).parent / "tiny"


def to_pixels(
    images: Images, preprocessing: Preprocessing
) -> Float[Array, "n size size 3"] | Patches:
    """Returns the input of `encode_image` from uint8 images; for NaFlex, from packed patches."""
    if isinstance(preprocessing, NaflexPreprocessing):
        return preprocessing.unpack(images)
    return apply_preprocessing(images, preprocessing)


def text_batch_size() -> int:
    """Returns the number of texts per call of the text tower."""
    return _CPU_TEXTS if jax.default_backend() == "cpu" else _ACCELERATOR_TEXTS


# Jitted once for all models, so models of one configuration share their compilations.
_preprocess = jax.jit(to_pixels, static_argnums=1)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """An image encoder and a text encoder with their tokenizer and preprocessing.

    Attributes:
        name: The name from which it was loaded: a repository, a directory, or a built-in name.
        config: Sizes and dtype. It is hashable.
        params: Parameters, a nested dictionary of JAX arrays, not committed to a device.
        tokenizer: Converts texts to token ids.
        preprocessing: The checkpoint's preprocessing of uint8 images.
        weights_hash: SHA-256 of names, dtypes, shapes and bytes of the parameters as stored.
        revision: The commit from which it was loaded; None for a directory and for built-in models.
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    weights_hash: str
    revision: str | None = None

    def __repr__(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        revision = "" if self.revision is None else f", revision {self.revision[:8]}"
        return (
            f"Model({self.name!r}{revision}, {type(self.config).__name__}, {parameters:,} parameters, image size "
            f"{self.image_size}, embedding dim {self.embedding_dim}, {self.dtype})"
        )

    @property
    def dtype(self) -> Dtype:
        """Dtype of the matrix products. Embeddings are always float32."""
        return self.config.dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides an embedding: weights, configuration, preprocessing."""
        decisive = (self.weights_hash, repr(self.config), repr(self.preprocessing))
        return hashlib.sha256("\n".join(decisive).encode()).hexdigest()

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.config.embedding_dim

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels; for NaFlex, that of a square image of the position table."""
        return self.config.vision.image_size

    def encode_images(
        self, images: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]], preprocess: str | None = None
    ) -> Float[Array, "n dim"]:
        """Computes unit-norm float32 embeddings of RGB images as one batch.

        Each new shape is compiled once. Memory grows with n, so large sets should be split into batches.

        Args:
            images: Images, uint8 [n, h, w, 3] with any n, or a list of uint8 [h, w, 3]. Images of one size
                are resized on the device, and a list of several sizes on the host, to the same pixels.
            preprocess: None for the checkpoint's preprocessing. A name in
                `bliss_jax.models.preprocessing.STATS`, e.g. "clip" or "reference" (CIFAR's), replaces the
                checkpoint's statistics and keeps its geometry. SigLIP was trained with neither of these
                two, so they serve comparisons and give worse embeddings.

        Raises:
            ValueError: `images` is not uint8 of these shapes, or `preprocess` is unknown.
        """
        pixels = self._pixels(images, self.preprocessing_with(preprocess))
        return encode_image(self.params, self.config, pixels)

    def encode_texts(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Float[Array, "m dim"]:
        """Computes unit-norm float32 embeddings of texts, `text_batch_size()` at a time.

        For CLIP the padding is dropped, texts are batched by length, and a shared prefix is encoded once;
        see `bliss_jax.models.text_batches`.

        Args:
            texts: Any number of texts.
            truncate: Whether to truncate texts that exceed the context instead of raising an error.

        Raises:
            ValueError: A text is too long, or the tokenizer does not fit the model.
        """
        tokens = self.tokenize(texts, truncate=truncate)
        embeddings = np.empty((len(tokens), self.embedding_dim), np.float32)
        if not len(tokens):
            return jnp.asarray(embeddings)
        lengths = self.config.used_lengths(tokens)
        start = shared_prefix(tokens, lengths) if self.config.prefix_can_be_shared else 0
        prefix = jnp.asarray(tokens[0, :start]) if start else None
        batches = list(text_batches(tokens, lengths, start, text_batch_size()))
        # Dispatch all batches before waiting for the first.
        encoded = [
            encode_text(self.params, self.config, jnp.asarray(batch.tokens), prefix)
            for batch in batches
        ]
        for batch, of_batch in zip(batches, encoded, strict=True):
            embeddings[batch.rows] = np.asarray(of_batch)[: len(batch.rows)]
        return jnp.asarray(embeddings)

    def tokenize(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "m length"]:
        """Returns token ids padded to the context; see `bliss_jax.models.tokenize`."""
        return self.tokenizer(texts, truncate=truncate)

    def preprocessing_with(self, stats: str | None) -> Preprocessing:
        """Returns the checkpoint's preprocessing, with the statistics named `stats` unless that is None.

        Raises:
            ValueError: `stats` is unknown.
        """
        return self.preprocessing if stats is None else self.preprocessing.with_stats(stats)

    def _pixels(
        self, images: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]], preprocessing: Preprocessing
    ) -> Float[Array, "n size size 3"] | Patches:
        if isinstance(preprocessing, NaflexPreprocessing):
            packed = [resize_on_host(np.asarray(image), preprocessing) for image in images]
            shape = (0, *preprocessing.packed_shape)
            return _preprocess(
                np.stack(packed) if packed else np.zeros(shape, np.uint8), preprocessing
            )
        if len(images) == 0:
            images = np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        if isinstance(images, np.ndarray | jax.Array):
            return _preprocess(images, preprocessing)
        if len({np.shape(image) for image in images}) > 1:
            # On the device each size would be compiled separately.
            images = [resize_on_host(image, preprocessing) for image in images]
        return _preprocess(np.stack(images), preprocessing)


def load_model(
    name_or_path: str | Path,
    *,
    dtype: Dtype = "float32",
    revision: str | None = None,
    image_size: int | None = None,
) -> Model:
    """Loads an encoder with its tokenizer and preprocessing. CLIP's tokenizer is read at the first text.

    Args:
        name_or_path: A directory in the layout of transformers or OpenCLIP; a name in `model_names()`; or
            any other repository on the Hugging Face Hub with a CLIP, MetaCLIP 2, SigLIP or SigLIP 2 model.
            An existing directory takes precedence over a repository of the same name. "bliss-jax/tiny"
            comes with the library and is trained on the symbols of the data set `glyphs`.
            "bliss-jax/untrained" is random.
        dtype: "float32", the reference, or "bfloat16", which is faster on most devices. With "bfloat16" the
            operands of matrix products are bfloat16, and their results and all other values are float32.
        revision: A commit, tag or branch. None means the registry's revision, or the main branch of a
            repository that is not in the registry. Directories have no revisions.
        image_size: Side of the model's input in pixels, if it should differ from the checkpoint's. The
            position table is interpolated (see `bliss_jax.models.positions`).

    Raises:
        ValueError: The name is unknown (similar names are listed), the files cannot be downloaded, the
            checkpoint is incomplete, corrupt, a pickle or of another architecture, or its sizes or weights
            differ from the registry's.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"unknown dtype {dtype!r}, expected one of {list(get_args(Dtype))}")
    name = os.fspath(name_or_path)
    if name == UNTRAINED:
        if image_size is not None:
            raise ValueError(f"image_size: {UNTRAINED} has the fixed size 32, got {image_size!r}")
        return _untrained(dtype)
    if name == TINY:
        advice = f"{_TINY_DIRECTORY} is damaged: install bliss-jax again"
        return _load_directory(TINY, _TINY_DIRECTORY, dtype, None, image_size, advice)
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a directory and has no revision, got {revision!r}")
        return _load_directory(name, Path(name), dtype, None, image_size)
    entry = REGISTRY.get(name)
    revision = revision or (entry.revision if entry else None)
    try:
        directory = fetch(name, revision)
    except ValueError as error:
        near = [] if entry else near_misses(name)
        hint = (
            f"\nThere is no directory {name!r}. Similar registered names: {near}." if near else ""
        )
        raise ValueError(f"{error}{hint}") from error
    advice = "the repository does not hold the registered checkpoint"
    return _load_directory(name, directory, dtype, directory.name, image_size, advice)


def _load_directory(
    name: str,
    directory: Path,
    dtype: Dtype,
    revision: str | None,
    image_size: int | None = None,
    advice: str | None = None,
) -> Model:
    """Loads a directory. With `advice` the model is compared with its registry entry."""
    config = read_config(directory, dtype)
    preprocessing = read_preprocessing(directory, config)
    entry = REGISTRY.get(name) if advice is not None else None
    if entry is not None:
        _check_sizes(name, revision, config, entry, advice)
    if image_size is not None:
        config, preprocessing = with_image_size(config, preprocessing, image_size)
    tokenizer = load_tokenizer(directory, config)
    params, weights_hash = load_params(directory, config, interpolate=image_size is not None)
    # The registry's hash belongs to its own revision, and the caller may have chosen another one.
    known = entry.weights_sha256 if entry is not None and revision == entry.revision else None
    if known not in (None, weights_hash):
        raise ValueError(
            f"the weights of {name} have the hash {weights_hash}, but the registry says {known}: {advice}"
        )
    return Model(name, config, params, tokenizer, preprocessing, weights_hash, revision)


def _check_sizes(
    name: str, revision: str | None, config: ModelConfig, entry: NamedCheckpoint, advice: str | None
) -> None:
    vision = config.vision
    found = (config.embedding_dim, vision.image_size, vision.patch_size)
    expected = (entry.embedding_dim, entry.image_size, entry.patch_size)
    if found != expected:
        at = f" at {revision}" if revision else ""
        raise ValueError(
            f"{name}{at} has (embedding, image, patch) sizes {found}, but the registry says {expected}: "
            f"{advice}"
        )


def _untrained(dtype: Dtype) -> Model:
    config = untrained_config(dtype)
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(untrained_params(config)).items()}
    text = config.text
    return Model(
        name=UNTRAINED,
        config=config,
        params=as_params(tensors, dtype),
        tokenizer=Tokenizer(
            byte_tokenizer(), text.max_position_embeddings, text.vocab_size, clean_clip
        ),
        preprocessing=REGISTRY[UNTRAINED].preprocessing,
        weights_hash=fingerprint(tensors),
    )
