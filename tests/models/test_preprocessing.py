"""Tests of preprocessing against Pillow's pixels, torchvision's crop and the official CLIP fixture."""

import io
import math
import tarfile
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bliss_jax.models import Preprocessing, resize_on_host
from bliss_jax.models.preprocessing import (
    _THIN,
    STATS,
    _resize_thin,
    apply_preprocessing,
    filter_weights,
    preprocess,
    resize,
    resize_bicubic,
)

PILLOW_FILTER = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

resize_jitted = jax.jit(resize, static_argnums=1, static_argnames=("geometry", "resample"))
bicubic_jitted = jax.jit(resize_bicubic, static_argnums=1)
preprocess_jitted = jax.jit(preprocess, static_argnums=(1, 2))
apply_jitted = jax.jit(apply_preprocessing, static_argnums=1)


def resize_with_pillow(image, height, width, resample):
    """Resizes with two calls of Pillow, because Pillow 13 may run the vertical pass first in one call."""
    one_axis = Image.fromarray(image).resize((width, image.shape[0]), PILLOW_FILTER[resample])
    return np.asarray(one_axis.resize((width, height), PILLOW_FILTER[resample]))


def crop_like_torchvision(image, size):
    top, left = (int(round((side - size) / 2.0)) for side in image.shape[:2])  # noqa: RUF046
    return image[top : top + size, left : left + size]


def expected_pixels(images, size, geometry="crop", resample="bicubic"):
    height, width = images.shape[1:3]
    if geometry == "squash":
        return np.stack([resize_with_pillow(image, size, size, resample) for image in images])
    if height <= width:
        new_height, new_width = size, int(size * width / height)
    else:
        new_height, new_width = int(size * height / width), size
    return np.stack(
        [
            crop_like_torchvision(resize_with_pillow(image, new_height, new_width, resample), size)
            for image in images
        ]
    )


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def cifar10(shared):
    with np.load(shared / "data" / "cifar10_lossless_subset.npz") as archive:
        return archive["test_images"][:64]


@pytest.fixture(scope="module")
def tiny_imagenet(shared):
    images = []
    with tarfile.open(shared / "data" / "tiny-imagenet-200-val.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".JPEG"):
                encoded = io.BytesIO(archive.extractfile(member).read())
                images.append(np.asarray(Image.open(encoded).convert("RGB")))
            if len(images) == 32:
                return np.stack(images)
    raise AssertionError("fewer than 32 images in the archive")


# --- Pillow's pixels -----------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("data_set", "resample", "size"),
    [
        ("cifar10", "bicubic", 224),
        *(
            pytest.param(data_set, resample, size, marks=pytest.mark.slow)
            for data_set in ("cifar10", "tiny_imagenet")
            for resample in ("bicubic", "bilinear")
            for size in (224, 336)
            if (data_set, resample, size) != ("cifar10", "bicubic", 224)
        ),
    ],
)
def test_real_images_equal_one_call_of_pillow(request, data_set, resample, size):
    images = request.getfixturevalue(data_set)
    pillow = [
        Image.fromarray(image).resize((size, size), PILLOW_FILTER[resample]) for image in images
    ]
    resized = resize_jitted(images, size, geometry="crop", resample=resample)
    np.testing.assert_array_equal(resized, np.stack([np.asarray(image) for image in pillow]))


SHAPES = [
    (1, 1, 5),
    (1, 9, 16),
    (9, 1, 16),
    (3, 5, 224),
    (5, 3, 7),
    (224, 224, 224),
    (224, 301, 224),
    (301, 224, 224),
    (32, 32, 31),
    (32, 32, 33),
    (250, 190, 224),
    (480, 640, 224),
    (640, 480, 224),
    (1000, 700, 224),
    (700, 1000, 16),
    (2000, 30, 12),
]
QUICK_SHAPES = [
    ((1, 9, 16), "crop", "bicubic"),
    ((301, 224, 224), "squash", "bicubic"),
    ((32, 32, 31), "crop", "bilinear"),
    ((90, 70, 24), "crop", "bicubic"),
    ((70, 90, 24), "squash", "bilinear"),
]


def assert_device_equals_pillow(shape, geometry, resample):
    height, width, size = shape
    images = noise(2, height, width, 3)
    resized = resize_jitted(images, size, geometry=geometry, resample=resample)
    np.testing.assert_array_equal(resized, expected_pixels(images, size, geometry, resample))


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "geometry", "resample"), QUICK_SHAPES)
def test_the_device_equals_pillow(shape, geometry, resample):
    assert_device_equals_pillow(shape, geometry, resample)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_device_equals_pillow_for_every_kind_of_shape(shape, geometry, resample):
    assert_device_equals_pillow(shape, geometry, resample)


@pytest.mark.parity
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
def test_filtering_with_numpy_equals_pillow(shape, geometry, resample):
    """NumPy uses the weights that the device uses, and nothing is compiled for a shape."""
    height, width, size = shape
    image = noise(height, width, 3)
    filtered = _resize_thin(image, Preprocessing(size, geometry, resample))
    np.testing.assert_array_equal(
        filtered, expected_pixels(image[None], size, geometry, resample)[0]
    )


ANY_SIZE = {
    "height": st.integers(1, 90),
    "width": st.integers(1, 90),
    "size": st.integers(1, 64),
    "geometry": st.sampled_from(["crop", "squash"]),
    "resample": st.sampled_from(["bicubic", "bilinear"]),
    "black_and_white": st.booleans(),
    "seed": st.integers(0, 1000),
}


def any_image(height, width, black_and_white, seed):
    images = noise(1, height, width, 3, seed=seed)
    # Black and white images have the largest overshoots.
    return np.where(images > 127, np.uint8(255), np.uint8(0)) if black_and_white else images


@pytest.mark.parity
@settings(max_examples=100, deadline=None)
@given(**ANY_SIZE)
def test_filtering_any_size_with_numpy_equals_pillow(
    height, width, size, geometry, resample, black_and_white, seed
):
    images = any_image(height, width, black_and_white, seed)
    filtered = _resize_thin(images[0], Preprocessing(size, geometry, resample))
    np.testing.assert_array_equal(filtered, expected_pixels(images, size, geometry, resample)[0])


@pytest.mark.parity
@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**ANY_SIZE)
def test_any_size_on_the_device_equals_pillow(
    height, width, size, geometry, resample, black_and_white, seed
):
    images = any_image(height, width, black_and_white, seed)
    resized = resize_jitted(images, size, geometry=geometry, resample=resample)
    np.testing.assert_array_equal(resized, expected_pixels(images, size, geometry, resample))


@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize(
    "shape",
    [
        (70, 16),
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in ((32, 32), (480, 640), (700, 155), (225, 224), (1, 9))
        ),
    ],
)
def test_host_and_device_give_the_same_pixels(shape, geometry):
    """Tall images are included: one call of Pillow 13 would filter their height first."""
    image = noise(*shape, 3)
    size = 24 if shape == (70, 16) else 224
    on_host = resize_on_host(image, Preprocessing(size, geometry))
    on_device = resize_jitted(image[None], size, geometry=geometry, resample="bicubic")[0]
    np.testing.assert_array_equal(on_host, on_device)


@pytest.mark.parametrize("shape", [(7, 300), (300, 7), (1, 40), (40, 1), (8, 400), (2, 33)])
@pytest.mark.parametrize("resample", PILLOW_FILTER)
def test_thin_images_equal_pillow(shape, resample):
    """The host computes only the crop, and the device reads only the rows of the crop."""
    image = noise(*shape, 3)
    assert max(shape) > _THIN * min(shape)
    expected = expected_pixels(image[None], 8, resample=resample)[0]
    on_host = resize_on_host(image, Preprocessing(size=8, resample=resample))
    np.testing.assert_array_equal(on_host, expected)
    if resample == "bicubic" and shape in ((7, 300), (300, 7)):  # two compilations suffice
        on_device = resize_jitted(image[None], 8, geometry="crop", resample=resample)[0]
        np.testing.assert_array_equal(on_device, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 20_000_000), (20_000_000, 1)])
def test_an_image_of_one_row_or_column_takes_no_more_memory_than_others(shape):
    """Scaling the short side to the model's size alone would give 4.5 billion columns."""
    image = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    image = np.repeat(image[..., None], 3, axis=-1)
    tracemalloc.start()
    on_host = resize_on_host(image, Preprocessing())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16e6
    on_device = resize_jitted(image[None], 224, geometry="crop", resample="bicubic")[0]
    np.testing.assert_array_equal(on_host, on_device)


def test_sums_of_products_fit_into_int32():
    """The bound stated in `_filter_axis` holds for the worst pixels, 255 at every absolute weight."""
    lengths = [*range(1, 40, 3), 64, 100, 224, 640, 1000]
    for resample in ("bicubic", "bilinear"):
        for length in lengths:
            for new_length in lengths:
                _, weights = filter_weights(length, new_length, np.arange(new_length), resample)
                absolute = np.abs(weights.astype(np.int64)).sum(axis=1).max()
                assert absolute < 1.27 * 2**22
    assert int(1.27 * 2**22) * 255 + 2**21 < 2**31


def test_an_image_of_the_right_size_is_returned_unchanged():
    images = noise(3, 24, 24, 3)
    np.testing.assert_array_equal(resize_bicubic(images, 24), images)


def test_a_constant_image_stays_constant():
    values = np.array([0, 1, 127, 254, 255], np.uint8)[:, None, None, None]
    images = np.broadcast_to(values, (5, 37, 23, 3))
    found = bicubic_jitted(images, 16)
    np.testing.assert_array_equal(found, np.broadcast_to(values, (5, 16, 16, 3)))


def test_resizing_commutes_with_transposition_up_to_rounding():
    """Without clipping, each order is within 0.5 * 1.27 + 0.5 of the unrounded image."""
    images = 64 + noise(2, 20, 20, 3) // 2
    upright = np.asarray(bicubic_jitted(images, 30)).astype(int)
    turned = np.asarray(bicubic_jitted(images.transpose(0, 2, 1, 3), 30)).astype(int)
    assert np.abs(upright - turned.transpose(0, 2, 1, 3)).max() <= 2


# --- The crop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "offset"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4), (9, 4)]
)
def test_crop_offset_is_half_the_margin_with_ties_to_even(margin, offset):
    images = noise(1, 8, 8 + margin, 3)
    np.testing.assert_array_equal(resize_bicubic(images, 8), images[:, :, offset : offset + 8])
    upright = images.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(resize_bicubic(upright, 8), upright[:, offset : offset + 8])


def clip_image_processor():
    """Returns transformers' processor that resizes with Pillow. transformers 5 gave it its own name."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:
        from transformers import CLIPImageProcessor as CLIPImageProcessorPil
    return CLIPImageProcessorPil()


def siglip_image_processor():
    try:
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    except ImportError:
        from transformers import SiglipImageProcessor as SiglipImageProcessorPil
    return SiglipImageProcessorPil()


def process(processor, images):
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="np")
    return pixels["pixel_values"].transpose(0, 2, 3, 1)


PROCESSED_SHAPES = [
    (100, 120),
    *(pytest.param(s, marks=pytest.mark.slow) for s in ((32, 32), (120, 100))),
]


@pytest.mark.parity
@pytest.mark.parametrize("shape", PROCESSED_SHAPES)
def test_clip_preprocessing_equals_transformers(shape):
    images = noise(4, *shape, 3)
    expected = process(clip_image_processor(), images)
    # Resized pixels are equal. transformers multiplies by 1/255 instead of dividing by 255, which
    # changes a few units in the last place.
    np.testing.assert_allclose(preprocess_jitted(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("shape", PROCESSED_SHAPES)
def test_siglip_preprocessing_equals_transformers(shape):
    images = noise(4, *shape, 3)
    squash = Preprocessing(geometry="squash").with_stats("siglip")
    expected = process(siglip_image_processor(), images)
    np.testing.assert_allclose(apply_jitted(images, squash), expected, rtol=0, atol=1e-6)


@pytest.mark.parity
def test_transformers_crops_one_pixel_earlier_at_a_margin_of_three():
    images = noise(1, 224, 227, 3)
    ours, theirs = preprocess_jitted(images), process(clip_image_processor(), images)
    np.testing.assert_allclose(ours[:, :, :-1], theirs[:, :, 1:], rtol=0, atol=1e-6)
    assert np.abs(ours - theirs).max() > 1


# --- The official fixture ------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.shared_data
def test_official_preprocessing_of_a_photograph(shared):
    """Every pixel is the same integer, and floats differ by at most two units in the last place.

    The photograph (450 x 655) has an even margin of 102 pixels, for which the crop offsets of torchvision
    and transformers are equal.
    """
    fixture = shared / "data" / "preprocess_fixture"
    expected = np.load(fixture / "expected_preprocessed_image.npy").transpose(0, 2, 3, 1)
    photograph = np.asarray(Image.open(fixture / "franz-kafka.jpg").convert("RGB"))[None]

    np.testing.assert_allclose(preprocess_jitted(photograph), expected, rtol=0, atol=5e-7)
    mean, std = (np.array(stats) for stats in STATS["clip"])
    pixels = (expected.astype(np.float64) * std + mean) * 255
    np.testing.assert_allclose(bicubic_jitted(photograph), pixels, rtol=0, atol=1e-3)


# --- Statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stats", sorted(STATS))
def test_each_channel_is_normalised_with_its_mean_and_std(stats):
    images = noise(2, 16, 16, 3)
    mean, std = (np.array(values, np.float64) for values in STATS[stats])
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(preprocess(images, 16, stats), expected, rtol=0, atol=1e-6)


def test_siglip_statistics_map_to_minus_one_and_one():
    black_and_white = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    pixels = preprocess(black_and_white, 4, "siglip")
    np.testing.assert_array_equal(pixels, np.stack([-np.ones((4, 4, 3)), np.ones((4, 4, 3))]))


def test_preprocess_applies_clip_geometry_with_named_statistics():
    images = noise(2, 16, 16, 3)
    chosen = Preprocessing(size=16, geometry="crop", resample="bicubic").with_stats("reference")
    np.testing.assert_array_equal(
        preprocess_jitted(images, 16, "reference"), apply_jitted(images, chosen)
    )


# --- Transformations -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [15, 16])
def test_jit_vmap_and_batching_do_not_change_a_pixel(size):
    images = noise(6, 20, 31, 3)
    whole = np.asarray(resize_bicubic(images, size))
    np.testing.assert_array_equal(bicubic_jitted(images, size), whole)
    stacked = images.reshape(2, 3, 20, 31, 3)
    mapped = jax.jit(jax.vmap(lambda batch: resize_bicubic(batch, size)))(stacked)
    np.testing.assert_array_equal(mapped.reshape(whole.shape), whole)
    singles = [bicubic_jitted(image[None], size) for image in images]
    np.testing.assert_array_equal(np.concatenate(singles), whole)


def test_a_batch_sharded_over_devices_stays_sharded():
    mesh = jax.make_mesh((8,), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    images = noise(16, 20, 31, 3)
    compiled = bicubic_jitted.lower(jax.device_put(images, sharding), 16).compile()
    assert "all-gather" not in compiled.as_text()
    resized = compiled(jax.device_put(images, sharding))
    assert resized.sharding.is_equivalent_to(sharding, resized.ndim)
    np.testing.assert_array_equal(resized, bicubic_jitted(images, 16))


def test_preprocessing_is_static_under_jit():
    images = noise(2, 20, 31, 3)
    first = apply_jitted(images, Preprocessing(size=16))
    compiled = apply_jitted._cache_size()  # JAX keeps one cache per function, shared by all tests
    np.testing.assert_array_equal(apply_jitted(images, Preprocessing(size=16)), first)
    assert apply_jitted._cache_size() == compiled


def test_results_are_uint8_and_float32_from_numpy_and_jax():
    images = noise(2, 20, 31, 3)
    for given_images in (images, jnp.asarray(images)):
        assert resize_bicubic(given_images, 16).dtype == jnp.uint8
        assert preprocess(given_images, 16).dtype == jnp.float32


def test_an_empty_batch_stays_empty():
    assert preprocess(np.zeros((0, 20, 31, 3), np.uint8), 16).shape == (0, 16, 16, 3)
