r"""The path, the times, the MeanFlow identity target and the losses, as functions of tensors.

Time t = 0 is data, t = 1 is noise. Shapes: actions a, noise e and outputs g are ``(batch, action_dim)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfrl.reformulation import Reformulation


class Time(NamedTuple):
    """Times of a batch, as few distinct rows as there are.

    What a network computes from time alone is needed once per row of ``rows``: T rows for times drawn from a
    grid of T points, a single row where every sample has the same time.

    Attributes:
        rows: ``(rows, 1)`` distinct times in [0, 1].
        index: ``(batch,)`` row of each sample, or None where rows broadcast against the batch.
    """

    rows: Tensor
    index: Tensor | None = None

    def spread(self, x: Tensor) -> Tensor:
        """From one value per row to one value per sample: ``(rows, ...)`` -> ``(batch, ...)`` (or broadcastable)."""
        return x if self.index is None else x.index_select(0, self.index)

    @property
    def t(self) -> Tensor:
        """``(batch, 1)``, or ``(1, 1)`` where every sample has the same time."""
        return self.spread(self.rows)


#: A network g(s, a_t, t), called with observations, actions and times.
Network = Callable[[Tensor, Tensor, Time], Tensor]


def grid_times(num_steps: int, like: Tensor) -> Tensor:
    """``(T, 1)``: the grid 1/T, 2/T, ..., 1 from which training times are drawn."""
    return torch.arange(1, num_steps + 1, dtype=like.dtype, device=like.device)[:, None] / num_steps


def interpolate(a: Tensor, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The path between data and noise: a_t = (1 - t) a + t e and its velocity v = e - a."""
    v = e - a
    return a + t * v, v


def path_derivative(g: Network, observations: Tensor, a_t: Tensor, time: Time, v: Tensor) -> tuple[Tensor, Tensor]:
    """g and dg/dt = v . grad_{a_t} g + d_t g by one forward-mode JVP with tangents (v, 1).

    Works for any network; :class:`mfrl.networks` backbones bring the same as their method ``jvp``, which keeps no
    graph for the derivative and shares its forward pass with g.

    Returns:
        g with its gradient graph, and dg/dt, both ``(batch, action_dim)``.
    """

    def along_the_path(a_t: Tensor, rows: Tensor) -> Tensor:
        return g(observations, a_t, Time(rows, time.index))

    value, derivative = torch.func.jvp(along_the_path, (a_t, time.rows), (v, torch.ones_like(time.rows)))
    return value, derivative.detach()


def flow_target(
    reformulation: Reformulation,
    g: Tensor,
    dgdt: Tensor,
    v: Tensor,
    a_t: Tensor,
    e: Tensor,
    t: Tensor,
    clip: float,
) -> Tensor:
    """g_tgt of the MeanFlow identity, clipped to [-clip, clip], without gradient."""
    with torch.no_grad():
        return reformulation.target(g.detach(), dgdt, v, a_t, e, t).clamp(-clip, clip)


def adaptive_loss(g: Tensor, g_tgt: Tensor, gamma: float, c: float) -> Tensor:
    """Adaptively weighted regression: err = mean_d (g - g_tgt)^2, w = (err + c)^(gamma - 1), mean of stop(w) err.

    gamma = 1 is the plain squared error; smaller values weigh samples with a large error down.
    """
    err = (g - g_tgt).square().mean(dim=-1)
    w = (err.detach() + c).pow(gamma - 1.0)
    return (w * err).mean()


def bound_loss(a: Tensor) -> Tensor:
    """How far actions lie outside [-1, 1]: mean relu(a - 1) + mean relu(-1 - a)."""
    return torch.relu(a.abs() - 1.0).mean()
