"""One file per algorithm; each reads like its paper."""

from mfrl.algorithms.meanflowql import MeanFlowQL

__all__ = ["MeanFlowQL"]
