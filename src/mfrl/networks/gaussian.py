"""Networks for Gaussian policies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfrl.networks.primitives import gelu


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


class SquashedGaussianMLP(nn.Module):
    """Maps s to the mean and the log standard deviation of a Gaussian whose tanh is the action.

    GELU layers, Xavier uniform weights, zero biases: at first the Gaussian is close to N(0, 1) in every state.

    Args:
        observation_dim, action_dim: sizes of the input and of each output.
        hidden: width of each hidden layer; published: 2 x 256 (OGBench's experts), 4 x 512 (FQL's code).
        head_scale: the weights of both heads have this share of Xavier's variance.
        log_std_min, log_std_max: the log standard deviation is clipped to these limits.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        head_scale: float = 0.01,
        log_std_min: float = -5.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((observation_dim, *hidden)))
        self.mean, self.log_std = nn.Linear(hidden[-1], action_dim), nn.Linear(hidden[-1], action_dim)
        for layer in (*self.layers, self.mean, self.log_std):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for head in (self.mean, self.log_std):
                head.weight.mul_(head_scale**0.5)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, observation_dim)`` -> mean and log standard deviation, each ``(batch, action_dim)``."""
        x = observations
        for layer in self.layers:
            x = gelu(layer(x))
        return self.mean(x), self.log_std(x).clamp(self.log_std_min, self.log_std_max)
