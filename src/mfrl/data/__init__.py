"""Transitions in memory, and the LightningDataModules that fill them."""

from mfrl.data.transitions import Batch, Chunk, DataError, DataSpec, Transitions

__all__ = ["Batch", "Chunk", "DataError", "DataSpec", "Transitions"]
