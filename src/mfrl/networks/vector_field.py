"""The actor of FQL's code (arXiv 2502.02538): an MLP that takes time as a plain number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mfrl.meanflow import Times
from mfrl.networks.dual import Dual
from mfrl.networks.mlp import MLP


class PlainTime(nn.Module):
    """Stands in for :class:`TimeEmbedding`: passes on t, and the interval's start b if there is one."""

    def forward(self, times: Times, with_tangent: bool = False) -> Dual:
        """``(rows, 1)`` or ``(rows, 2)``; ``with_tangent`` adds the derivative in t, b fixed."""
        t = times.rows
        if times.start is None:
            return Dual(t, torch.ones_like(t) if with_tangent else None)
        tangent = torch.cat([torch.ones_like(t), torch.zeros_like(t)], -1) if with_tangent else None
        return Dual(torch.cat([t, times.start], -1), tangent)


class VectorField(MLP):
    """v(s, a_t, t): GELU layers over [s, a_t, t]. All weights, the head's too, start Xavier uniform; biases at zero.

    At a fixed time, as in a one-step policy, the weights of t are a second bias.

    Args:
        observation_dim, action_dim: sizes of the flat inputs.
        hidden: width of each hidden layer; published: 4 x 512.
        two_times: the network takes the start b of the interval too.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        two_times: bool = False,
    ) -> None:
        super().__init__(observation_dim, action_dim, hidden, time_width=2 if two_times else 1, two_times=two_times)
        self.time = PlainTime()
        for layer in (self.input, *self.hidden, self.head):
            nn.init.xavier_uniform_(layer.weight)
