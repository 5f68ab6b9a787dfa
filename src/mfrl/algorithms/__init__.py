"""One file per algorithm; each reads like its paper."""

from mfrl.algorithms.flow_bc import FlowBC
from mfrl.algorithms.flow_distilled import FlowDistilled
from mfrl.algorithms.fql import FQL
from mfrl.algorithms.gaussian_bc import GaussianBC
from mfrl.algorithms.meanflow_bc import MeanFlowBC
from mfrl.algorithms.meanflowql import MeanFlowQL

__all__ = ["FQL", "FlowBC", "FlowDistilled", "GaussianBC", "MeanFlowBC", "MeanFlowQL"]
