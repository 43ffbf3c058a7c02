"""Platforms for which detectors are exported. The module imports nothing: the command line needs it at its start."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
