"""Maps of what makes an image anomalous for a detector, at the pixels of the original image.

    internal map     attribution of internal(x, c*): where the image does not look like its nearest class
    external map     attribution of external(x, c*)
    map of a word    attribution of the word's z-score: where the word is seen
    score map        internal map + lambda external map, because attribution is linear

With another score than BLISS, the score map is the attribution of the score's gradient by the embedding, a linear
approximation of the score. The other maps are those of BLISS.

`models/attribution.py` contains the equation, and `scores/directions.py` the directions of the parts. Images are
computed in batches of the detector's size, which bounds the memory.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bliss_jax.detection.chosen_score import BLISS, is_of_library
from bliss_jax.detection.inputs import are_embeddings, unlabelled
from bliss_jax.detection.prepared_score import PreparedScore, score_images
from bliss_jax.embedding import is_model
from bliss_jax.scores import PreparedBliss, bliss_directions, explain_bliss_prepared

if TYPE_CHECKING:
    from bliss_jax.detection.answers import DetectorAnswers
    from bliss_jax.models import ModelConfig, Preprocessing


@dataclass(frozen=True, eq=False, repr=False)
class AnomalyMaps:
    """Maps of one image. They are stored per patch and interpolated when they are read.

    A positive value raises the score, a negative one lowers it. The unit is that of the score; the values of a map do
    not add up to the score. Pixels that the model did not see, because they were cropped away, are NaN.
    """

    patches: Float[np.ndarray, "maps patches"]
    """Attribution of each patch: internal part, external part, then each word of the explanation. All are of BLISS."""
    weight: float
    """lambda, the weight of the external part."""
    height: int
    """Height of the original image."""
    width: int
    """Width of the original image."""
    config: "ModelConfig"
    """Configuration of the encoder."""
    preprocessing: "Preprocessing"
    """Preprocessing of the encoder, which resizes and crops the image."""
    own: Float[np.ndarray, " patches"] | None = None
    """Attribution of each patch to a score other than BLISS; None for BLISS."""

    def __repr__(self) -> str:
        return (
            f"AnomalyMaps(score, internal, external, {len(self.patches) - 2} words; {self.height} x {self.width} "
            f"pixels, {self.patches.shape[1]} patches)"
        )

    @property
    def score(self) -> Float[np.ndarray, "height width"]:
        """Map of the score."""
        return self.at_size(self.height, self.width)[0]

    @property
    def internal(self) -> Float[np.ndarray, "height width"]:
        """Map of the internal class score."""
        return self._at_pixels(self.patches[0], self.height, self.width)

    @property
    def external(self) -> Float[np.ndarray, "height width"]:
        """Map of the external text score, without the factor lambda."""
        return self._at_pixels(self.patches[1], self.height, self.width)

    @property
    def words(self) -> Float[np.ndarray, "words height width"]:
        """Map of each word, in the order of the explanation."""
        return self._at_pixels(self.patches[2:], self.height, self.width)

    def at_size(self, height: int, width: int) -> Float[np.ndarray, "maps height width"]:
        """Returns the maps of the score, its parts and the words for the image resized to another size."""
        score = self.patches[:1] + np.float32(self.weight) * self.patches[1:2]
        if self.own is not None:
            score = self.own[None]
        return self._at_pixels(np.concatenate([score, self.patches]), height, width)

    def _at_pixels(self, patches: np.ndarray, height: int, width: int) -> np.ndarray:
        from bliss_jax.models import maps_at_pixels

        return maps_at_pixels(patches, height, width, self.config, self.preprocessing)


def check_maps(detector: "DetectorAnswers", images: Any) -> None:
    """Raises ValueError if maps cannot be computed: they need images, a `Model` and fitted images."""
    if are_embeddings(images):
        raise ValueError("maps: expected images, got embeddings, which contain no places")
    if not np.any(detector.moments.count):
        raise ValueError(
            "maps: expected a detector that was fitted to images, got one of texts only, which has no moments; fit "
            "it with images"
        )
    if detector.model is not None and not is_model(detector.model):
        raise ValueError(
            f"maps: expected a Model of this library, whose layers can be differentiated, got the encoder "
            f"{detector.model.name!r}"
        )


def anomaly_maps(
    detector: "DetectorAnswers",
    images: Any,
    embeddings: Float[np.ndarray, "images dim"],
    words: int,
) -> list[AnomalyMaps]:
    """Computes the maps of images.

    Args:
        detector: Detector with a `Model` (`check_maps`).
        images: Images of any kind, as in `Detector.score`.
        embeddings: Their embeddings, which decide the nearest class and the nearest words.
        words: Number of words with a map.
    """
    from bliss_jax.models import resize_on_host

    model = detector.model
    assert model is not None and is_model(model)  # noqa: S101 (checked before)
    preprocessing = model.preprocessing_with(detector.preprocess)
    pixels = unlabelled(images, detector.decoding).images if len(embeddings) else ()
    size = detector.images_per_device
    run = partial(
        _attributed,
        params=model.params,
        config=model.config,
        prepared=detector.prepared,
        weight=detector.weight,
        preprocessing=preprocessing,
        k=detector.k,
        words=words,
        score=None if detector.score_name == BLISS else detector.prepared_score,
    )
    found: list[AnomalyMaps] = []
    for start in range(0, len(embeddings), size):
        rows = range(start, min(start + size, len(embeddings)))
        originals = [np.asarray(pixels[row]) for row in rows]
        batch = np.stack([resize_on_host(image, preprocessing) for image in originals])
        try:
            computed = np.asarray(
                run(_padded(batch, size), _padded(embeddings[start : rows.stop], size))
            )
        except (ValueError, NotImplementedError) as error:
            if detector.score_name == BLISS or is_of_library(detector.prepared_score.record):
                raise
            raise ValueError(
                f"maps: expected a score that JAX can differentiate, got {detector.score_name!r}: {error}"
            ) from error
        own = int(detector.score_name != BLISS)
        found += [
            AnomalyMaps(
                patches=maps[own:],
                own=maps[0] if own else None,
                weight=detector.weight,
                height=image.shape[0],
                width=image.shape[1],
                config=model.config,
                preprocessing=preprocessing,
            )
            for maps, image in zip(computed[: len(rows)], originals, strict=True)
        ]
    return found


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows and copies of the last one, `size` rows in all."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


@partial(jax.jit, static_argnames=("config", "preprocessing", "k", "words"))
def _attributed(
    images: jax.Array,
    embeddings: Float[jax.Array, "images dim"],
    *,
    params: Any,
    config: "ModelConfig",
    prepared: PreparedBliss,
    weight: float | Float[jax.Array, ""],
    preprocessing: "Preprocessing",
    k: int,
    words: int,
    score: PreparedScore | None,
) -> Float[jax.Array, "images maps patches"]:
    """Computes the attribution of a score other than BLISS, the internal part, the external part and the words."""
    from bliss_jax.models import attribute_patches, to_pixels

    why = explain_bliss_prepared(embeddings, prepared, k, weight=weight, num_texts=max(k, words))
    along = bliss_directions(why, prepared, k, weight=weight)
    parts = jnp.stack([along.internal, along.external], axis=1)
    directions = jnp.concatenate([parts, along.words[:, :words]], axis=1)
    if score is not None:
        # A score depends on its own embedding only, so the gradient of the sum is that of each score.
        gradient = jax.grad(lambda x: score_images(x, score).sum())(embeddings)
        directions = jnp.concatenate([gradient[:, None], directions], axis=1)
    return attribute_patches(params, config, to_pixels(images, preprocessing), directions)
