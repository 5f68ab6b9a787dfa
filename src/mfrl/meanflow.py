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


class Times(NamedTuple):
    """The times of a batch, stored as the distinct ones and an index into them.

    A network computes everything that depends on time alone once for each row of ``rows``. There are T rows for
    times from a grid of T points, and one row where every sample has the same time.

    Attributes:
        rows: ``(rows, 1)`` distinct times t in [0, 1].
        index: ``(batch,)`` the row of each sample; None where the rows broadcast against the batch.
        start: ``(rows, 1)`` the starts b of the intervals [b, t] over which the velocity is averaged; None where
            b = 0 in every sample.
    """

    rows: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which times have no use for
    start: Tensor | None = None

    def spread(self, x: Tensor) -> Tensor:
        """From one value per row to one per sample: ``(rows, ...)`` -> ``(batch, ...)``, or what broadcasts to it."""
        return x if self.index is None else x.index_select(0, self.index)

    @property
    def t(self) -> Tensor:
        """``(batch, 1)``, or ``(1, 1)`` where every sample has the same time."""
        return self.spread(self.rows)

    @property
    def b(self) -> Tensor | float:
        """The start of each sample's interval, shaped like ``t``; the float 0.0 where ``start`` is None."""
        return 0.0 if self.start is None else self.spread(self.start)


#: A network g(s, a_t, t). It is called with observations, actions and times.
Network = Callable[[Tensor, Tensor, Times], Tensor]


class Actor(Protocol):
    """A network that also gives its derivative along the path."""

    def __call__(self, observations: Tensor, actions: Tensor, times: Times) -> Tensor: ...

    def jvp(self, observations: Tensor, actions: Tensor, times: Times, velocity: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class MeanFlowSettings(Settings):
    """Settings of :func:`meanflow_loss`; the defaults are published (arXiv 2511.13035, Table 6).

    Attributes:
        time_steps: number of points of the grid of training times; None draws times from (0, 1).
        gamma_adaptive, c_adaptive: gamma and c of :func:`adaptive_loss`.
        target_clip: the target's components are clipped to [-target_clip, target_clip].
        sigma: standard deviation of the noise.
    """

    time_steps: int | None = 50
    gamma_adaptive: float = 0.8
    c_adaptive: float = 1e-4
    target_clip: float = 5.0
    sigma: float = 1.0


def grid_times(num_steps: int, like: Tensor) -> Tensor:
    """``(T, 1)`` float32: the grid 1/T, 2/T, ..., 1 of training times, on the device of ``like``."""
    return torch.arange(1, num_steps + 1, dtype=torch.float32, device=like.device)[:, None] / num_steps


@dataclass(frozen=True)
class TimeDraw:
    """A :class:`mfrl.randomness.Draw` of training times: t from the grid 1/T, ..., 1, or from (0, 1).

    ``instant_share`` draws the start b of the interval too, as in MeanFlow (arXiv 2505.13447, Section 4.3): the later
    of two draws is t and the earlier is b, with 0 <= b < t. In this share of the samples b = t instead.

    Attributes:
        batch_size: number of samples.
        num_steps: T; None draws from the whole interval.
        instant_share: share of the samples with b = t; None draws no b.
    """

    batch_size: int
    num_steps: int | None
    instant_share: float | None = None

    @property
    def words(self) -> int:
        """A time on the grid takes two words, any other time one, and the decision whether b = t one."""
        words = self.batch_size * (1 if self.num_steps is None else 2)
        return words if self.instant_share is None else 2 * words + self.batch_size

    def numbers(self, words: Tensor) -> Tensor:
        return words

    def value(self, words: Tensor) -> Times:
        if self.instant_share is None:
            if self.num_steps is None:
                return Times(1.0 - uniform(words)[:, None])
            return Times(grid_times(self.num_steps, words), below(words, self.num_steps))
        two_draws, decision = words.split([self.words - self.batch_size, self.batch_size])
        if self.num_steps is None:
            first, second = uniform(two_draws)[:, None].chunk(2)
            b, t = torch.minimum(first, second), torch.maximum(first, second)
        else:
            first, second = below(two_draws, self.num_steps)[:, None].chunk(2)
            b, t = torch.minimum(first, second) / self.num_steps, (torch.maximum(first, second) + 1) / self.num_steps
        return Times(t, start=torch.where(uniform(decision)[:, None] < self.instant_share, t, b))


def path_draws(
    batch_size: int, action_dim: int, sigma: float, num_steps: int | None, instant_share: float | None = None
) -> dict[str, Draw]:
    """What a loss along the path draws: "flow", the noise e ``(batch, action_dim)``, and "time", the times t."""
    return {
        "flow": Normal((batch_size, action_dim), sigma),
        "time": TimeDraw(batch_size, num_steps, instant_share),
    }


def end_time(e: Tensor, two_times: bool) -> Times:
    """t = 1 (and b = 0) for every sample: the time at which a one-step policy calls its network."""
    return Times(e.new_ones(1, 1), start=e.new_zeros(1, 1) if two_times else None)


def interpolate(a: Tensor, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The path from data to noise: a_t = (1 - t) a + t e, and its velocity v = e - a."""
    v = e - a
    return a + t * v, v


def path_derivative(g: Network, observations: Tensor, a_t: Tensor, times: Times, v: Tensor) -> tuple[Tensor, Tensor]:
    """g and dg/dt = v . grad_{a_t} g + d_t g by one forward-mode JVP with tangents (v, 1); b is held fixed.

    This works for any network. A :class:`mfrl.networks.dual.DualNetwork` gives the same in its method ``jvp``, which
    keeps no graph for the derivative and shares its forward pass with g.

    Returns:
        g with its gradient graph, and dg/dt, both ``(batch, action_dim)``.
    """

    def along_the_path(a_t: Tensor, rows: Tensor) -> Tensor:
        return g(observations, a_t, Times(rows, times.index, times.start))

    value, derivative = torch.func.jvp(along_the_path, (a_t, times.rows), (v, torch.ones_like(times.rows)))
    return value, derivative.detach()


def flow_target(
    reformulation: Reformulation,
    g: Tensor,
    dgdt: Tensor,
    v: Tensor,
    a_t: Tensor,
    e: Tensor,
    times: Times,
    clip: float,
) -> Tensor:
    """g_tgt of the MeanFlow identity ``(batch, action_dim)``, clipped to [-clip, clip], without gradient."""
    with torch.no_grad():
        return reformulation.target(g.detach(), dgdt, v, a_t, e, times.t, times.b).clamp(-clip, clip)


def adaptive_loss(g: Tensor, g_tgt: Tensor, gamma: float, c: float) -> Tensor:
    """Adaptively weighted regression: the mean of stop(w) err, err = mean_d (g - g_tgt)^2, w = (err + c)^(gamma - 1).

    gamma = 1 is the plain squared error; a smaller gamma gives samples with a large error less weight.
    """
    err = (g - g_tgt).square().mean(dim=-1)
    w = (err.detach() + c).pow(gamma - 1.0)
    return (w * err).mean()


def meanflow_loss(
    actor: Actor,
    reformulation: Reformulation,
    observations: Tensor,
    a: Tensor,
    e: Tensor,
    times: Times,
    settings: MeanFlowSettings,
) -> tuple[Tensor, Tensor]:
    """L_flow: regression of g onto the MeanFlow identity's target, with one JVP along the path from a to e.

    Args:
        observations: what the actor takes as observations.
        a, e: ``(batch, action_dim)`` actions of the data, and noise.

    Returns:
        the loss, and the unweighted squared error without gradient.
    """
    a_t, v = interpolate(a, e, times.t)
    f, dfdt = actor.jvp(observations, a_t, times, v)
    g, dgdt = reformulation.pinned(f, dfdt, a_t, v, times.t)
    g_tgt = flow_target(reformulation, g, dgdt, v, a_t, e, times, settings.target_clip)
    loss = adaptive_loss(g, g_tgt, settings.gamma_adaptive, settings.c_adaptive)
    return loss, (g.detach() - g_tgt).square().mean()


def bound_loss(a: Tensor) -> Tensor:
    """How far actions lie outside [-1, 1]: mean relu(a - 1) + mean relu(-1 - a)."""
    return torch.relu(a.abs() - 1.0).mean()
