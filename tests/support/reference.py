"""The equations of the paper in plain NumPy, from the images themselves: what the library is held to.

The equations know nothing of moments, chunks, masks or JAX. float64 throughout.
"""

import jax
import numpy as np


def x64():
    """A context in which JAX computes in float64; its name moved between releases of JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64(True)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_embeddings(rng, *shape, around=None, spread=1.0, dtype=np.float32):
    """Unit vectors, in a narrow cone around a direction if one is given, as CLIP's are."""
    x = rng.normal(size=shape) * spread
    if around is not None:
        x = x + around * np.sqrt(shape[-1])
    return unit(x).astype(dtype)


def bliss(x, labels, dictionary, train, train_labels, normal, k=10, weight=0.5, shrinkage=0.0):
    """internal [n, C], external [n, C] and BLISS [n] over the classes in `normal`."""
    x, labels, dictionary, train = (
        np.asarray(a, np.float64) for a in (x, labels, dictionary, train)
    )
    to_labels, to_words = x @ labels.T, x @ dictionary.T
    nearest = np.argsort(-to_words, axis=1, kind="stable")[:, :k]
    of_class = {c: train[train_labels == c] for c in normal}
    total = sum(len(v) for v in of_class.values())

    def pooled(texts):
        return sum(len(v) * (v @ texts.T).var(axis=0) for v in of_class.values()) / total

    pooled_labels, pooled_words = pooled(labels), pooled(dictionary)
    pooled_words = (total * pooled_words + 5 * pooled_words.mean()) / (total + 5)
    internal, external = [], []
    for c in normal:
        s_label, s_words = of_class[c] @ labels[c], of_class[c] @ dictionary.T
        n = len(of_class[c])
        v_label = (n * s_label.var() + shrinkage * pooled_labels[c]) / (n + shrinkage)
        v_words = (n * s_words.var(axis=0) + shrinkage * pooled_words) / (n + shrinkage)
        internal.append(-(to_labels[:, c] - s_label.mean()) / (np.sqrt(v_label) + 1e-8))
        z = (to_words - s_words.mean(axis=0)) / (np.sqrt(v_words) + 1e-8)
        external.append(np.take_along_axis(z, nearest, axis=1).mean(axis=1))
    internal, external = np.stack(internal, axis=1), np.stack(external, axis=1)
    return internal, external, (internal + weight * external).min(axis=1)
