"""The embedding of time, as networks take it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfrl.meanflow import Times
from mfrl.networks.dual import Dual, Linear, add, silu


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1], then two linear layers with a SiLU between them.

    The features are cos and sin of t w_k with w_k = period^(-k / half), k = 0 .. half - 1, as in the published actor.

    Args:
        width: size of the embedding.
        two_times: the start b of the interval gets its own embedding, which is added to that of t.
        num_features: 2 half.
        period: published: 10000.
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

    def forward(self, times: Times, with_tangent: bool = False) -> Dual:
        """Embeddings of the distinct times ``(rows, width)``; ``with_tangent`` adds their derivative in t, b fixed."""
        embedded_t = self.embed(times.rows, with_tangent)
        if self.start is None:
            return embedded_t
        assert times.start is not None, "a network of two times needs Times.start, where the interval starts"
        return add(embedded_t, self.start.embed(times.start))

    def embed(self, t: Tensor, with_tangent: bool = False) -> Dual:
        """``(rows, 1)`` times -> ``(rows, width)``."""
        angle = t * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        tangent = torch.cat([-sin * self.frequencies, cos * self.frequencies], -1) if with_tangent else None
        return self.out(silu(self.hidden(Dual(torch.cat([cos, sin], -1), tangent))))
