"""A plain MLP actor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Times
from mfrl.networks import primitives
from mfrl.networks.dual import Dual, DualNetwork, Linear, add, gelu, linear
from mfrl.networks.time import TimeEmbedding


class MLP(DualNetwork):
    """g(s, a_t, t): GELU layers over [s, a_t, time embedding], zero-initialised head.

    Args:
        observation_dim, action_dim: sizes of the flat inputs.
        hidden: width of each hidden layer.
        time_width: width of the time embedding.
        two_times: the network takes the start b of the interval too: g(s, a_t, b, t).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        time_width: int = 64,
        two_times: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = [observation_dim, action_dim, time_width]
        self.time: nn.Module = TimeEmbedding(time_width, two_times)
        self.input = Linear(sum(self.sizes), hidden[0], scale=1.0)
        self.hidden = nn.ModuleList(Linear(i, o, scale=1.0) for i, o in pairwise(hidden))
        self.head = Linear(hidden[-1], action_dim, scale=0.0)

    @torch.no_grad()
    def folded(self, times: Times) -> FoldedMLP:
        """The network at one time: the time's part of the first layer becomes a part of its bias."""
        return FoldedMLP(self, times)

    def run(self, observations: Tensor, actions: Dual, times: Times) -> Dual:
        w_s, w_a, w_t = self.input.weight.split(self.sizes, dim=1)
        row = linear(self.time(times, actions.tangent is not None), w_t)
        time_part = Dual(times.spread(row.value), None if row.tangent is None else times.spread(row.tangent))
        x = add(linear(Dual(observations), w_s, self.input.bias), linear(actions, w_a))
        x = gelu(add(x, time_part))
        for layer in self.hidden:
            x = gelu(layer(x))
        return self.head(x)


class FoldedMLP(nn.Module):
    """An MLP at one time. The output equals the MLP's up to rounding.

    Args:
        mlp: the network to fold. Later changes of its weights have no effect on the folded one.
        times: one row.
    """

    w_s: Tensor
    w_a: Tensor
    bias: Tensor

    def __init__(self, mlp: MLP, times: Times) -> None:
        super().__init__()
        w_s, w_a, w_t = mlp.input.weight.detach().split(mlp.sizes, dim=1)
        self.register_buffer("w_s", w_s.clone())
        self.register_buffer("w_a", w_a.clone())
        self.register_buffer("bias", mlp.input.bias.detach() + mlp.time(times).value[0] @ w_t.T)
        self.layers = copy.deepcopy(nn.ModuleList([*mlp.hidden, mlp.head])).requires_grad_(False)

    def forward(self, observations: Tensor, actions: Tensor, times: Times | None = None) -> Tensor:
        """g ``(..., batch, action_dim)``, like :meth:`MLP.forward`, at the time of folding; ``times`` is ignored."""
        x = F.linear(observations, self.w_s, self.bias) + F.linear(actions, self.w_a)
        for layer in self.layers:
            assert isinstance(layer, Linear)
            x = F.linear(primitives.gelu(x), layer.weight, layer.bias)
        return x
