"""Tests of the registry of named checkpoints."""

import re
from pathlib import Path

import pytest

from bliss_jax.models import REGISTRY, UNTRAINED, model_names
from bliss_jax.models.registry import TINY, near_misses


def test_names_are_distinct_repositories():
    assert len(model_names()) == len(set(model_names())) == len(REGISTRY)
    for name, entry in REGISTRY.items():
        assert entry.repository == name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)


def test_revisions_are_full_commits_or_main():
    for name, entry in REGISTRY.items():
        if name in (TINY, UNTRAINED):
            assert entry.revision is None
        else:
            assert entry.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", entry.revision)
    pinned = [entry.revision for entry in REGISTRY.values() if entry.revision not in (None, "main")]
    assert len(pinned) == len(set(pinned))
    for name in ("openai/clip-vit-base-patch16", "google/siglip-base-patch16-224"):
        assert REGISTRY[name].revision in pinned


@pytest.mark.parametrize(
    ("name", "family", "dim", "image", "patch", "geometry"),
    [
        ("openai/clip-vit-base-patch32", "clip", 512, 224, 32, "crop"),
        ("openai/clip-vit-base-patch16", "clip", 512, 224, 16, "crop"),
        ("openai/clip-vit-large-patch14", "clip", 768, 224, 14, "crop"),
        ("openai/clip-vit-large-patch14-336", "clip", 768, 336, 14, "crop"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "clip", 1024, 224, 14, "crop"),
        ("google/siglip-base-patch16-224", "siglip", 768, 224, 16, "squash"),
        ("google/siglip2-base-patch16-384", "siglip2", 768, 384, 16, "squash"),
        ("google/siglip2-giant-opt-patch16-384", "siglip2", 1536, 384, 16, "squash"),
        ("google/siglip2-so400m-patch16-naflex", "naflex", 1152, 256, 16, "squash"),
        ("facebook/metaclip-2-worldwide-huge-quickgelu", "metaclip2", 1024, 224, 14, "crop"),
    ],
)
def test_sizes_of_well_known_models(name, family, dim, image, patch, geometry):
    entry = REGISTRY[name]
    assert (entry.family, entry.embedding_dim, entry.patch_size) == (family, dim, patch)
    assert (entry.image_size, entry.preprocessing.geometry) == (image, geometry)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("openai/clip-vit-base-patch61", "openai/clip-vit-base-patch16"),
        ("clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("siglip2-base-patch16-224", "google/siglip2-base-patch16-224"),
        ("bliss-jax/untrain", "bliss-jax/untrained"),
    ],
)
def test_near_misses_resemble_the_given_name(given, meant):
    assert meant in near_misses(given)
    assert near_misses("zzzzzz") == []


def test_a_known_hash_belongs_to_a_fixed_revision():
    known = {name: entry for name, entry in REGISTRY.items() if entry.weights_sha256 is not None}
    assert TINY in known
    for entry in known.values():
        assert re.fullmatch(r"[0-9a-f]{64}", entry.weights_sha256)
        assert entry.revision != "main"


def test_the_documentation_lists_each_name_with_its_revision():
    page = Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md"
    if not page.is_file():
        pytest.skip("no documentation beside the tests")
    rows = page.read_text().splitlines()
    for name, entry in REGISTRY.items():
        if name not in (TINY, UNTRAINED):
            start = f"| `{name}` | `{entry.revision}` |"
            assert [row for row in rows if row.startswith(start)], name
