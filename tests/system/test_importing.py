"""Imports leave garbage collection as they found it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from mfrl.system.importing import without_collection


class Node:
    """In a cycle with itself, as a trainer with its module is."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_an_earlier_run_is_freed_where_nothing_is_imported_any_more() -> None:
    node = Node()
    gone = weakref.ref(node)
    gc.disable()
    try:
        del node
        with without_collection():
            pass
        assert not gc.isenabled(), "it was not before"
    finally:
        gc.enable()
    gc.collect()
    assert gone() is None


def test_what_a_block_imports_is_not_looked_through_again() -> None:
    code = """
import gc
from mfrl.system.importing import without_collection
before = gc.get_freeze_count()
with without_collection():
    import decimal, fractions
print(gc.get_freeze_count() > before, gc.isenabled())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True", "True"]
