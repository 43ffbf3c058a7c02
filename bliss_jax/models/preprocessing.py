"""Preprocessing of uint8 images on the device: resampling equal to Pillow's, then normalisation.

    images [n, h, w, 3] uint8  ->  resized [n, size, size, 3] uint8  ->  (x / 255 - mean) / std

There are two geometries. `crop` (CLIP) scales the short side to `size` and crops the centre. `squash`
(SigLIP) scales both sides to `size`. Smaller images are enlarged, so images are never padded.

Resampling follows Pillow (`libImaging/Resample.c`) bit for bit. The filter is separable and widens when
an image shrinks. Its weights are normalised in double precision and rounded to 22 fractional bits. A
horizontal pass is rounded and clipped to 8 bits, then a vertical pass is rounded and clipped. The weights
depend only on static sizes and are computed on the host; the device computes int32 multiply-adds, so the
result is the same integer on every backend.

Pillow up to 12 always runs the horizontal pass first. Pillow 13 runs the vertical pass first if the height
loses more than twice as many pixels as the width (pull request 9549), which changes some pixels of tall
images. This module keeps the order with which CLIP was trained. Two calls of `Image.resize`, first for the
width and then for the height, give the same pixels with every Pillow.

The length of the long side and the crop offset are those of OpenAI's CLIP, which uses torchvision's `Resize`
and `CenterCrop`: `int(size * long / short)` and `round(margin / 2)` with ties to even. The
`CLIPImageProcessor` of transformers uses `margin // 2`, which is one pixel less for margins 3, 7, 11, ...
and equal otherwise.

All functions are pure, and each is compiled once for an image size when it is called eagerly. In a jitted function
`size`, `stats`, `geometry`, `resample` and `preprocessing` are static. `float_preprocessing.py` is differentiable.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int32, UInt8

from bliss_jax import _require
from bliss_jax._checks import compiled, rows

Images: TypeAlias = UInt8[Array, "n h w 3"] | UInt8[np.ndarray, "n h w 3"]
Geometry: TypeAlias = Literal["crop", "squash"]
Resample: TypeAlias = Literal["bicubic", "bilinear"]
ChannelStats: TypeAlias = tuple[float, float, float]

STATS: dict[str, tuple[ChannelStats, ChannelStats]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "reference": ((0.4913, 0.4821, 0.4465), (0.2470, 0.2434, 0.2615)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Named (mean, std) per channel. `reference` holds CIFAR's statistics, which the authors of BLISS used
for all data sets. `siglip` maps pixels to [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The settings that turn a uint8 image into a model's input.

    The class is hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        size: Height and width of the model's input in pixels.
        geometry: `crop` (short side to `size`, centre crop) or `squash` (both sides to `size`).
        resample: `bicubic` (a = -0.5) or `bilinear`. Both are antialiased when an image shrinks.
        mean: Values subtracted from the channels of x / 255.
        std: Values by which the channels are then divided.
    """

    size: int = 224
    geometry: Geometry = "crop"
    resample: Resample = "bicubic"
    mean: ChannelStats = STATS["clip"][0]
    std: ChannelStats = STATS["clip"][1]

    def __post_init__(self):
        _check_size(self.size)
        _check_choice("geometry", self.geometry, get_args(Geometry))
        _check_choice("resample", self.resample, get_args(Resample))
        for name, stats in (("mean", self.mean), ("std", self.std)):
            if not (
                isinstance(stats, tuple)
                and len(stats) == 3
                and all(isinstance(value, int | float) and math.isfinite(value) for value in stats)
            ):
                raise ValueError(f"{name} must be a tuple of three finite numbers, got {stats!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {self.std!r}")

    def with_stats(self, stats: str) -> "Preprocessing":
        """Returns the same geometry with the mean and std named `stats` in `STATS`."""
        _check_choice("stats", stats, STATS)
        mean, std = STATS[stats]
        return dataclasses.replace(self, mean=mean, std=std)

    def describe(self) -> dict[str, Any]:
        """Returns all settings as JSON values, for the provenance of a result.

        `stats` is the name of the statistics in `STATS`, or `custom` if they are not in it.
        """
        named = {values: name for name, values in STATS.items()}
        return {
            "size": self.size,
            "geometry": self.geometry,
            "resample": self.resample,
            "stats": named.get((self.mean, self.std), "custom"),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def apply_preprocessing(
    images: Images, preprocessing: Preprocessing
) -> Float[Array, "n size size 3"]:
    """Computes (resize(x) / 255 - mean) / std in float32.

    Args:
        images: RGB images, uint8 [n, h, w, 3].
        preprocessing: Size, geometry, filter and statistics.

    Returns:
        Pixels, float32 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3].
    """
    _check_images(images)
    return _normalised(images, preprocessing=preprocessing)


@compiled(static=("preprocessing",), out=lambda images: rows(images))
def _normalised(images: Array, *, preprocessing: "Preprocessing") -> Array:
    resized = resize(
        images,
        preprocessing.size,
        geometry=preprocessing.geometry,
        resample=preprocessing.resample,
    )
    # XLA would replace the divisions by constants with products, which round differently.
    largest, mean, std = jax.lax.optimization_barrier(
        tuple(
            jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1)
            for value in (255, preprocessing.mean, preprocessing.std)
        )
    )
    return (resized.astype(jnp.float32) / largest - mean) / std


def preprocess(
    images: Images, size: int = 224, stats: str = "clip"
) -> Float[Array, "n size size 3"]:
    """Applies CLIP's preprocessing (bicubic, centre crop) with the statistics named `stats`.

    Args:
        images: RGB images, uint8 [n, h, w, 3].
        size: Height and width of the model's input.
        stats: A name in `STATS`: `clip`, `reference` or `siglip`.

    Returns:
        Pixels, float32 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3], or `stats` is unknown.
    """
    return apply_preprocessing(images, Preprocessing(size=size).with_stats(stats))


def resize_bicubic(images: Images, size: int = 224) -> UInt8[Array, "n size size 3"]:
    """Scales the short side to `size` with Pillow's bicubic filter and crops the centre.

    Args:
        images: Images, uint8 [n, h, w, 3].
        size: Height and width of the result.

    Returns:
        Images equal to Pillow's, uint8 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3].
    """
    return resize(images, size, geometry="crop", resample="bicubic")


def resize(
    images: Images, size: int, *, geometry: Geometry, resample: Resample
) -> UInt8[Array, "n size size 3"]:
    """Resizes images to `size` x `size` pixels with results equal to Pillow's, bit for bit.

    Args:
        images: Images, uint8 [n, h, w, 3].
        size: Height and width of the result.
        geometry: `crop` (short side to `size`, centre crop) or `squash` (both sides to `size`).
        resample: `bicubic` or `bilinear`, antialiased when an image shrinks.

    Returns:
        Images, uint8 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3], or an option is unknown.
    """
    _check_images(images)
    _check_size(size)
    _check_choice("geometry", geometry, get_args(Geometry))
    _check_choice("resample", resample, get_args(Resample))
    return _resized(images, size=size, geometry=geometry, resample=resample)


@compiled(static=("size", "geometry", "resample"), out=lambda images: rows(images))
def _resized(images: Array, *, size: int, geometry: Geometry, resample: Resample) -> Array:
    _, height, width, _ = images.shape
    (new_height, new_width), (top, left) = crop_geometry(height, width, size, geometry)
    rows, seen = _filter_of_rows(height, new_height, top, size, resample)
    resized = lax.slice_in_dim(jnp.asarray(images), seen.start, seen.stop, axis=1)
    # Like Pillow, this function does not filter an axis that keeps its length.
    if new_width == width:
        resized = lax.slice_in_dim(resized, left, left + size, axis=2)
    else:
        columns = left + np.arange(size)
        resized = _filter_axis(resized, *filter_weights(width, new_width, columns, resample), 2)
    return resized if rows is None else _filter_rows(resized, *rows)


def resize_on_host(
    image: UInt8[np.ndarray, "h w 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Resizes one image on the host with Pillow; the pixels are those of `resize`.

    It suits images of many different sizes, each of which `resize` would compile for. Applied to the
    result, `apply_preprocessing` only normalises.

    Args:
        image: An image, uint8 [h, w, 3].
        preprocessing: Size, geometry and filter. The statistics are not used.

    Returns:
        An image, uint8 [size, size, 3]. For a NaFlex model, the packed patches (see `naflex`).

    Raises:
        ValueError: `image` is not a uint8 array [h, w, 3] with pixels.
    """
    _require("PIL", "encoders")
    from PIL import Image

    _check_images(np.asarray(image)[None])
    if pack := getattr(preprocessing, "pack", None):
        return pack(image)
    height, width, _ = image.shape
    size = preprocessing.size
    (new_height, new_width), (top, left) = crop_geometry(
        height, width, size, preprocessing.geometry
    )
    if max(new_height, new_width) > _THIN * size:
        return _resize_thin(image, preprocessing)
    resample = Image.Resampling[preprocessing.resample.upper()]
    # One call for each axis, because the order of the passes within one call depends on Pillow's version.
    resized = Image.fromarray(image).resize((new_width, height), resample)
    resized = resized.resize((new_width, new_height), resample)
    return np.asarray(resized)[top : top + size, left : left + size]


_THIN = 16
"""Aspect ratio above which only the crop is computed. Pillow would resize an image of 1 x 100,000 pixels
to five billion pixels before the crop."""


def _resize_thin(
    image: UInt8[np.ndarray, "h w 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes one image with NumPy, and computes only the pixels of the crop."""
    (height, width, _), size, resample = image.shape, preprocessing.size, preprocessing.resample
    (new_height, new_width), (top, left) = crop_geometry(
        height, width, size, preprocessing.geometry
    )
    rows, seen = _filter_of_rows(height, new_height, top, size, resample)
    image = image[seen.start : seen.stop]
    if new_width == width:
        image = image[:, left : left + size]
    else:
        columns = left + np.arange(size)
        image = _filter_on_host(image, *filter_weights(width, new_width, columns, resample), 1)
    return image if rows is None else _filter_on_host(image, *rows, 0)


def crop_geometry(
    height: int, width: int, size: int, geometry: Geometry
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns height and width after resizing, and the top left corner of the crop.

    The module's docstring states both rules.
    """
    if geometry == "squash":
        return (size, size), (0, 0)
    short = min(height, width)
    resized = int(size * height / short), int(size * width / short)
    return resized, (round((resized[0] - size) / 2), round((resized[1] - size) / 2))


FRACTION_BITS = 22
"""Pillow's `PRECISION_BITS`: an int32 minus 8 bits for a pixel and 2 bits for overshoot."""


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Computes Keys' cubic convolution kernel with a = -0.5, in Pillow's order of operations."""
    a = -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    """Computes the triangle kernel."""
    return np.where(x < 1.0, 1.0 - x, 0.0)


_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}
"""Each kernel as a function of the absolute distance, and its support."""


def filter_weights(
    length: int, new_length: int, outputs: np.ndarray, resample: str
) -> tuple[Int32[np.ndarray, "size"], Int32[np.ndarray, "size taps"]]:
    """Computes fixed-point filter weights of the pixels `outputs` of an axis resized to `new_length`.

    The steps and their order are those of Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`,
    because the last bit of a weight can change the last bit of a pixel.

    Returns:
        The index of the first input of each output, and the weights of the inputs from there on, times
        2^22. Outputs with fewer inputs than others have trailing weights of zero.
    """
    kernel, support = _KERNELS[resample]
    scale = length / new_length
    stretch = max(scale, 1.0)
    center = (outputs + 0.5) * scale
    first = np.maximum((center - support * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support * stretch + 0.5).astype(np.int64), length)
    inputs = first[:, None] + np.arange((end - first).max())
    weights = kernel(np.abs((inputs - center[:, None] + 0.5) * (1.0 / stretch)))
    weights = np.where(inputs < end[:, None], weights, 0.0)
    # cumsum adds from left to right, as Pillow does. sum would add pairwise.
    weights = weights / np.cumsum(weights, axis=1)[:, -1:]
    fixed = np.trunc(weights * (1 << FRACTION_BITS) + np.copysign(0.5, weights))
    return first.astype(np.int32), fixed.astype(np.int32)


def _filter_of_rows(
    height: int, new_height: int, top: int, size: int, resample: str
) -> tuple[tuple[Int32[np.ndarray, "size"], Int32[np.ndarray, "size taps"]] | None, range]:
    """Returns the filter of the rows top, ..., top + size - 1, and the range of rows that it reads.

    The filter is None if the height does not change. The indices of its first inputs are relative to the
    first row that it reads.
    """
    if new_height == height:
        return None, range(top, top + size)
    first, weights = filter_weights(height, new_height, top + np.arange(size), resample)
    seen = range(int(first.min()), min(int(first.max()) + weights.shape[1], height))
    return (first - np.int32(seen.start), weights), seen


def _filter_on_host(
    image: UInt8[np.ndarray, "rows columns 3"],
    first: Int32[np.ndarray, "size"],
    weights: Int32[np.ndarray, "size taps"],
    axis: int,
) -> UInt8[np.ndarray, "new_rows new_columns 3"]:
    """Applies `_filter_axis` to one image with NumPy."""
    along_axis = [-1 if dimension == axis else 1 for dimension in range(3)]
    total = np.int32(1 << (FRACTION_BITS - 1))
    for tap in range(weights.shape[1]):
        pixels = np.take(image, first + tap, axis=axis, mode="clip").astype(np.int32)
        total = total + weights[:, tap].reshape(along_axis) * pixels
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


def _filter_axis(
    images: UInt8[Array, "n rows columns 3"],
    first: Int32[Array, "size"] | Int32[np.ndarray, "size"],
    weights: Int32[Array, "size taps"] | Int32[np.ndarray, "size taps"],
    axis: int,
) -> UInt8[Array, "n new_rows new_columns 3"]:
    """Computes one pass, out[o] = clip((2^21 + sum_t weights[o, t] * in[first[o] + t]) >> 22, 0, 255).

    Every sum fits into int32: the absolute weights of an output add up to less than 1.27 (1.25 in the
    interior, slightly more at the border), and 1.27 * 2^22 * 255 + 2^21 < 2^31.
    """
    along_axis = [-1 if dimension == axis else 1 for dimension in range(4)]
    total = 1 << (FRACTION_BITS - 1)
    for tap in range(weights.shape[1]):
        # Past the end of the axis the weight is zero, so clipping the index has no effect.
        pixels = jnp.take(images, first + tap, axis=axis, mode="clip").astype(jnp.int32)
        total = total + weights[:, tap].reshape(along_axis) * pixels
    return jnp.clip(total >> FRACTION_BITS, 0, 255).astype(jnp.uint8)


def _filter_rows(
    images: UInt8[Array, "n rows size 3"],
    first: Int32[np.ndarray, "size"],
    weights: Int32[np.ndarray, "size taps"],
) -> UInt8[Array, "n size size 3"]:
    """Computes the vertical pass, `_filter_axis` along axis 1, as a loop over two halves of the output.

    Without the loop XLA fuses both passes and repeats the horizontal pass for every vertical tap. With it,
    resizing 32 x 32 to 224 x 224 is twice as fast (measured). The loop runs over rows instead of images, so
    a batch that is sharded over devices is not moved.
    """
    size, taps = weights.shape
    if size % 2:
        return _filter_axis(images, first, weights, 1)
    upper, lower = lax.map(
        lambda half: _filter_axis(images, half[0], half[1], 1),
        (jnp.asarray(first).reshape(2, -1), jnp.asarray(weights).reshape(2, -1, taps)),
    )
    return jnp.concatenate([upper, lower], axis=1)


def _check_images(images: object) -> None:
    if not isinstance(images, jax.Array | np.ndarray):
        raise ValueError(
            f"images must be one uint8 array [n, h, w, 3], got {type(images).__name__}; "
            "call this function once per image size"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [n, h, w, 3], got {images.dtype} {list(images.shape)}"
        )
    if 0 in images.shape[1:3]:
        raise ValueError(f"images must not be empty, got shape {list(images.shape)}")


def _check_size(size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a positive int, got {size!r}")


def _check_choice(what: str, given: object, known: Iterable[str]) -> None:
    names = list(known)
    if given not in names:
        near = difflib.get_close_matches(str(given), names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown {what} {given!r}, expected one of {names}{hint}")
