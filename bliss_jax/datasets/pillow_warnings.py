"""Warnings of Pillow with the name of the image that they are about.

Pillow warns of odd metadata without naming the file. Inside `named_warnings`, a warning of this thread is
collected, and issued again afterwards with the name in front. Warnings of other threads are not affected.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PILLOW = r"PIL\."
"""Modules whose warnings are shown for every image, not only for the first one."""
_LOCK = threading.Lock()
_STATE = threading.local()
_installed: list[Any] = []
"""The hook that `_collect` replaces, once per block that is open in some thread."""


class ImageWarning(UserWarning):
    """Warning of Pillow about an image, which the message names."""


def _collect(message: Any, category: Any, filename: str, *rest: Any, **named: Any) -> None:
    """Replaces `warnings.showwarning`: keeps warnings of Pillow while this thread decodes an image."""
    found = getattr(_STATE, "found", None)
    if found is not None:
        found.append(str(message))
    elif _installed:
        _installed[0](message, category, filename, *rest, **named)


@contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Collects the warnings of a block in this thread, and issues them as `ImageWarning` with a name."""
    outer = getattr(_STATE, "found", None)
    _STATE.found = found = []
    with _LOCK:
        if not _installed or warnings.showwarning is not _collect:
            _installed[:] = [warnings.showwarning] * (len(_installed) + 1)
            warnings.showwarning = _collect
            warnings.filterwarnings("always", module=_PILLOW)
        else:
            _installed.append(_installed[0])
    try:
        yield
    finally:
        _STATE.found = outer
        with _LOCK:
            original = _installed.pop()
            if not _installed and warnings.showwarning is _collect:
                warnings.showwarning = original
                _remove_filter()
    for message in dict.fromkeys(found):
        warnings.warn(f"{name}: {message}", ImageWarning, stacklevel=4)


def _remove_filter() -> None:
    """Removes the filter that `named_warnings` added."""
    for entry in [f for f in warnings.filters if getattr(f[3], "pattern", f[3]) == _PILLOW]:
        warnings.filters.remove(entry)  # pyright: ignore[reportAttributeAccessIssue]
