"""BLISS in JAX: CLIP-based semantic anomaly detection with the text-similarity bias corrected.

    import bliss_jax as bj

    model = bj.load_model("openai/clip-vit-base-patch16")
    moments = bj.fit_moments(train_embeddings, train_labels, num_classes=10)
    scores = bj.bliss_score(test_embeddings, label_embeddings, dictionary_embeddings, moments)

The public names are listed in `__init__.pyi`. A name is imported when it is first used: the scores and
metrics need JAX only; Flax, transformers and tensorflow-datasets come with the encoders and data sets.
"""

from importlib import import_module


def _lazy_exports(package, file):
    """Returns a package's `__getattr__`, `__dir__` and `__all__`, read from the stub beside it.

    Each line of the stub has the form `from MODULE import NAME as NAME`. The stub is therefore the only
    list of a package's names, for type checkers and at run time alike. PEP 562 describes the functions.

    Args:
        package: The package's `__name__`.
        file: The package's `__file__`. The stub is beside it, with the extension `.pyi`.
    """
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123 (pathlib doubles the import time)
        lines = [line.split() for line in stub if line.startswith("from bliss_jax.")]
    module_of = {name: module for _, module, _, name, *_ in lines}

    def get_attribute(name):
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(import_module(package), name, value)
        return value

    return get_attribute, lambda: sorted(module_of), sorted(module_of)


__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
