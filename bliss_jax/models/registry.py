"""Table of named checkpoints: the registered encoders and the commit of each.

The commits are quoted in public code and documentation. `docs/reference/checkpoints.md` lists the sources and
what is publicly known about the files of each repository. The commits were not looked up on the hub. The
revision is "main", which can move, if no public code quotes a full commit.

A checkpoint's own configuration files determine how it is run. `load_model` refuses a checkpoint whose sizes
differ from its entry here, or whose weights differ if their hash is known.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bliss_jax.models.naflex import naflex_preprocessing
from bliss_jax.models.preprocessing import STATS, Preprocessing

Family = Literal["clip", "metaclip2", "siglip", "siglip2", "naflex"]
TINY = "bliss-jax/tiny"
UNTRAINED = "bliss-jax/untrained"


@dataclass(frozen=True)
class NamedCheckpoint:
    """One row of the table.

    Attributes:
        repository: Name on the Hugging Face Hub, or of a model that is built into this library.
        revision: Commit on the hub, "main" if none is known, or None for a built-in model.
        family: "clip", "metaclip2", "siglip", "siglip2" (fixed resolution) or "naflex".
        embedding_dim: Length of an embedding.
        patch_size: Side of a patch in pixels.
        preprocessing: Image size, geometry, filter and statistics.
        weights_sha256: `Model.weights_hash` at that revision. None if it is not known, and for the
            untrained model, which is not read from a file.
    """

    repository: str
    revision: str | None
    family: Family
    embedding_dim: int
    patch_size: int
    preprocessing: Preprocessing
    weights_sha256: str | None = None

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.preprocessing.size


def _clip(
    repository: str,
    revision: str | None,
    dim: int,
    patch: int,
    size: int = 224,
    weights_sha256: str | None = None,
):
    preprocessing = Preprocessing(size)
    return NamedCheckpoint(repository, revision, "clip", dim, patch, preprocessing, weights_sha256)


def _siglip(repository: str, revision: str, size: int, dim: int = 768, patch: int = 16):
    mean, std = STATS["siglip"]
    family = "siglip2" if "siglip2" in repository else "siglip"
    resample = "bilinear" if family == "siglip2" else "bicubic"
    preprocessing = Preprocessing(size, "squash", resample, mean, std)
    return NamedCheckpoint(repository, revision, family, dim, patch, preprocessing)


def _naflex(repository: str, revision: str, dim: int):
    mean, std = STATS["siglip"]
    stats = Preprocessing(256, "squash", "bilinear", mean, std)
    preprocessing = naflex_preprocessing(stats, 16, 256)
    return NamedCheckpoint(repository, revision, "naflex", dim, 16, preprocessing)


_LAION = "laion/CLIP-ViT-"
_TABLE = (
    # Radford et al. (2021), trained by OpenAI on 400 million pairs.
    _clip("openai/clip-vit-base-patch32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", 512, 32),
    _clip("openai/clip-vit-base-patch16", "57c216476eefef5ab752ec549e440a49ae4ae5f3", 512, 16),
    _clip("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", 768, 14),
    _clip(
        "openai/clip-vit-large-patch14-336",
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        768,
        14,
        336,
    ),
    # Cherti et al. (2023), LAION-2B.
    _clip(_LAION + "B-32-laion2B-s34B-b79K", "1a25a446712ba5ee05982a381eed697ef9b435cf", 512, 32),
    _clip(_LAION + "L-14-laion2B-s32B-b82K", "1627032197142fbe2a7cfec626f4ced3ae60d07a", 768, 14),
    _clip(_LAION + "H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c", 1024, 14),
    # Gadre et al. (2023), DataComp-1B.
    _clip(
        _LAION + "B-32-DataComp.XL-s13B-b90K", "f0e2ffa09cbadab3db6a261ec1ec56407ce42912", 512, 32
    ),
    # The conversion bot's pull request on top of d110532e8d4ff91c574ee60a342323f28468b287.
    _clip(
        _LAION + "B-16-DataComp.XL-s13B-b90K", "05fa70d888b3dcddcaeb5906c71e35e736bc8d42", 512, 16
    ),
    _clip(
        _LAION + "L-14-DataComp.XL-s13B-b90K", "84c9828e63dc9a9351d1fe637c346d4c1c4db341", 768, 14
    ),
    # Xu et al. (2024), MetaCLIP.
    _clip("facebook/metaclip-b32-400m", "main", 512, 32),
    _clip("facebook/metaclip-b16-400m", "main", 512, 16),
    _clip("facebook/metaclip-l14-400m", "main", 768, 14),
    _clip("facebook/metaclip-b32-fullcc2.5b", "main", 512, 32),
    _clip("facebook/metaclip-b16-fullcc2.5b", "main", 512, 16),
    _clip("facebook/metaclip-l14-fullcc2.5b", "d1d23eb55ad314a6091ac3351fa021508e4c677a", 768, 14),
    _clip("facebook/metaclip-h14-fullcc2.5b", "main", 1024, 14),
    # Chuang et al. (2025), MetaCLIP 2.
    NamedCheckpoint(
        "facebook/metaclip-2-worldwide-huge-quickgelu",
        "2431b607fc8e05dd43b73797ba1a7a042514bcf4",
        "metaclip2",
        1024,
        14,
        Preprocessing(224),
    ),
    # Zhai et al. (2023), SigLIP; Tschannen et al. (2025), SigLIP 2 at fixed resolution and NaFlex.
    _siglip("google/siglip-base-patch16-224", "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", 224),
    _siglip("google/siglip-base-patch16-256", "b078df89e446d623010d890864d4207fe6399f61", 256),
    _siglip("google/siglip-base-patch16-384", "41aec1c83b32e0a6fca20ad88ba058aa5b5ea394", 384),
    _siglip("google/siglip-base-patch16-512", "753a949581523b60257d93e18391e8c27f72eb22", 512),
    _siglip(
        "google/siglip-large-patch16-256", "d0da9f876e7d66b4e250cd2450c3ba2ce735e447", 256, 1024
    ),
    _siglip(
        "google/siglip-large-patch16-384", "ce005573a40965dfd21fd937fbdeeebf2439fc35", 384, 1024
    ),
    _siglip(
        "google/siglip-so400m-patch14-224",
        "d04cf29fca7b6374f74d8bea1969314492266b5e",
        224,
        1152,
        14,
    ),
    _siglip(
        "google/siglip-so400m-patch14-384",
        "9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
        384,
        1152,
        14,
    ),
    _siglip(
        "google/siglip2-base-patch32-256", "94dffa8cb1179de3e03f091dbc3917e5d5a9ae84", 256, 768, 32
    ),
    _siglip("google/siglip2-base-patch16-224", "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", 224),
    _siglip("google/siglip2-base-patch16-256", "3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab", 256),
    _siglip("google/siglip2-base-patch16-384", "f775b65a79762255128c981547af89addcfe0f88", 384),
    _siglip("google/siglip2-base-patch16-512", "a89f5c5093f902bf39d3cd4d81d2c09867f0724b", 512),
    _siglip(
        "google/siglip2-large-patch16-256", "787800c8990e6f058423089178e718139608408c", 256, 1024
    ),
    _siglip(
        "google/siglip2-large-patch16-384", "1b426889ea62b5a72bf9839009a1b184bfc9c178", 384, 1024
    ),
    _siglip(
        "google/siglip2-large-patch16-512", "49488218e80259885f3be61d7a9455faf833b7a8", 512, 1024
    ),
    _siglip(
        "google/siglip2-so400m-patch14-224",
        "78e403963a4f6a3640d07803284752326fdf4edf",
        224,
        1152,
        14,
    ),
    _siglip(
        "google/siglip2-so400m-patch14-384",
        "e8e487298228002f3d8a82e0cd5c8ea9c567f57f",
        384,
        1152,
        14,
    ),
    _siglip(
        "google/siglip2-so400m-patch16-256", "e8708ab72d125807e45b36fb7d4e0aacbb59f379", 256, 1152
    ),
    _siglip(
        "google/siglip2-so400m-patch16-384", "dd658faac399427308559e2c3ac1e99cbe43845d", 384, 1152
    ),
    _siglip(
        "google/siglip2-so400m-patch16-512", "ceea1cba8130d8271436da4828633198c176a775", 512, 1152
    ),
    _siglip(
        "google/siglip2-giant-opt-patch16-256",
        "46d7129e1aa1527cc5a44d86fb35250df3abf0aa",
        256,
        1536,
    ),
    _siglip(
        "google/siglip2-giant-opt-patch16-384",
        "a713301b217d38485fb2204c808367d10bc3cc40",
        384,
        1536,
    ),
    _naflex("google/siglip2-base-patch16-naflex", "b53b807d3a2d5e2b3911292f2d69e5341cdc064c", 768),
    _naflex(
        "google/siglip2-so400m-patch16-naflex", "cc24074f717b612951c2dead130904ab9b65a81e", 1152
    ),
    # Shipped with this library, and trained on the symbols of `glyphs` by experiments/tiny_model/train.py.
    _clip(
        TINY,
        None,
        64,
        8,
        32,
        "7cddc934601e5bb602526d12ebf1fd178f16b6465207a41147b065d086bff2a8",
    ),
    # Built into this library, with random weights (see `untrained`).
    _clip(UNTRAINED, None, 64, 8, 32),
)
REGISTRY: dict[str, NamedCheckpoint] = {entry.repository: entry for entry in _TABLE}


def model_names() -> tuple[str, ...]:
    """Returns the registered names in the order of the table. `load_model` accepts other repositories too."""
    return tuple(REGISTRY)


def near_misses(name: str) -> list[str]:
    """Returns registered names that resemble `name`, as a whole or in the part after the owner."""
    short = {known.split("/")[1]: known for known in REGISTRY}
    near = get_close_matches(name, REGISTRY, n=3)
    near += [short[part] for part in get_close_matches(name.split("/")[-1], short, n=3)]
    return list(dict.fromkeys(near))
