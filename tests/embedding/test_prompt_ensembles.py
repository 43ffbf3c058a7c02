"""The embedding of a label in several templates is the normalised mean of its texts' embeddings."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from bliss_jax.datasets import ImageDataset
from bliss_jax.embedding import embed_dataset, embed_prompts, embed_texts
from bliss_jax.models import load_model
from bliss_jax.text import prompt_templates

TEMPLATES = ("one {label}", "a photo of the {label}.", "{label}")
LABELS = ("cat", "dog", "emu", "a red fox", "cat")


@dataclass
class HashedTexts:
    """An encoder whose embedding of a text is random, with the text as the seed. It records its calls."""

    name: str = "hashed"
    embedding_dim: int = 8
    fingerprint: str = "hashed texts"
    calls: list[int] = field(default_factory=list)

    def encode_texts(self, texts):
        self.calls.append(len(texts))
        return np.stack([self.of(text) for text in texts])

    def encode_images(self, images):
        return np.stack([self.of(image.tobytes()[:4].hex()) for image in images])

    def of(self, text):
        seed = int.from_bytes(text.encode(), "big") % 2**32
        return 3 * np.random.default_rng(seed).normal(size=self.embedding_dim)


def mean_by_numpy(encode, templates, labels):
    """The closed form, label by label in float64."""
    rows = []
    for label in labels:
        texts = [template.replace("{label}", label) for template in templates]
        embedded = np.asarray(encode(texts), np.float64)
        mean = np.mean(embedded / np.linalg.norm(embedded, axis=1, keepdims=True), axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


@pytest.fixture(scope="module")
def model():
    return load_model("bliss-jax/untrained")


def test_the_embedding_is_the_normalised_mean_of_unit_embeddings(model):
    found = embed_prompts(model, TEMPLATES, LABELS, allow_repeats=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, mean_by_numpy(model.encode_texts, TEMPLATES, LABELS), atol=1e-6
    )
    own = HashedTexts()
    found = embed_prompts(own, "clip-80", LABELS[:4])

    expected = mean_by_numpy(own.encode_texts, prompt_templates("clip-80"), LABELS[:4])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_template_gives_the_bits_of_its_filled_prompts(model):
    filled = [f"one {label}" for label in LABELS]
    expected = embed_texts(model, filled)
    for prompt in ("one {label}", ["one {label}"]):
        found = embed_prompts(model, prompt, LABELS, allow_repeats=True)
        np.testing.assert_array_equal(found, expected)


def test_the_order_of_templates_and_of_labels_does_not_matter(model):
    found = embed_prompts(model, TEMPLATES, LABELS[:4])
    other = embed_prompts(model, TEMPLATES[::-1], LABELS[:4])
    np.testing.assert_allclose(other, found, atol=1e-6)
    other = embed_prompts(model, TEMPLATES, LABELS[3::-1])
    np.testing.assert_allclose(other[::-1], found, atol=1e-6)


def test_a_large_dictionary_is_averaged_in_blocks_of_labels(monkeypatch):
    """A call of the encoder has at most the texts of one block, and no block is kept beside its means."""
    own, labels = HashedTexts(), [f"label {i}" for i in range(23)]
    at_once = embed_prompts(own, TEMPLATES, labels)
    assert own.calls == [69]
    own.calls.clear()
    monkeypatch.setattr("bliss_jax.embedding.texts._TEXTS_AT_ONCE", 16)
    counts = []
    in_blocks = embed_prompts(own, TEMPLATES, labels, progress=counts.append)
    assert own.calls == [15, 15, 15, 15, 9]
    assert counts == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(in_blocks, at_once)
    own.calls.clear()
    monkeypatch.setattr("bliss_jax.embedding.texts._TEXTS_AT_ONCE", 2)
    np.testing.assert_array_equal(embed_prompts(own, TEMPLATES, labels[:2]), at_once[:2])
    assert own.calls == [3, 3]


def test_cached_means_are_read_again_for_the_same_templates_only(tmp_path):
    own = HashedTexts()
    first = embed_prompts(own, TEMPLATES, LABELS[:4], cache=tmp_path)
    own.calls.clear()
    np.testing.assert_array_equal(embed_prompts(own, TEMPLATES, LABELS[:4], cache=tmp_path), first)
    assert own.calls == []
    for templates, labels in ((TEMPLATES[:2], LABELS[:4]), (TEMPLATES, LABELS[:3])):
        own.calls.clear()
        found = embed_prompts(own, templates, labels, cache=tmp_path)
        assert own.calls == [len(templates) * len(labels)]
        expected = mean_by_numpy(own.encode_texts, templates, labels)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_templates_whose_embeddings_cancel_out_are_refused():
    class Opposite(HashedTexts):
        def of(self, text):
            return np.ones(8) if text.startswith("a ") else -np.ones(8)

    with pytest.raises(ValueError, match=r"the templates of 'cat' have the mean 0"):
        embed_prompts(Opposite(), ("a {label}", "the {label}"), ["cat"])


def test_repeated_labels_and_invalid_templates_are_refused():
    with pytest.raises(ValueError, match=r"these are repeated: \['cat'\]"):
        embed_prompts(HashedTexts(), TEMPLATES, ["cat", "cat"])
    with pytest.raises(ValueError, match=r"must contain \{label\} exactly once"):
        embed_prompts(HashedTexts(), ("one {label}", "two"), ["cat"])


def test_an_embedding_set_averages_labels_and_dictionary_but_not_the_prompt_of_mcm():
    own = HashedTexts()
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    images = ImageDataset("some", pixels, np.arange(6) % 2, ("cat", "dog"), "made here")
    words = ("bird", "fish", "bird")
    embedded = embed_dataset(own, images, images, words, prompt=TEMPLATES, batch_size=3)
    expected = mean_by_numpy(own.encode_texts, TEMPLATES, ("cat", "dog"))
    np.testing.assert_allclose(embedded.label_embeddings, expected, atol=1e-6)
    expected = mean_by_numpy(own.encode_texts, TEMPLATES, words)
    np.testing.assert_allclose(embedded.dictionary_embeddings, expected, atol=1e-6)
    expected = mean_by_numpy(own.encode_texts, ("a photo of a {label}",), ("cat", "dog"))
    np.testing.assert_allclose(embedded.mcm_label_embeddings, expected, atol=1e-6)
    assert embedded.provenance["prompt"] == list(TEMPLATES)
