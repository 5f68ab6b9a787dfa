"""Imports of large packages without Python's garbage collection."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage while the block imports, nor later among what it imported.

    Importing makes hundreds of thousands of objects that stay until the process ends. To look through them again and
    again takes a third of the time of `mfrl train` until it trains, and to do so once more at exit as much again.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else what is frozen is no import, and would never be freed
            gc.freeze()
        if enabled:
            gc.enable()
