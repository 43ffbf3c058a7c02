"""Named checkpoints: what the evaluated encoders are, and which commit of each is meant.

The revisions are commits as quoted in public code and documentation; they were not looked up at the
Hub when this table was written, nor was it checked which weight files each commit has. Where no
commit could be established the revision is "main", which can move. Of LAION's and DataComp's
repositories some commits may hold weights for transformers only as a pickle, which `load_model`
refuses with a message that says how to convert it.

A checkpoint's own configuration files decide how it is run; `load_model` refuses a checkpoint whose
sizes are not those of its entry here, or whose weights are not, where their hash is known.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bliss_jax.models.preprocessing import STATS, Preprocessing

Family = Literal["clip", "siglip", "siglip2"]
TINY = "bliss-jax/tiny"
UNTRAINED = "bliss-jax/untrained"


@dataclass(frozen=True)
class NamedCheckpoint:
    """One row of the table.

    Attributes:
        repository: Name on the Hugging Face Hub, or of a model built into this library.
        revision: Commit there; "main" where none could be established; None for a built-in model.
        family: "clip", "siglip" or "siglip2".
        embedding_dim: Length of an embedding.
        patch_size: Side of a patch in pixels.
        preprocessing: Image size, geometry, filter and statistics.
        weights_sha256: `Model.weights_hash` at that revision; None where it is not known, and for the
            untrained model, which is computed and not read.
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


def _siglip(repository: str, revision: str, size: int):
    mean, std = STATS["siglip"]
    family = "siglip2" if "siglip2" in repository else "siglip"
    resample = "bilinear" if family == "siglip2" else "bicubic"
    preprocessing = Preprocessing(size, "squash", resample, mean, std)
    return NamedCheckpoint(repository, revision, family, 768, 16, preprocessing)


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
    _clip(
        _LAION + "B-16-DataComp.XL-s13B-b90K", "d110532e8d4ff91c574ee60a342323f28468b287", 512, 16
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
    # Zhai et al. (2023), SigLIP; Tschannen et al. (2025), SigLIP 2 at fixed resolution.
    _siglip("google/siglip-base-patch16-224", "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", 224),
    _siglip("google/siglip-base-patch16-256", "main", 256),
    _siglip("google/siglip-base-patch16-384", "main", 384),
    _siglip("google/siglip-base-patch16-512", "main", 512),
    _siglip("google/siglip2-base-patch16-224", "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", 224),
    _siglip("google/siglip2-base-patch16-256", "main", 256),
    _siglip("google/siglip2-base-patch16-384", "f775b65a79762255128c981547af89addcfe0f88", 384),
    _siglip("google/siglip2-base-patch16-512", "main", 512),
    # Shipped with this library: trained on the symbols of `glyphs` by experiments/tiny_model/train.py.
    _clip(
        TINY,
        None,
        64,
        8,
        32,
        "7cddc934601e5bb602526d12ebf1fd178f16b6465207a41147b065d086bff2a8",
    ),
    # Built into this library: random, knows nothing (see `untrained`).
    _clip(UNTRAINED, None, 64, 8, 32),
)
REGISTRY: dict[str, NamedCheckpoint] = {entry.repository: entry for entry in _TABLE}


def model_names() -> tuple[str, ...]:
    """The names in the registry, in its order. `load_model` takes other repositories as well."""
    return tuple(REGISTRY)


def near_misses(name: str) -> list[str]:
    """Registered names that resemble `name`: as a whole, or in what follows the owner."""
    short = {known.split("/")[1]: known for known in REGISTRY}
    near = get_close_matches(name, REGISTRY, n=3)
    near += [short[part] for part in get_close_matches(name.split("/")[-1], short, n=3)]
    return list(dict.fromkeys(near))
