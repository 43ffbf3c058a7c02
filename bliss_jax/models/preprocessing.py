"""From uint8 images to model input, on the device: Pillow's resampling bit for bit, then statistics.

    images [n, h, w, 3] uint8  ->  resized [n, size, size, 3] uint8  ->  (x / 255 - mean) / std

Two geometries: `crop` (CLIP) scales the short side to `size` and crops the centre, `squash` (SigLIP)
scales both sides to `size`. Images smaller than `size` are enlarged, so nothing is ever padded.

Resampling follows Pillow (`libImaging/Resample.c`): a separable filter, widened when shrinking;
weights normalised in double precision and rounded to 22 fractional bits; a horizontal pass, rounding
and clipping to 8 bits, a vertical pass, rounding and clipping again. The weights depend on static
sizes only and are made on the host; the device sees int32 multiply-adds, so the result is the same
integer on every backend. Pillow up to 12 always runs the horizontal pass first; Pillow 13 runs the
vertical one first where the height loses more than twice as many pixels as the width (its pull request
9549), which changes some pixels of tall pictures. This module keeps the order that CLIP was trained with;
two calls of `Image.resize`, first the width, then the height, give its pixels in every Pillow.

Length of the long side and crop offset are those of OpenAI's CLIP, that is of torchvision's `Resize`
and `CenterCrop`: `int(size * long / short)` and `round(margin / 2)` with ties to even. transformers'
`CLIPImageProcessor` takes `margin // 2`: one pixel less for margins 3, 7, 11, ..., else the same.

All functions are pure and none is jitted inside: jit them with `size`, `stats`, `geometry`,
`resample` and `preprocessing` static.
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

Images: TypeAlias = UInt8[Array, "n h w 3"] | UInt8[np.ndarray, "n h w 3"]
Geometry: TypeAlias = Literal["crop", "squash"]
Resample: TypeAlias = Literal["bicubic", "bilinear"]
ChannelStats: TypeAlias = tuple[float, float, float]

STATS: dict[str, tuple[ChannelStats, ChannelStats]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "reference": ((0.4913, 0.4821, 0.4465), (0.2470, 0.2434, 0.2615)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Named (mean, std) per channel. `reference` are CIFAR's, which the authors of BLISS used for all
data sets; `siglip` maps to [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """All choices between a uint8 image and a model's input; hashable, so static under jit.

    Attributes:
        size: height and width of the model's input, in pixels.
        geometry: `crop` (short side to `size`, centre crop) or `squash` (both sides to `size`).
        resample: `bicubic` (a = -0.5) or `bilinear`, both antialiased when shrinking.
        mean: what is subtracted from each channel of x / 255.
        std: what each channel is then divided by.
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
        """The same geometry with the mean and std named `stats` in `STATS`."""
        _check_choice("stats", stats, STATS)
        mean, std = STATS[stats]
        return dataclasses.replace(self, mean=mean, std=std)

    def describe(self) -> dict[str, Any]:
        """All choices as plain values that JSON can hold, for a result's provenance.

        `stats` names the statistics where `STATS` has them and is `custom` otherwise.
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
    """(resize(x) / 255 - mean) / std, in float32.

    Args:
        images: uint8 [n, h, w, 3], RGB.
        preprocessing: size, geometry, filter and statistics.

    Returns:
        float32 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3].
    """
    resized = resize(
        images,
        preprocessing.size,
        geometry=preprocessing.geometry,
        resample=preprocessing.resample,
    )
    mean = jnp.asarray(preprocessing.mean, jnp.float32).reshape(1, 1, 1, 3)
    std = jnp.asarray(preprocessing.std, jnp.float32).reshape(1, 1, 1, 3)
    return (resized.astype(jnp.float32) / 255 - mean) / std


def preprocess(
    images: Images, size: int = 224, stats: str = "clip"
) -> Float[Array, "n size size 3"]:
    """CLIP's preprocessing (bicubic, centre crop) with the statistics named `stats`.

    Args:
        images: uint8 [n, h, w, 3], RGB.
        size: height and width of the model's input.
        stats: a name in `STATS`: `clip`, `reference` or `siglip`.

    Returns:
        float32 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3], or `stats` is unknown.
    """
    return apply_preprocessing(images, Preprocessing(size=size).with_stats(stats))


def resize_bicubic(images: Images, size: int = 224) -> UInt8[Array, "n size size 3"]:
    """Short side to `size` with Pillow's bicubic filter, then the centre crop.

    Args:
        images: uint8 [n, h, w, 3].
        size: height and width of the result.

    Returns:
        uint8 [n, size, size, 3], equal to Pillow's pixels.

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3].
    """
    return resize(images, size, geometry="crop", resample="bicubic")


def resize(
    images: Images, size: int, *, geometry: Geometry, resample: Resample
) -> UInt8[Array, "n size size 3"]:
    """Pillow's antialiased resampling to `size` x `size` pixels, bit for bit.

    Args:
        images: uint8 [n, h, w, 3].
        size: height and width of the result.
        geometry: `crop` (short side to `size`, centre crop) or `squash` (both sides to `size`).
        resample: `bicubic` or `bilinear`.

    Returns:
        uint8 [n, size, size, 3].

    Raises:
        ValueError: `images` is not a uint8 array [n, h, w, 3], or a choice is unknown.
    """
    _check_images(images)
    _check_size(size)
    _check_choice("geometry", geometry, get_args(Geometry))
    _check_choice("resample", resample, get_args(Resample))
    _, height, width, _ = images.shape
    (new_height, new_width), (top, left) = _target(height, width, size, geometry)
    rows, seen = _filter_of_rows(height, new_height, top, size, resample)
    resized = lax.slice_in_dim(jnp.asarray(images), seen.start, seen.stop, axis=1)
    # As in Pillow, an axis that keeps its length is not filtered.
    if new_width == width:
        resized = lax.slice_in_dim(resized, left, left + size, axis=2)
    else:
        columns = left + np.arange(size)
        resized = _filter_axis(resized, *_filter_weights(width, new_width, columns, resample), 2)
    return resized if rows is None else _filter_rows(resized, *rows)


def resize_on_host(
    image: UInt8[np.ndarray, "h w 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "size size 3"]:
    """`resize` of one image by Pillow itself: the same pixels, without a compilation for each new size.

    For images of many different sizes. The result is what `apply_preprocessing` leaves as it is but for
    the normalisation.

    Args:
        image: uint8 [h, w, 3].
        preprocessing: Size, geometry and filter; the statistics are not used.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: `image` is not a uint8 array [h, w, 3] with pixels.
    """
    from PIL import Image

    _check_images(np.asarray(image)[None])
    height, width, _ = image.shape
    size = preprocessing.size
    (new_height, new_width), (top, left) = _target(height, width, size, preprocessing.geometry)
    if max(new_height, new_width) > _THIN * size:
        return _resize_thin(image, preprocessing)
    resample = Image.Resampling[preprocessing.resample.upper()]
    # One call for each axis, since the order of the passes within one call depends on the version.
    resized = Image.fromarray(image).resize((new_width, height), resample)
    resized = resized.resize((new_width, new_height), resample)
    return np.asarray(resized)[top : top + size, left : left + size]


_THIN = 16
"""Sides to one another, above which only the crop is computed: of a row of 100,000 pixels, Pillow would make
an image of five billion before it is cut."""


def _resize_thin(
    image: UInt8[np.ndarray, "h w 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "size size 3"]:
    """`resize` of one image in numpy."""
    (height, width, _), size, resample = image.shape, preprocessing.size, preprocessing.resample
    (new_height, new_width), (top, left) = _target(height, width, size, preprocessing.geometry)
    rows, seen = _filter_of_rows(height, new_height, top, size, resample)
    image = image[seen.start : seen.stop]
    if new_width == width:
        image = image[:, left : left + size]
    else:
        columns = left + np.arange(size)
        image = _filter_on_host(image, *_filter_weights(width, new_width, columns, resample), 1)
    return image if rows is None else _filter_on_host(image, *rows, 0)


def _target(
    height: int, width: int, size: int, geometry: Geometry
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width after resizing, and the top left corner of the crop (see the module's text)."""
    if geometry == "squash":
        return (size, size), (0, 0)
    short = min(height, width)
    resized = int(size * height / short), int(size * width / short)
    return resized, (round((resized[0] - size) / 2), round((resized[1] - size) / 2))


_FRACTION_BITS = 22
"""Pillow's `PRECISION_BITS`: what 8 bits of pixel and 2 of overshoot leave of an int32."""


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, in Pillow's order of operations."""
    a = -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    """The triangle kernel."""
    return np.where(x < 1.0, 1.0 - x, 0.0)


_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}
"""Kernel as a function of the absolute distance, and its support."""


def _filter_weights(
    length: int, new_length: int, outputs: np.ndarray, resample: str
) -> tuple[Int32[np.ndarray, "size"], Int32[np.ndarray, "size taps"]]:
    """Fixed-point filter weights of the pixels `outputs` of an axis resized to `new_length`.

    The steps and their order are Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, since
    the last bit of a weight can decide the last bit of a pixel.

    Returns:
        For each output the first input that it sees, and the weights of the inputs from there on,
        times 2^22; outputs that see fewer inputs than others have weights of zero at the end.
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
    # cumsum adds from left to right, as Pillow does; sum would add pairwise.
    weights = weights / np.cumsum(weights, axis=1)[:, -1:]
    fixed = np.trunc(weights * (1 << _FRACTION_BITS) + np.copysign(0.5, weights))
    return first.astype(np.int32), fixed.astype(np.int32)


def _filter_of_rows(
    height: int, new_height: int, top: int, size: int, resample: str
) -> tuple[tuple[Int32[np.ndarray, "size"], Int32[np.ndarray, "size taps"]] | None, range]:
    """The vertical pass of the rows top, ..., top + size - 1, and which rows of the image it sees.

    Its first inputs are counted from the first row it sees; None for a height that stays.
    """
    if new_height == height:
        return None, range(top, top + size)
    first, weights = _filter_weights(height, new_height, top + np.arange(size), resample)
    seen = range(int(first.min()), min(int(first.max()) + weights.shape[1], height))
    return (first - np.int32(seen.start), weights), seen


def _filter_on_host(
    image: UInt8[np.ndarray, "rows columns 3"],
    first: Int32[np.ndarray, "size"],
    weights: Int32[np.ndarray, "size taps"],
    axis: int,
) -> UInt8[np.ndarray, "new_rows new_columns 3"]:
    """`_filter_axis` of one image in numpy."""
    along_axis = [-1 if dimension == axis else 1 for dimension in range(3)]
    total = np.int32(1 << (_FRACTION_BITS - 1))
    for tap in range(weights.shape[1]):
        pixels = np.take(image, first + tap, axis=axis, mode="clip").astype(np.int32)
        total = total + weights[:, tap].reshape(along_axis) * pixels
    return np.clip(total >> _FRACTION_BITS, 0, 255).astype(np.uint8)


def _filter_axis(
    images: UInt8[Array, "n rows columns 3"],
    first: Int32[Array, "size"] | Int32[np.ndarray, "size"],
    weights: Int32[Array, "size taps"] | Int32[np.ndarray, "size taps"],
    axis: int,
) -> UInt8[Array, "n new_rows new_columns 3"]:
    """One pass: out[o] = clip((2^21 + sum_t weights[o, t] * in[first[o] + t]) >> 22, 0, 255).

    int32 holds every sum: the absolute weights of an output add up to less than 1.27 (1.25 where the
    whole kernel is seen, a little more at the border), and 1.27 * 2^22 * 255 + 2^21 < 2^31.
    """
    along_axis = [-1 if dimension == axis else 1 for dimension in range(4)]
    total = 1 << (_FRACTION_BITS - 1)
    for tap in range(weights.shape[1]):
        # Past the end of the axis the weight is zero: which pixel it multiplies does not matter.
        pixels = jnp.take(images, first + tap, axis=axis, mode="clip").astype(jnp.int32)
        total = total + weights[:, tap].reshape(along_axis) * pixels
    return jnp.clip(total >> _FRACTION_BITS, 0, 255).astype(jnp.uint8)


def _filter_rows(
    images: UInt8[Array, "n rows size 3"],
    first: Int32[np.ndarray, "size"],
    weights: Int32[np.ndarray, "size taps"],
) -> UInt8[Array, "n size size 3"]:
    """The vertical pass, `_filter_axis` along axis 1, as a loop over the two halves of the output.

    XLA would otherwise fuse both passes and compute the horizontal one anew for every vertical tap;
    it does not fuse across a loop (measured: twice as fast for 32 x 32 to 224). The loop is over
    rows, not images, so that a batch sharded over devices stays where it is.
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
            "images of different sizes go through one call per size"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [n, h, w, 3], got {images.dtype} {list(images.shape)}"
        )
    if 0 in images.shape[1:3]:
        raise ValueError(f"images must have pixels, got shape {list(images.shape)}")


def _check_size(size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a positive int, got {size!r}")


def _check_choice(what: str, given: object, known: Iterable[str]) -> None:
    names = list(known)
    if given not in names:
        near = difflib.get_close_matches(str(given), names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown {what} {given!r}, expected one of {names}{hint}")
