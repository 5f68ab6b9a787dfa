"""Q-learning, whatever the policy is: the Bellman target, the TD loss, and the critic's pull on the actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mfrl.settings import Settings

if TYPE_CHECKING:
    from mfrl.data.batch import Batch, DataSpec

#: How the ensemble's values ``(ensemble, ...)`` are aggregated, e.g. in the Bellman target.
Q_AGGREGATION: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda q: q.mean(0), "min": lambda q: q.amin(0)}

#: :func:`unit_pull` shortens gradients that are longer than this many times the median length.
LONGEST_PULL = 10.0


def aggregate(q: Tensor, how: str, rho: float) -> Tensor:
    """The ensemble's values ``(ensemble, ...)`` as one: "mean", "min", or "mean_minus_std", mean - rho std.

    The deviation divides by the size of the ensemble.
    """
    return q.mean(0) - rho * q.std(0, correction=0) if how == "mean_minus_std" else Q_AGGREGATION[how](q)


@dataclass(frozen=True, kw_only=True)
class Values(Settings):
    """Settings of every algorithm that learns values.

    Attributes:
        discount: of the Bellman target.
        tau: rate of the target critic's average.
    """

    discount: float = 0.99
    tau: float = 0.005


@dataclass(frozen=True, kw_only=True)
class TD(Values):
    """Settings of Q-learning.

    Attributes:
        q_aggregation: how the Bellman target aggregates the ensemble: "mean" or "min".
        clip_targets: clips Bellman targets to the range of discounted sums of the data's rewards.
        normalize_q: makes alpha independent of the scale of the rewards. "value" divides L_q by mean |Q|; "gradient"
            scales the gradients dQ/da of a batch to a mean length of 1; "none" does neither.
    """

    q_aggregation: str = "mean"
    clip_targets: bool = False
    normalize_q: str = "none"

    def value_range(self, spec: DataSpec) -> tuple[float, float] | None:
        """What Bellman targets are clipped to: the bounds of what the data's rewards can add up to; None: nothing."""
        return spec.value_range(self.discount) if self.clip_targets else None


def bellman_target(
    target_critic: Critic,
    next_observations: Tensor,
    candidates: Tensor,
    batch: Batch,
    settings: TD,
    value_range: tuple[float, float] | None,
) -> Tensor:
    """y = r + discounts * agg_i Q_target,i(s', a'), a' the best of the candidates: ``(batch,)``, without gradient.

    Args:
        next_observations: what the target critic takes as observations.
        candidates: ``(candidate, batch, action_dim)`` in [-1, 1].
        batch: with rewards and discounts ``(batch,)``; discounts are 0 where the episode terminated.
        settings: how the ensemble's values are aggregated.
        value_range: y is clipped to this range; None clips nothing.
    """
    with torch.no_grad():
        _, next_q = best_of_n(target_critic, next_observations, candidates)
        y = batch.rewards + batch.discounts * Q_AGGREGATION[settings.q_aggregation](next_q)
        return y if value_range is None else y.clamp(*value_range)


def td_loss(critic: Critic, observations: Tensor, actions: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over i and the batch of (Q_i(s, a) - y)^2, y the Bellman target ``(batch,)``; and scalars to log."""
    q = critic(observations, actions)
    loss = (q - y).square().mean()
    return loss, {"critic_loss": loss, "q": q.mean(), "q_min": q.amin(), "q_max": q.amax(), "target": y.mean()}


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """mean |expectile - 1(difference < 0)| difference^2 (arXiv 2110.06169, Eq. 5).

    With difference = q - v, the v that minimises it is the expectile of q: 0.5 gives the mean, a number near 1 almost
    the maximum.
    """
    weight = (expectile - (difference < 0.0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean()


def q_loss(
    critic: Critic,
    observations: Tensor,
    a: Tensor,
    normalize: str = "none",
    q_aggregation: str = "mean",
    rho: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """L_q = -mean Q(s, clip(a)), with Q the ensemble aggregated. The critic's parameters receive no gradient.

    The function first computes the gradient of L_q with respect to a, minus the critic's *pull* dQ/da on the
    actions, and may scale it. The backward pass of the returned loss hands it to the network that made a.

    Args:
        observations: what the critic takes as observations; they receive no gradient.
        a: ``(batch, action_dim)`` before clipping; components outside [-1, 1] have a gradient of zero.
        normalize: "value" divides the loss by mean |Q|; "gradient" scales the gradients with :func:`unit_pull`;
            "none" does neither.
        q_aggregation, rho: see :func:`aggregate`.

    Returns:
        the loss and the mean Q.
    """

    def negative_q(a: Tensor) -> tuple[Tensor, Tensor]:
        q = aggregate(critic(observations.detach(), a.clamp(-1.0, 1.0)), q_aggregation, rho)
        return -q.mean(), q

    with torch.no_grad():
        pull, (loss, q) = torch.func.grad_and_value(negative_q, has_aux=True)(a.detach())
        if normalize == "gradient":
            pull = unit_pull(pull)
        elif normalize == "value":
            size = q.abs().mean().clamp_min(1e-6)
            pull, loss = pull / size, loss / size
        mean = q.mean()
    pulled = (pull * a).sum()
    return loss + (pulled - pulled.detach()), mean


def unit_pull(gradient: Tensor) -> Tensor:
    """Gradients of a batch of actions ``(batch, action_dim)``, scaled to the mean length 1 / batch.

    ``gradient`` belongs to -mean Q(s, a), whose mean divides by the batch size: the result gives dQ/da a mean length
    of 1, whatever the scale of the rewards. First, the function shortens every gradient to at most ``LONGEST_PULL``
    times the median length of the nonzero ones. Otherwise one action where the critic is steep would leave almost
    nothing for the rest of the batch.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    length = gradient.norm(dim=-1, keepdim=True)
    # Actions that are clipped have a gradient of zero. Sorted, zeros come first: the median is that of the rest.
    zeros = (length == 0).sum()
    middle = (zeros + (len(length) - zeros - 1) // 2).clamp_min(0)
    median = length.flatten().sort().values.gather(0, middle[None])
    kept = length.minimum(LONGEST_PULL * median)
    return gradient * (kept / length.clamp_min(tiny)) / kept.sum().clamp_min(tiny)


Critic = Callable[[Tensor, Tensor], Tensor]


def scores(q: Tensor, ceiling: float = math.inf, q_aggregation: str = "mean") -> Tensor:
    """What :func:`best_of_n` chooses by, ``(candidate, batch)``, from the values ``(ensemble, candidate, batch)``."""
    return Q_AGGREGATION[q_aggregation](q).clamp(max=ceiling)


def best_of_n(
    critic: Critic,
    observations: Tensor,
    candidates: Tensor,
    ceiling: float = math.inf,
    q_aggregation: str = "mean",
) -> tuple[Tensor, Tensor]:
    """For each observation, the candidate whose Q, the ensemble's mean or minimum, is largest.

    Args:
        critic: (observations, actions) -> ``(ensemble, candidate, batch)``.
        candidates: ``(candidate, batch, action_dim)``.
        ceiling: values are clipped to this from above. Among candidates that reach it the function takes the first,
            which is a random one, because candidates are drawn independently.
        q_aggregation: "mean" or "min" of the ensemble.

    Returns:
        the chosen actions ``(batch, action_dim)`` and their values ``(ensemble, batch)``.
    """
    q = critic(observations, candidates)
    best = scores(q, ceiling, q_aggregation).argmax(0)
    batch = torch.arange(candidates.shape[1], device=candidates.device)
    return candidates[best, batch], q[:, best, batch]
