"""Q-learning, whatever the policy is: the TD loss, and the critic's pull on the policy's actions. Pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

#: What becomes of the ensemble's values ``(ensemble, ...)`` in the Bellman target.
Q_AGGREGATION = {"mean": lambda q: q.mean(0), "min": lambda q: q.amin(0)}
#: How :func:`q_loss` is made independent of the reward scale.
NORMALIZE_Q = ("none", "value", "gradient")
#: Of the gradients that :class:`UnitPull` scales, none counts as longer than this many times the median.
LONGEST_PULL = 10.0


def td_loss(critic: nn.Module, observations: Tensor, actions: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared distance of every Q_i(s, a) from the Bellman target y ``(batch,)``, and the scalars to log."""
    q = critic(observations, actions)
    loss = (q - y).square().mean()
    return loss, {"critic_loss": loss, "q": q.mean(), "q_min": q.min(), "q_max": q.max(), "target": y.mean()}


def q_loss(critic: nn.Module, observations: Tensor, a: Tensor, normalize: str = "none") -> tuple[Tensor, Tensor]:
    """-mean Q(s, clip(a)), Q the ensemble's mean: the critic is differentiated, not trained.

    Args:
        observations: what the critic takes for them; without gradient.
        a: ``(batch, action_dim)`` before clipping; what is clipped is not pulled.
        normalize: "value" divides the loss by mean |Q|; "gradient" gives the critic's pull on the actions a mean length
            of 1, see :class:`UnitPull`; "none" leaves it.

    Returns:
        the loss and the mean Q.
    """
    if normalize == "gradient":
        a = UnitPull.apply(a)
    frozen = {name: p.detach() for name, p in critic.named_parameters()}
    q = functional_call(critic, frozen, (observations.detach(), a.clamp(-1.0, 1.0))).mean(0)
    loss = -q.mean()
    if normalize == "value":
        loss = loss / q.detach().abs().mean().clamp_min(1e-6)
    return loss, q.mean()


class UnitPull(torch.autograd.Function):
    """Identity; backward, the gradients of a batch of actions are scaled to mean length 1 / batch.

    In front of -mean Q(s, a): the pull dQ/da of the critic on the actions then has mean length 1, whatever the
    scale of the rewards. Before that, no gradient counts as longer than ``LONGEST_PULL`` times the median of those that
    are not zero, so that one action at a cliff of the critic does not take the pull of its whole batch.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        tiny = torch.finfo(gradient.dtype).tiny
        length = gradient.norm(dim=-1, keepdim=True)
        median = length.where(length > 0, torch.nan).nanmedian()  # of what is clipped, nothing is pulled
        kept = length.minimum(LONGEST_PULL * median.nan_to_num(0.0))
        return gradient * (kept / length.clamp_min(tiny)) / kept.sum().clamp_min(tiny)
