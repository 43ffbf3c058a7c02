"""`similarity_bias` equals the means over all pairs, and gives the known numbers on real embeddings."""

import numpy as np
import pytest

from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import similarity_bias


def unit(rng, n, dim=6):
    x = rng.normal(size=(n, dim)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embedding_set(classes=3, texts=7, images=11):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    names = tuple(f"class {i}" for i in range(classes))
    phrases = tuple(f"phrase {i}" for i in range(texts))
    return EmbeddingSet(
        unit(rng, images), labels, unit(rng, images), labels,
        names, unit(rng, classes), phrases, unit(rng, texts),
    )  # fmt: skip


def test_similarity_bias_equals_the_means_over_all_pairs():
    e = embedding_set()
    found = similarity_bias(e)

    def different(x):
        return (x @ x.T)[~np.eye(len(x), dtype=bool)].mean()

    x, t, d = e.test_embeddings, e.label_embeddings, e.dictionary_embeddings
    assert found.label_label == pytest.approx(different(t), abs=1e-6)
    assert found.dictionary_dictionary == pytest.approx(different(d), abs=1e-6)
    assert found.image_image == pytest.approx(different(x), abs=1e-6)
    assert found.label_dictionary == pytest.approx((t @ d.T).mean(), abs=1e-6)
    assert found.image_dictionary == pytest.approx((x @ d.T).mean(), abs=1e-6)
    own = [x[i] @ t[c] for i, c in enumerate(e.test_labels)]
    assert found.image_own_label == pytest.approx(np.mean(own), abs=1e-6)


def test_mean_over_no_pairs_is_nan():
    found = similarity_bias(embedding_set(classes=1))
    assert np.isnan(found.label_label)
    assert np.isfinite(found.label_dictionary)


@pytest.mark.shared_data
def test_bias_of_real_clip_embeddings_matches_the_known_numbers(shared):
    """The numbers of method.md, section 3, are means over all 500 images."""
    with np.load(
        shared / "data" / "clip_vitb32_cifar10_embeddings.npz", allow_pickle=False
    ) as file:
        chosen = file["text_source"] == "imagenet1k"
        arrays = [file["image_emb"], file["class_text_emb"], file["text_emb"][chosen]]
        images, labels, dictionary = (
            (a / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
            for a in arrays
        )
        e = EmbeddingSet(
            images, file["labels"], images, file["labels"],
            tuple(file["class_names"].tolist()), labels,
            tuple(file["text_names"][chosen].tolist()), dictionary,
        )  # fmt: skip
    found = similarity_bias(e)
    expected = {
        "label_label": 0.870,
        "dictionary_dictionary": 0.612,
        "label_dictionary": 0.685,
        "image_own_label": 0.255,
        "image_dictionary": 0.199,
    }
    # The tolerance is half a unit of the last digit. The known mean between images includes the pairs of an
    # image with itself.
    assert found.image_image + (1 - found.image_image) / 500 == pytest.approx(0.759, abs=5e-4)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=5e-4), name
