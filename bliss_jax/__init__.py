"""BLISS in JAX: CLIP-based semantic anomaly detection with the text-similarity bias corrected.

    import bliss_jax as bj

    model = bj.load_model("openai/clip-vit-base-patch16")
    moments = bj.fit_moments(train_embeddings, train_labels, num_classes=10)
    scores = bj.bliss_score(test_embeddings, label_embeddings, dictionary_embeddings, moments)

The public names are listed in `__init__.pyi`. A name is imported when it is first used. The scores, the
metrics and detectors on embeddings need JAX, jaxtyping, NumPy and safetensors only. Other parts of the
library need the packages of an extra, e.g. `pip install 'bliss-jax[encoders]'`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

# The extra that installs the packages of each room.
_EXTRAS = {
    "bliss_jax.models": "encoders",
    "bliss_jax.datasets": "datasets",
    "bliss_jax.detection": "sklearn",
    "bliss_jax.report": "report",
    "bliss_jax.cli": "cli",
}
_PACKAGES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}


def _require(module, extra):
    """Checks that an optional package can be imported. Call it before the import statement.

    Args:
        module: Name of the top-level module, e.g. "transformers".
        extra: Name of the extra of bliss-jax that installs the package.

    Raises:
        ModuleNotFoundError: The package is not installed. The message contains the command to install it.
    """
    if sys.modules.get(module) is None and find_spec(module) is None:
        raise _MissingPackageError(module, extra)


class _MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed. The message contains the command to install it."""

    def __init__(self, module, extra):
        name = _PACKAGES.get(module, module)
        message = f"the package {name} is needed here and not installed"
        super().__init__(f"{message}: pip install 'bliss-jax[{extra}]'", name=module)


def _lazy_exports(package, file):
    """Returns a package's `__getattr__`, `__dir__` and `__all__`, read from the stub beside it.

    Each line of the stub has the form `from MODULE import NAME as NAME`. The stub is therefore the only
    list of a package's names, for type checkers and at run time alike. PEP 562 describes the functions. If a
    module of the package needs a package that is not installed, the error names the extra that installs it.

    Args:
        package: The package's `__name__`.
        file: The package's `__file__`. The stub is beside it, with the extension `.pyi`.
    """
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123 (pathlib doubles the import time)
        lines = [line.split() for line in stub if line.startswith("from bliss_jax.")]
    module_of = {name: module for _, module, _, name, *_ in lines}
    rooms = {module.removeprefix(f"{package}.") for module in module_of.values()}

    def get_attribute(name):
        if name not in module_of:
            if name in rooms:  # `bj.scores`, whether or not something has imported it
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(module_of[name]), name)
        except _MissingPackageError:
            raise
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if package not in _EXTRAS or missing == "bliss_jax":
                raise
            raise _MissingPackageError(missing, _EXTRAS[package]) from error
        setattr(import_module(package), name, value)
        return value

    return get_attribute, lambda: sorted(module_of), sorted(module_of)


def _command():
    """Runs the command `bliss-jax`. It is the entry point, because it also runs without the extra `cli`."""
    try:
        from bliss_jax.cli import main
    except _MissingPackageError as error:
        sys.exit(f"bliss-jax: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"bliss-jax: {_MissingPackageError((error.name or '').split('.')[0], 'cli')}")
    main()


__getattr__, __dir__, __all__ = _lazy_exports(__name__, __file__)
