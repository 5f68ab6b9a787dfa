r"""The path, the times, the MeanFlow identity target and the losses, as functions of tensors.

Time t = 0 is data, t = 1 is noise. Shapes: actions a, noise e and outputs g are ``(batch, action_dim)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfrl.randomness import Draw, Normal, below, uniform
from mfrl.reformulation import Reformulation
from mfrl.settings import Settings


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
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which times have no use for
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


class Actor(Protocol):
    """A network that gives its derivative along the path too."""

    def __call__(self, observations: Tensor, actions: Tensor, time: Time) -> Tensor: ...

    def jvp(self, observations: Tensor, actions: Tensor, time: Time, velocity: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class FlowLoss(Settings):
    """Of the flow loss (arXiv 2511.13035, Table 6).

    Attributes:
        time_steps: training times are drawn from a grid of so many points; None draws them from (0, 1).
        gamma_adaptive, c_adaptive: of the weights, see :func:`adaptive_loss`.
        target_clip: keeps every number of the target within it.
        sigma: standard deviation of the noise.
    """

    time_steps: int | None = 50
    gamma_adaptive: float = 0.8
    c_adaptive: float = 1e-4
    target_clip: float = 5.0
    sigma: float = 1.0


def grid_times(num_steps: int, like: Tensor) -> Tensor:
    """``(T, 1)`` float32: the grid 1/T, 2/T, ..., 1 from which training times are drawn, on the device of ``like``."""
    return torch.arange(1, num_steps + 1, dtype=torch.float32, device=like.device)[:, None] / num_steps


@dataclass(frozen=True)
class Times:
    """Training times as a draw of :mod:`mfrl.randomness`: t from the grid 1/T, ..., 1, or from (0, 1).

    With ``instant_share``, as in MeanFlow (arXiv 2505.13447, Section 4.3): of two draws the later is t, the earlier is
    b, which lies below t, at 0 at the earliest; for this share of the samples b = t instead.

    Attributes:
        batch_size: how many.
        num_steps: T; None: from the whole interval.
        instant_share: None: there is no b.
    """

    batch_size: int
    num_steps: int | None
    instant_share: float | None = None

    @property
    def words(self) -> int:
        """Two for a time on the grid, one for any other and for whether b = t."""
        times = self.batch_size * (1 if self.num_steps is None else 2)
        return times if self.instant_share is None else 2 * times + self.batch_size

    def numbers(self, words: Tensor) -> Tensor:
        return words

    def value(self, words: Tensor) -> Time:
        if self.instant_share is None:
            if self.num_steps is None:
                return Time(1.0 - uniform(words)[:, None])
            return Time(grid_times(self.num_steps, words), below(words, self.num_steps))
        drawn, whether = words.split([self.words - self.batch_size, self.batch_size])
        if self.num_steps is None:
            first, second = uniform(drawn)[:, None].chunk(2)
            b, t = torch.minimum(first, second), torch.maximum(first, second)
        else:
            first, second = below(drawn, self.num_steps)[:, None].chunk(2)
            b, t = torch.minimum(first, second) / self.num_steps, (torch.maximum(first, second) + 1) / self.num_steps
        return Time(t, start=torch.where(uniform(whether)[:, None] < self.instant_share, t, b))


def path_draws(
    batch_size: int, action_dim: int, sigma: float, num_steps: int | None, instant_share: float | None = None
) -> dict[str, Draw]:
    """What a loss along the path draws: "flow", its end ``(batch, action_dim)``, and "time", where on it."""
    return {
        "flow": Normal((batch_size, action_dim), sigma),
        "time": Times(batch_size, num_steps, instant_share),
    }


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
    actor: Actor, reformulation: Reformulation, observations: Tensor, a: Tensor, e: Tensor, time: Time, c: FlowLoss
) -> tuple[Tensor, Tensor]:
    """L_flow: regression of g onto the MeanFlow identity target, by one JVP along the path from a to e.

    Args:
        observations: as the actor takes them.
        a, e: ``(batch, action_dim)`` actions of the data and noise.

    Returns:
        the loss, and the unweighted squared error without gradient.
    """
    a_t, v = interpolate(a, e, time.t)
    F, dFdt = actor.jvp(observations, a_t, time, v)
    g, dgdt = reformulation.pinned(F, dFdt, a_t, v, time.t)
    g_tgt = flow_target(reformulation, g, dgdt, v, a_t, e, time, c.target_clip)
    return adaptive_loss(g, g_tgt, c.gamma_adaptive, c.c_adaptive), (g.detach() - g_tgt).square().mean()


def bound_loss(a: Tensor) -> Tensor:
    """How far actions lie outside [-1, 1]: mean relu(a - 1) + mean relu(-1 - a)."""
    return torch.relu(a.abs() - 1.0).mean()
