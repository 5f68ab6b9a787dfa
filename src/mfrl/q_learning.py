"""Q-learning, whatever the policy is: the Bellman target, the TD loss, and the critic's pull on the actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfrl.settings import Settings

#: What becomes of the ensemble's values ``(ensemble, ...)``, e.g. in the Bellman target.
Q_AGGREGATION: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda q: q.mean(0), "min": lambda q: q.amin(0)}
#: Of the gradients that :func:`unit_pull` scales, none counts as longer than this many times the median.
LONGEST_PULL = 10.0


@dataclass(frozen=True, kw_only=True)
class Values(Settings):
    """Of whatever learns values.

    Attributes:
        discount, tau: of the Bellman target and of the target critic's average.
    """

    discount: float = 0.99
    tau: float = 0.005


@dataclass(frozen=True, kw_only=True)
class TD(Values):
    """Of Q-learning.

    Attributes:
        q_aggregation: of the ensemble in the Bellman target: "mean" or "min".
        clip_targets: keep Bellman targets within what the data's rewards can add up to.
        normalize_q: makes alpha independent of the reward scale: "value" divides L_q by mean |Q|, "gradient" gives
            the critic's pull on the actions a mean length of 1, "none" leaves it.
    """

    q_aggregation: str = "mean"
    clip_targets: bool = False
    normalize_q: str = "none"


def bellman_target(
    target_critic: Critic,
    next_observations: Tensor,
    candidates: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    q_aggregation: str,
    value_range: tuple[float, float] | None,
) -> Tensor:
    """y = r + discounts * agg_i Q_target,i(s', a'), a' the best of the candidates: ``(batch,)``, without gradient.

    Args:
        next_observations: as the target critic takes them.
        candidates: ``(candidate, batch, action_dim)`` in [-1, 1].
        rewards, discounts: ``(batch,)``; discounts are 0 where the task is complete.
        value_range: keeps y within it; None does not.
    """
    with torch.no_grad():
        _, next_q = best_of_n(target_critic, next_observations, candidates)
        y = rewards + discounts * Q_AGGREGATION[q_aggregation](next_q)
        return y if value_range is None else y.clamp(*value_range)


def td_loss(critic: Critic, observations: Tensor, actions: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared distance of every Q_i(s, a) from the Bellman target y ``(batch,)``, and the scalars to log."""
    q = critic(observations, actions)
    loss = (q - y).square().mean()
    return loss, {"critic_loss": loss, "q": q.mean(), "q_min": q.amin(), "q_max": q.amax(), "target": y.mean()}


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """mean |expectile - 1(difference < 0)| difference^2 (arXiv 2110.06169, Eq. 5).

    Minimised over v, with difference = q - v, where v is the expectile of q: 0.5 is the mean, near 1 the maximum.
    """
    weight = (expectile - (difference < 0.0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean()


def q_loss(
    critic: Critic, observations: Tensor, a: Tensor, normalize: str = "none", q_aggregation: str = "mean"
) -> tuple[Tensor, Tensor]:
    """-mean Q(s, clip(a)), Q the ensemble's mean or minimum: the critic is differentiated, not trained.

    Its gradient with respect to a, the critic's pull, is worked out first and then handed on to what made a.

    Args:
        observations: as the critic takes them; without gradient.
        a: ``(batch, action_dim)`` before clipping; what is clipped is not pulled.
        normalize: "value" divides the loss by mean |Q|; "gradient" gives the critic's pull on the actions a mean length
            of 1, see :func:`unit_pull`; "none" leaves it.
        q_aggregation: of the ensemble.

    Returns:
        the loss and the mean Q.
    """

    def negative_q(a: Tensor) -> tuple[Tensor, Tensor]:
        q = Q_AGGREGATION[q_aggregation](critic(observations.detach(), a.clamp(-1.0, 1.0)))
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
    """The gradients of a batch of actions ``(batch, action_dim)``, scaled to mean length 1 / batch.

    Of -mean Q(s, a): the pull dQ/da of the critic on the actions then has mean length 1, whatever the scale of the
    rewards. Before that, no gradient counts as longer than ``LONGEST_PULL`` times the median of those that are not
    zero, so that one action at a cliff of the critic does not take the pull of its whole batch.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    length = gradient.norm(dim=-1, keepdim=True)
    # Of what is clipped, nothing is pulled: zeros come first, and the median is that of what follows.
    zeros = (length == 0).sum()
    middle = (zeros + (len(length) - zeros - 1) // 2).clamp_min(0)
    median = length.flatten().sort().values.gather(0, middle[None])
    kept = length.minimum(LONGEST_PULL * median)
    return gradient * (kept / length.clamp_min(tiny)) / kept.sum().clamp_min(tiny)


Critic = Callable[[Tensor, Tensor], Tensor]


def best_of_n(
    critic: Critic,
    observations: Tensor,
    candidates: Tensor,
    ceiling: float = math.inf,
    q_aggregation: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The candidate with the largest Q, the ensemble's mean or minimum, for each observation.

    Args:
        critic: (observations, actions) -> ``(ensemble, candidate, batch)``.
        candidates: ``(candidate, batch, action_dim)``.
        ceiling: no candidate counts for more. Of several that reach it the first is taken, which is to draw one.
        q_aggregation: of the ensemble.

    Returns:
        actions ``(batch, action_dim)`` and the ensemble's values of every candidate's best: ``(ensemble, batch)``,
        read off the values just computed.
    """
    q = critic(observations, candidates)
    best = Q_AGGREGATION[q_aggregation](q).clamp(max=ceiling).argmax(0)
    batch = torch.arange(candidates.shape[1], device=candidates.device)
    return candidates[best, batch], q[:, best, batch]
