"""A loaded encoder: images and texts to unit-norm embeddings in one space.

`encode_image` and `encode_text` are the pure functions of parameters, configuration and arrays, for
composing, differentiating and sharding; nothing in them is jitted. `Model` binds them to a
checkpoint's tokenizer and preprocessing and jits them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from bliss_jax.models.checkpoint import fetch, read_config, read_preprocessing
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.layers import Dtype
from bliss_jax.models.preprocessing import Preprocessing, apply_preprocessing, resize_on_host
from bliss_jax.models.registry import REGISTRY, TINY, UNTRAINED, NamedCheckpoint, near_misses
from bliss_jax.models.siglip import SiglipConfig
from bliss_jax.models.text_batches import shared_prefix, text_batches
from bliss_jax.models.tokenize import Tokenizer, clean_clip, load_tokenizer
from bliss_jax.models.untrained import byte_tokenizer, untrained_config, untrained_params
from bliss_jax.models.weights import Params, as_params, fingerprint, flatten, load_params

ModelConfig = CLIPConfig | SiglipConfig
Images = UInt8[Array, "n h w 3"] | UInt8[np.ndarray, "n h w 3"]

# Texts per call of the text tower: bounds memory, and with it the shapes that are compiled.
TEXT_BATCH = 256
_TINY_DIRECTORY = Path(__file__).parent / "tiny"


def encode_image(
    params: Params, config: ModelConfig, pixels: Float[Array, "images size size 3"]
) -> Float[Array, "images dim"]:
    """Unit-norm float32 embeddings of preprocessed images.

    Pure, and not jitted: jit it with `config` static. The matrix products run in `config.dtype`,
    also where the kernels are stored in another dtype; all other parameters are float32.

    Args:
        params: The parameter tree of a checkpoint (`Model.params`).
        config: Its configuration (`Model.config`); decides between CLIP and SigLIP.
        pixels: [images, size, size, 3], as `apply_preprocessing` returns them.

    Raises:
        ValueError: The pixels have another size than the tower's.
    """
    return _apply(params, config, "encode_image", pixels)


def encode_text(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "texts length"],
    prefix: Int[Array, " prefix"] | None = None,
) -> Float[Array, "texts dim"]:
    """Unit-norm float32 embeddings of token ids.

    Pure, and not jitted: jit it with `config` static.

    Args:
        params: The parameter tree of a checkpoint (`Model.params`).
        config: Its configuration (`Model.config`); decides between CLIP and SigLIP.
        tokens: [texts, length], as `Model.tokenize` returns them. For CLIP the padding may be cut:
            any length up to the context gives the same embeddings, as long as each text's end token
            is kept. For SigLIP the length is the context exactly. An id outside the vocabulary
            makes its embedding NaN.
        prefix: Tokens that precede all rows of `tokens`, which then hold what follows: the embeddings
            are those of the whole texts, and the prefix is computed once. For CLIP only.

    Raises:
        ValueError: The length does not fit the context, or a prefix for SigLIP.
    """
    if prefix is None:
        return _apply(params, config, "encode_text", tokens)
    if not config.prefix_can_be_shared:
        raise ValueError(
            f"prefix: {type(config).__name__} has no causal mask, so that the states of a prefix depend "
            "on what follows; pass whole texts"
        )
    return _apply(params, config, "encode_text", tokens, prefix)


def _apply(params: Params, config: ModelConfig, method: str, *inputs: Array) -> Array:
    return cast(Array, config.module().apply({"params": params}, *inputs, method=method))


# Jitted once for all models: the compilations are shared by models of one configuration.
_encode_image = jax.jit(encode_image, static_argnums=1)
_encode_text = jax.jit(encode_text, static_argnums=1)
_preprocess = jax.jit(apply_preprocessing, static_argnums=1)


@dataclass(frozen=True, eq=False)
class Model:
    """A pair of encoders with all that belongs to them.

    Attributes:
        name: What it was loaded as: a repository, a directory, or a built-in name.
        config: Sizes and dtype; hashable.
        params: Parameters, a nested dictionary of JAX arrays, on no particular device.
        tokenizer: Texts to token ids.
        preprocessing: uint8 images to pixels, as the checkpoint asks for.
        weights_hash: SHA-256 over names, dtypes, shapes and bytes of the parameters as stored.
        revision: The commit it came from; None for a directory and for built-in models.
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    weights_hash: str
    revision: str | None = None

    @property
    def dtype(self) -> Dtype:
        """Of the matrix products; embeddings are float32 in any case."""
        return self.config.dtype

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.config.embedding_dim

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.config.vision.image_size

    def encode_images(
        self, images: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]], preprocess: str | None = None
    ) -> Float[Array, "n dim"]:
        """Unit-norm float32 embeddings of RGB images, as one batch.

        Every new shape is compiled once. Memory grows with n: cut large sets into batches.

        Args:
            images: uint8 [n, h, w, 3] of any n, or a list of uint8 [h, w, 3]. Images of one size are
                resized on the device, a list of several sizes on the host, to the same pixels.
            preprocess: None for what the checkpoint asks for. Else a name in
                `bliss_jax.models.preprocessing.STATS`: the checkpoint's geometry with those
                statistics, "clip" or "reference" (CIFAR's). That also holds for SigLIP, which was
                trained with neither: there, name them to compare, not to get good embeddings.

        Raises:
            ValueError: `images` is not uint8 of these shapes, or `preprocess` is unknown.
        """
        pixels = self._pixels(images, self.preprocessing_with(preprocess))
        return _encode_image(self.params, self.config, pixels)

    def encode_texts(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Float[Array, "m dim"]:
        """Unit-norm float32 embeddings of texts, `TEXT_BATCH` at a time.

        CLIP's texts are cut at their ends and batched by length, and what they all begin with is
        computed once; see `bliss_jax.models.text_batches`.

        Args:
            texts: Any number of texts.
            truncate: Cut texts longer than the context instead of refusing them.

        Raises:
            ValueError: A text is too long.
        """
        tokens = self.tokenize(texts, truncate=truncate)
        embeddings = np.empty((len(tokens), self.embedding_dim), np.float32)
        if not len(tokens):
            return jnp.asarray(embeddings)
        lengths = self.config.used_lengths(tokens)
        start = shared_prefix(tokens, lengths) if self.config.prefix_can_be_shared else 0
        prefix = jnp.asarray(tokens[0, :start]) if start else None
        batches = list(text_batches(tokens, lengths, start, TEXT_BATCH))
        # All are dispatched before the first is waited for.
        encoded = [
            _encode_text(self.params, self.config, jnp.asarray(batch.tokens), prefix)
            for batch in batches
        ]
        for batch, of_batch in zip(batches, encoded, strict=True):
            embeddings[batch.rows] = np.asarray(of_batch)[: len(batch.rows)]
        return jnp.asarray(embeddings)

    def tokenize(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "m length"]:
        """Token ids padded to the context; see `bliss_jax.models.tokenize`."""
        return self.tokenizer(texts, truncate=truncate)

    def preprocessing_with(self, stats: str | None) -> Preprocessing:
        """The checkpoint's preprocessing, with the statistics named `stats` unless that is None.

        Raises:
            ValueError: `stats` is unknown.
        """
        return self.preprocessing if stats is None else self.preprocessing.with_stats(stats)

    def _pixels(
        self, images: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]], preprocessing: Preprocessing
    ) -> Float[Array, "n size size 3"]:
        if len(images) == 0:
            images = np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        if isinstance(images, np.ndarray | jax.Array):
            return _preprocess(images, preprocessing)
        if len({np.shape(image) for image in images}) > 1:
            # One size after the other on the device would compile anew for each.
            images = [resize_on_host(image, preprocessing) for image in images]
        return _preprocess(np.stack(images), preprocessing)


def load_model(
    name_or_path: str | Path, *, dtype: Dtype = "float32", revision: str | None = None
) -> Model:
    """Loads an encoder with its tokenizer and preprocessing.

    Args:
        name_or_path: A directory in transformers' format; a name of `model_names()`; or any other
            repository on the Hugging Face Hub with a CLIP or SigLIP model. An existing directory
            wins over a repository of the same name. "bliss-jax/tiny" comes with the library: it
            knows the symbols of the data set `glyphs`. "bliss-jax/untrained" is random.
        dtype: "float32", the reference; or "bfloat16", faster on most devices: operands of
            matrix products in bfloat16, their results and all else in float32.
        revision: A commit, tag or branch; None is the registry's, or the main branch of a
            repository that is not in the registry. Directories have none.

    Raises:
        ValueError: The name is unknown (near misses are listed), the checkpoint is incomplete,
            corrupt, a pickle or of another architecture, or its sizes or weights are not the registry's.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"unknown dtype {dtype!r}, expected one of {list(get_args(Dtype))}")
    name = os.fspath(name_or_path)
    if name == UNTRAINED:
        return _untrained(dtype)
    if name == TINY:
        model = _load_directory(TINY, _TINY_DIRECTORY, dtype, None)
        _check_entry(model, REGISTRY[TINY], f"{_TINY_DIRECTORY} is damaged: install bliss-jax anew")
        return model
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a directory and has no revision, got {revision!r}")
        return _load_directory(name, Path(name), dtype, None)
    entry = REGISTRY.get(name)
    model = _load_repository(name, dtype, revision or (entry.revision if entry else None))
    if entry is not None:
        _check_entry(model, entry, "not the checkpoint that is meant")
    return model


def _load_repository(name: str, dtype: Dtype, revision: str | None) -> Model:
    try:
        directory = fetch(name, revision)
    except ValueError as error:
        near = [] if name in REGISTRY else near_misses(name)
        hint = f" Registered names like it: {near}." if near else ""
        raise ValueError(f"{error}\n{name!r} is not a directory either.{hint}") from error
    return _load_directory(name, directory, dtype, directory.name)


def _load_directory(name: str, directory: Path, dtype: Dtype, revision: str | None) -> Model:
    config = read_config(directory, dtype)
    preprocessing = read_preprocessing(directory, config)
    tokenizer = load_tokenizer(directory, config)
    params, weights_hash = load_params(directory, config)
    return Model(name, config, params, tokenizer, preprocessing, weights_hash, revision)


def _check_entry(model: Model, entry: NamedCheckpoint, otherwise: str) -> None:
    vision = model.config.vision
    found = (model.embedding_dim, vision.image_size, vision.patch_size)
    expected = (entry.embedding_dim, entry.image_size, entry.patch_size)
    if found != expected:
        raise ValueError(
            f"{model.name} at {model.revision} has (embedding, image, patch) sizes {found}, but the "
            f"registry says {expected}: {otherwise}"
        )
    # The hash is that of the entry's own revision; a caller may have asked for another.
    known = entry.weights_sha256 if model.revision == entry.revision else None
    if known not in (None, model.weights_hash):
        raise ValueError(
            f"the weights of {model.name} have the hash {model.weights_hash}, but the registry says "
            f"{known}: {otherwise}"
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
