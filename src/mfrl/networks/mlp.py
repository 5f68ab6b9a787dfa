"""A plain MLP actor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Time
from mfrl.networks import primitives
from mfrl.networks.dual import Dual, DualNetwork, Linear, add, gelu, linear
from mfrl.networks.time import TimeEmbedding


class MLP(DualNetwork):
    """g(s, a_t, t): GELU layers over [s, a_t, time embedding], zero-initialised head.

    Args:
        observation_dim, action_dim: sizes of the flat inputs.
        hidden: width of each hidden layer.
        time_width: width of the time embedding.
        two_times: whether the network takes the start b of the interval too: g(s, a_t, b, t).
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
    def folded(self, time: Time) -> FoldedMLP:
        """With what time adds to the first layer as a part of its bias."""
        return FoldedMLP(self, time)

    def run(self, observations: Tensor, actions: Dual, time: Time) -> Dual:
        w_s, w_a, w_t = self.input.weight.split(self.sizes, dim=1)
        of_time = linear(self.time(time, actions.tangent is not None), w_t)
        of_time = Dual(time.spread(of_time.value), None if of_time.tangent is None else time.spread(of_time.tangent))
        x = add(linear(Dual(observations), w_s, self.input.bias), linear(actions, w_a))
        x = gelu(add(x, of_time))
        for layer in self.hidden:
            x = gelu(layer(x))
        return self.head(x)


class FoldedMLP(nn.Module):
    """An MLP at one time: the output is that of the MLP but for rounding.

    Args:
        mlp: to fold; later changes of its weights do not show here.
        time: of one row.
    """

    w_s: Tensor
    w_a: Tensor
    bias: Tensor

    def __init__(self, mlp: MLP, time: Time) -> None:
        super().__init__()
        w_s, w_a, w_t = mlp.input.weight.detach().split(mlp.sizes, dim=1)
        self.register_buffer("w_s", w_s.clone())
        self.register_buffer("w_a", w_a.clone())
        self.register_buffer("bias", mlp.input.bias.detach() + mlp.time(time).value[0] @ w_t.T)
        self.layers = copy.deepcopy(nn.ModuleList([*mlp.hidden, mlp.head])).requires_grad_(False)

    def forward(self, observations: Tensor, actions: Tensor, time: Time | None = None) -> Tensor:
        """g ``(..., batch, action_dim)``, like :meth:`MLP.forward`; the time is that of folding."""
        x = F.linear(observations, self.w_s, self.bias) + F.linear(actions, self.w_a)
        for layer in self.layers:
            assert isinstance(layer, Linear)
            x = F.linear(primitives.gelu(x), layer.weight, layer.bias)
        return x
