"""Types of the callbacks that report progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int], None]
"""Called after each batch with the number of images or texts done since the last call."""

Track = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a progress display. Takes the name of a stage and its number of items; returns a context manager that
yields a `Progress`."""
