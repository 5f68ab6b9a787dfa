"""Networks: actor backbones, the Q ensemble and the image encoder. nn.Modules only, no losses."""

from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.networks.encoder import ImpalaEncoder, Sees
from mfrl.networks.gaussian import GaussianMLP
from mfrl.networks.mlp import MLP
from mfrl.networks.vector_field import VectorField

__all__ = ["MLP", "DiT", "GaussianMLP", "ImpalaEncoder", "QEnsemble", "Sees", "VectorField"]
