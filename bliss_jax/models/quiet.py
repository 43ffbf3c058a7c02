"""Imports and calls of other libraries without output that alarms or misleads a user."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from bliss_jax import _require

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def import_transformers() -> ModuleType:
    """Imports transformers without its advice to install PyTorch.

    Without PyTorch transformers prints "PyTorch was not found. Models won't be available", although this
    library uses only its configurations and tokenizers.
    """
    _require("transformers", "encoders")
    before = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = before
    return transformers


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Hides the warnings of huggingface_hub, e.g. one line for each retry of a request.

    The library states the final error itself.
    """
    loggers = [
        logging.getLogger(name)
        for name in ("huggingface_hub", *logging.root.manager.loggerDict)
        if name.split(".")[0] == "huggingface_hub"
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
