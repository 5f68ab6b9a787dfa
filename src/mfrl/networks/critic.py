"""The critic: an ensemble of Q networks, and the value of a state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.networks.primitives import batched_affine, gelu


class QEnsemble(nn.Module):
    """Q_i(s, a) for i = 1 .. ensemble. One batched matrix product per layer computes all members.

    Each member is [s, a] -> (linear, GELU, LayerNorm) x depth -> linear 1, as published. Its weights start Xavier
    uniform, with the fan of one member, and its biases at zero.

    Args:
        observation_dim, action_dim: sizes of the flat inputs.
        hidden: width of each hidden layer; published: 4 x 512.
        ensemble: number of members; published: 2.
        layer_norm: whether each hidden layer ends in a LayerNorm.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        ensemble: int = 2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = [observation_dim, action_dim]
        dims = [observation_dim + action_dim, *hidden]
        self.weights = nn.ParameterList(_xavier(ensemble, i, o) for i, o in pairwise(dims))
        self.biases = nn.ParameterList(torch.zeros(ensemble, 1, o) for o in hidden)
        normed = hidden if layer_norm else ()
        self.gains = nn.ParameterList(torch.ones(ensemble, 1, o) for o in normed)
        self.shifts = nn.ParameterList(torch.zeros(ensemble, 1, o) for o in normed)
        self.head_weight = nn.Parameter(_xavier(ensemble, hidden[-1], 1))
        self.head_bias = nn.Parameter(torch.zeros(ensemble, 1, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Values ``(ensemble, ..., batch)``.

        Args:
            observations: ``(batch, observation_dim)``.
            actions: ``(..., batch, action_dim)``; all leading axes (candidates) share the observations.
        """
        w_s, w_a = self.weights[0].split(self.sizes, dim=1)
        lead = actions.shape[:-1]
        state_part = batched_affine(observations.expand(len(w_s), -1, -1), w_s, self.biases[0])
        x = torch.bmm(actions.reshape(1, -1, actions.shape[-1]).expand(len(w_a), -1, -1), w_a)
        state_part = state_part.view(len(w_s), *[1] * (len(lead) - 1), *state_part.shape[1:])
        x = (x.unflatten(1, lead) + state_part).flatten(1, -2)
        for k in range(len(self.weights)):
            if k > 0:
                x = batched_affine(x, self.weights[k], self.biases[k])
            x = gelu(x)
            if self.gains:
                x = torch.addcmul(self.shifts[k], F.layer_norm(x, x.shape[-1:], eps=1e-6), self.gains[k])
        q = batched_affine(x, self.head_weight, self.head_bias)
        return q.view(-1, *lead)


class StateValue(nn.Module):
    """V(s): (linear, GELU, LayerNorm) x depth -> linear 1, as one member of a :class:`QEnsemble` without its action.

    Args:
        observation_dim: size of the flat input.
        action_dim: of no use; every network is built with both sizes.
        hidden: width of each hidden layer; published: 4 x 512.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (512, 512, 512, 512)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((observation_dim, *hidden)))
        self.norms = nn.ModuleList(nn.LayerNorm(o, eps=1e-6) for o in hidden)
        self.head = nn.Linear(hidden[-1], 1)
        for layer in (*self.layers, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> Tensor:
        """``(batch, observation_dim)`` -> ``(batch,)``."""
        x = observations
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(gelu(layer(x)))
        return self.head(x)[..., 0]


def _xavier(ensemble: int, fan_in: int, fan_out: int) -> Tensor:
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    return torch.empty(ensemble, fan_in, fan_out).uniform_(-bound, bound)
