"""Time as network input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfrl.networks.dual import Dual, Linear, silu


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1], then two linear layers with SiLU between.

    Features are cos and sin of t w_k with w_k = period^(-k / half), k = 0 .. half - 1 (period 10000), as in the
    published actor.
    """

    def __init__(self, width: int, num_features: int = 256, period: float = 10_000.0) -> None:
        super().__init__()
        half = num_features // 2
        self.register_buffer(
            "frequencies", torch.exp(torch.arange(half) * (-math.log(period) / half)), persistent=False
        )
        self.hidden = Linear(2 * half, width)
        self.out = Linear(width, width)

    def forward(self, t: Tensor, with_tangent: bool = False) -> Dual:
        """``(rows, 1)`` times -> ``(rows, width)``, with its derivative with respect to t where asked."""
        angle = t * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        tangent = torch.cat([-sin * self.frequencies, cos * self.frequencies], -1) if with_tangent else None
        return self.out(silu(self.hidden(Dual(torch.cat([cos, sin], -1), tangent))))
