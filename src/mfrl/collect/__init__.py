"""Data collection in the simulators: OGBench's own files here, Minari datasets by :mod:`mfrl.collect.minari`."""

from mfrl.collect.runner import Collected, collect
from mfrl.collect.settings import CollectError, Settings, plan

__all__ = ["CollectError", "Collected", "Settings", "collect", "plan"]
