r"""The path, the times, the MeanFlow identity target and the losses, as functions of tensors.

Time t = 0 is data, t = 1 is noise. Shapes: actions a, noise e and outputs g are ``(batch, action_dim)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfrl.reformulation import Reformulation


class Time(NamedTuple):
    """Times of a batch, as few distinct rows as there are.

    What a network computes from time alone is needed once per row of ``rows``: T rows for times drawn from a
    grid of T points, a single row where every sample has the same time.

    Attributes:
        rows: ``(rows, 1)`` distinct times in [0, 1].
        index: ``(batch,)`` row of each sample, or None where rows broadcast against the batch.
        start: ``(rows, 1)`` starts b of the intervals [b, t] of the average velocity; None is b = 0 throughout, which
            a network without a second time needs not be told.
    """

    rows: Tensor
    index: Tensor | None = None
    start: Tensor | None = None

    def spread(self, x: Tensor) -> Tensor:
        """From one value per row to one value per sample: ``(rows, ...)`` -> ``(batch, ...)`` (or broadcastable)."""
        return x if self.index is None else x.index_select(0, self.index)

    @property
    def t(self) -> Tensor:
        """``(batch, 1)``, or ``(1, 1)`` where every sample has the same time."""
        return self.spread(self.rows)

    @property
    def b(self) -> Tensor | float:
        """Shaped like ``t``; the float 0.0 where there is no start."""
        return 0.0 if self.start is None else self.spread(self.start)


#: A network g(s, a_t, t), called with observations, actions and times.
Network = Callable[[Tensor, Tensor, Time], Tensor]


def grid_times(num_steps: int, like: Tensor) -> Tensor:
    """``(T, 1)``: the grid 1/T, 2/T, ..., 1 from which training times are drawn."""
    return torch.arange(1, num_steps + 1, dtype=like.dtype, device=like.device)[:, None] / num_steps


def draw_time(
    batch_size: int, num_steps: int | None, instant_share: float | None, device: torch.device, **draw: Any
) -> Time:
    """Training times: t from the grid 1/T, ..., 1, or from (0, 1] where ``num_steps`` is None.

    With ``instant_share``, as in MeanFlow (arXiv 2505.13447, Section 4.3): of two draws the later is t, the earlier is
    b, which lies below t, at 0 at the earliest; for this share of the samples b = t instead.

    Args:
        draw: ``generator=`` of the random numbers.
    """
    draw = {"device": device, **draw}
    if instant_share is None and num_steps is not None:
        rows = grid_times(num_steps, torch.empty(0, device=device))
        return Time(rows, torch.randint(num_steps, (batch_size,), **draw))
    if instant_share is None:
        return Time(1.0 - torch.rand(batch_size, 1, **draw))
    if num_steps is None:
        b, t = (1.0 - torch.rand(batch_size, 2, **draw)).sort(dim=1).values.split(1, dim=1)
    else:
        b, t = torch.randint(num_steps, (batch_size, 2), **draw).sort(dim=1).values.split(1, dim=1)
        b, t = b / num_steps, (t + 1) / num_steps
    instant = torch.rand(batch_size, 1, **draw) < instant_share
    return Time(t, start=torch.where(instant, t, b))


def end_time(e: Tensor, two_times: bool) -> Time:
    """t = 1 (and b = 0) for every sample: where one step from noise starts."""
    return Time(e.new_ones(1, 1), start=e.new_zeros(1, 1) if two_times else None)


def interpolate(a: Tensor, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The path between data and noise: a_t = (1 - t) a + t e and its velocity v = e - a."""
    v = e - a
    return a + t * v, v


def path_derivative(g: Network, observations: Tensor, a_t: Tensor, time: Time, v: Tensor) -> tuple[Tensor, Tensor]:
    """g and dg/dt = v . grad_{a_t} g + d_t g by one forward-mode JVP with tangents (v, 1), b fixed.

    Works for any network; :class:`mfrl.networks` backbones bring the same as their method ``jvp``, which keeps no
    graph for the derivative and shares its forward pass with g.

    Returns:
        g with its gradient graph, and dg/dt, both ``(batch, action_dim)``.
    """

    def along_the_path(a_t: Tensor, rows: Tensor) -> Tensor:
        return g(observations, a_t, Time(rows, time.index, time.start))

    value, derivative = torch.func.jvp(along_the_path, (a_t, time.rows), (v, torch.ones_like(time.rows)))
    return value, derivative.detach()


def flow_target(
    reformulation: Reformulation,
    g: Tensor,
    dgdt: Tensor,
    v: Tensor,
    a_t: Tensor,
    e: Tensor,
    time: Time,
    clip: float,
) -> Tensor:
    """g_tgt of the MeanFlow identity, clipped to [-clip, clip], without gradient."""
    with torch.no_grad():
        return reformulation.target(g.detach(), dgdt, v, a_t, e, time.t, time.b).clamp(-clip, clip)


def adaptive_loss(g: Tensor, g_tgt: Tensor, gamma: float, c: float) -> Tensor:
    """Adaptively weighted regression: err = mean_d (g - g_tgt)^2, w = (err + c)^(gamma - 1), mean of stop(w) err.

    gamma = 1 is the plain squared error; smaller values weigh samples with a large error down.
    """
    err = (g - g_tgt).square().mean(dim=-1)
    w = (err.detach() + c).pow(gamma - 1.0)
    return (w * err).mean()


def flow_loss(
    actor: nn.Module,
    reformulation: Reformulation,
    observations: Tensor,
    a: Tensor,
    e: Tensor,
    time: Time,
    clip: float,
    gamma: float,
    c: float,
) -> tuple[Tensor, Tensor]:
    """L_flow: regression of g onto the MeanFlow identity target, by one JVP along the path from a to e.

    Args:
        a, e: ``(batch, action_dim)`` actions of the data and noise.
        clip: of the target; gamma, c: of the adaptive weights.

    Returns:
        the loss, and the unweighted squared error without gradient.
    """
    a_t, v = interpolate(a, e, time.t)
    if hasattr(actor, "jvp"):
        F, dFdt = actor.jvp(observations, a_t, time, v)
    else:
        F, dFdt = path_derivative(actor, observations, a_t, time, v)
    g, dgdt = reformulation.pinned(F, dFdt, a_t, v, time.t)
    g_tgt = flow_target(reformulation, g, dgdt, v, a_t, e, time, clip)
    return adaptive_loss(g, g_tgt, gamma, c), (g.detach() - g_tgt).square().mean()


def bound_loss(a: Tensor) -> Tensor:
    """How far actions lie outside [-1, 1]: mean relu(a - 1) + mean relu(-1 - a)."""
    return torch.relu(a.abs() - 1.0).mean()
