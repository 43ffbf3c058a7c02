"""Types of callbacks that report progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int], None]
"""Callback that is called after each batch with the number of images or texts since the last call."""

Track = Callable[[str, int], AbstractContextManager[Progress]]
"""Function that opens a progress display. It takes the name of a stage and its number of items, and returns a
context manager that yields a `Progress`."""
