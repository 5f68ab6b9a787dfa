"""A network for a Gaussian policy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class GaussianMLP(nn.Module):
    """Maps s to the mean and the log standard deviation of every dimension of the action.

    A sigmoid keeps the log standard deviation within its limits: log std = min + (max - min) sigmoid(x).

    Args:
        observation_dim, action_dim: sizes of the input and of each output.
        hidden: width of each hidden layer (GELU).
        log_std_min, log_std_max: limits of the log standard deviation.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        log_std_min: float = -5.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        layers = [layer for i, o in pairwise((observation_dim, *hidden)) for layer in (nn.Linear(i, o), nn.GELU())]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear((observation_dim, *hidden)[-1], 2 * action_dim)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, observation_dim)`` -> mean and log standard deviation, each ``(batch, action_dim)``."""
        mean, x = self.head(self.body(observations)).chunk(2, -1)
        return mean, self.log_std_min + (self.log_std_max - self.log_std_min) * torch.sigmoid(x)
