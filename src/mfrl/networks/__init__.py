"""Networks: actor backbones and the Q ensemble. nn.Modules only, no losses."""

from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.networks.gaussian import GaussianMLP
from mfrl.networks.mlp import MLP

__all__ = ["MLP", "DiT", "GaussianMLP", "QEnsemble"]
