"""One action for a state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfrl.networks.primitives import gelu


class MeanMLP(nn.Module):
    """s -> an action: that of a deterministic policy, or the mean of a Gaussian.

    GELU layers, Xavier uniform weights, zero biases.

    Args:
        observation_dim, action_dim: sizes of the flat input and of the output.
        hidden: width of each hidden layer; published: 4 x 512.
        squash: the output is tanh of the last layer's, within the bounds of actions.
        head_scale: the last layer's weights have this share of Xavier's variance; published: 0.01 (agents/rebrac.py of
            FQL's code), so that a policy starts near 0.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        squash: bool = False,
        head_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((observation_dim, *hidden)))
        self.head = nn.Linear(hidden[-1], action_dim)
        for layer in (*self.layers, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale**0.5)

    def forward(self, observations: Tensor) -> Tensor:
        """``(batch, observation_dim)`` -> ``(batch, action_dim)``."""
        x = observations
        for layer in self.layers:
            x = gelu(layer(x))
        x = self.head(x)
        return x.tanh() if self.squash else x
