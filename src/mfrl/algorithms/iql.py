r"""Implicit Q-learning (arXiv 2110.06169): values of the data's own actions alone, and a policy drawn from them.

    L = L_V + L_Q + L_pi

    L_V   E L_tau(Q(s, a) - V(s)),   Q = min_i Q_target,i,   L_tau(x) = |tau - 1(x < 0)| x^2
    L_Q   E mean_i (Q_i(s, a) - y)^2,   y = r + discount mask V(s')
    L_pi  awr      - E min(exp(alpha A), 100) log pi(a | s),   A = min_i Q_i(s, a) - V(s)
          ddpgbc   - E Q(s, clip(mu(s))) / mean |Q| - alpha E log pi(a | s),   Q = min_i Q_i

pi is a Gaussian of deviation 1 around mu(s), so that log pi(a | s) = - |a - mu(s)|^2 / 2 + const, and acts by mu. No
action but the data's is ever valued in L_V and L_Q. As in FQL's code (agents/iql.py), no gradient is clipped, no rate
changes, and the target critic's average takes in the critic as it was before the update's step; there L_Q is a sum over
the ensemble, which for Adam is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import MeanPolicy, action_scalars
from mfrl.data.batch import Batch, DataSpec
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import Values, expectile_loss, q_loss, td_loss
from mfrl.schedules import FixedAlpha

LARGEST_WEIGHT = 100.0  #: of a transition in awr


@dataclass(frozen=True, kw_only=True)
class ImplicitValues(Values):
    """Settings of values that are learned from the data's own actions alone.

    Attributes:
        expectile: tau; 0.5 is the mean over the data's actions, near 1 their best.
    """

    expectile: float = 0.9


@dataclass(frozen=True, kw_only=True)
class IQLSettings(ImplicitValues):
    """Settings of IQL; the defaults are those of its form in FQL's code (agents/iql.py).

    Attributes:
        extraction: how the policy is drawn from the values, "awr" or "ddpgbc".
        alpha: inverse temperature of awr; weight of the behaviour cloning in ddpgbc.
        actor_lr: learning rate of the policy.
        critic_lr: learning rate of Q and V.
    """

    extraction: str = "awr"
    alpha: float = 10.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


def implicit_value_loss(
    value: EncodedNetwork,
    critic: EncodedNetwork,
    target_critic: EncodedNetwork,
    batch: Batch,
    s: Mapping[str, Tensor],
    expectile: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_V + L_Q, of which each trains its own network, and the scalars to log.

    Args:
        s: the batch's observations as "value" and "critic" take them.
    """
    with torch.no_grad():
        q = target_critic(target_critic.encode(batch.observations), batch.actions).amin(0)
        y = batch.rewards + batch.discounts * value(value.encode(batch.next_observations))
    v = value(s["value"])
    value_loss = expectile_loss(q - v, expectile)
    critic_loss, scalars = td_loss(critic, s["critic"], batch.actions, y)
    return value_loss + critic_loss, scalars | {"value_loss": value_loss, "v": v.mean()}


def log_probability(mu: Tensor, a: Tensor) -> Tensor:
    """log N(a; mu, 1), ``(batch,)`` of ``(batch, action_dim)``."""
    return -0.5 * ((a - mu).square() + math.log(2.0 * math.pi)).sum(-1)


class IQL(Algorithm):
    """Implicit Q-learning.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim); the network gives an action for a state.
        critic, value: constructors of the Q ensemble and of V(s); they take (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`IQLSettings`.
    """

    Settings = IQLSettings
    settings: IQLSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        critic: Callable[[int, int], nn.Module],
        value: Callable[[int, int], nn.Module],
        updates: int,
        **others: Any,
    ) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.actor = self.network(actor)
        self.critic = self.network(critic)
        self.value = self.network(value)
        self.target_critic = frozen_copy(self.critic)
        self.alpha = FixedAlpha(c.alpha, updates)
        self.groups = (
            Group("value", c.critic_lr, updates),
            Group("critic", c.critic_lr, updates),
            Group("actor", c.actor_lr, updates),
        )
        self.averages = (Average("target_critic", "critic", c.tau, before=True),)

    def policy(self) -> MeanPolicy:
        return MeanPolicy(self.actor, self.normalizer, self.spec.action_dim, self.target_critic)

    def explorer(self) -> MeanPolicy:
        """The Gaussian of deviation 1 that L_pi fits, as in FQL's code."""
        return MeanPolicy(self.actor, self.normalizer, self.spec.action_dim, std=1.0)

    def policy_loss(self, batch: Batch, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_pi. It trains neither Q nor V."""
        mu, alpha = self.actor(s["actor"]), self.alpha.alpha
        log_pi = log_probability(mu, batch.actions)
        scalars = {
            "log_probability": log_pi.mean(),
            **action_scalars(mu, batch.actions),
            "alpha": alpha,
        }
        if self.settings.extraction == "ddpgbc":
            loss, q = q_loss(self.critic, s["critic"], mu, "value", "min")
            return loss - alpha * log_pi.mean(), scalars | {"q_loss": loss, "policy_q": q}
        with torch.no_grad():
            advantage = self.critic(s["critic"], batch.actions).amin(0) - self.value(s["value"])
            weight = (alpha * advantage).exp().clamp(max=LARGEST_WEIGHT)
        loss = -(weight * log_pi).mean()
        return loss, scalars | {"awr_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        s = self.encode(batch.observations, "value", "critic", "actor")
        networks = self.value, self.critic, self.target_critic
        value_loss, value_scalars = implicit_value_loss(*networks, batch, s, self.settings.expectile)
        policy_loss, policy_scalars = self.policy_loss(batch, s)
        return value_loss + policy_loss, value_scalars | policy_scalars
