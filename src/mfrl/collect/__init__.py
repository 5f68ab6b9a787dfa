"""Scripted data collection in OGBench's own simulators, in OGBench's own file format."""

from mfrl.collect.runner import Collected, collect
from mfrl.collect.settings import CollectError, Settings, plan

__all__ = ["CollectError", "Collected", "Settings", "collect", "plan"]
