"""Time as network input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfrl.meanflow import Time
from mfrl.networks.dual import Dual, Linear, add, silu


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1], then two linear layers with SiLU between.

    Features are cos and sin of t w_k with w_k = period^(-k / half), k = 0 .. half - 1 (period 10000), as in the
    published actor.

    Args:
        two_times: the start b of the interval gets an embedding of its own, added to that of t.
    """

    frequencies: Tensor

    def __init__(self, width: int, two_times: bool = False, num_features: int = 256, period: float = 10_000.0) -> None:
        super().__init__()
        half = num_features // 2
        self.register_buffer(
            "frequencies", torch.exp(torch.arange(half) * (-math.log(period) / half)), persistent=False
        )
        self.hidden = Linear(2 * half, width)
        self.out = Linear(width, width)
        self.start = TimeEmbedding(width, False, num_features, period) if two_times else None

    def forward(self, time: Time, with_tangent: bool = False) -> Dual:
        """``(rows, width)`` of the distinct times, with the derivative with respect to t (b fixed) where asked."""
        of_t = self.embed(time.rows, with_tangent)
        if self.start is None:
            return of_t
        assert time.start is not None, "a network of two times is told where the interval starts"
        return add(of_t, self.start.embed(time.start))

    def embed(self, t: Tensor, with_tangent: bool = False) -> Dual:
        """``(rows, 1)`` times -> ``(rows, width)``."""
        angle = t * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        tangent = torch.cat([-sin * self.frequencies, cos * self.frequencies], -1) if with_tangent else None
        return self.out(silu(self.hidden(Dual(torch.cat([cos, sin], -1), tangent))))
