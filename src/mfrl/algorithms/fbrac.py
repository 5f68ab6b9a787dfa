r"""Flow behaviour-regularised actor-critic: Q-learning through the steps of a flow.

    L = L_critic + alpha L_flow + L_q                                   one stage, one flow

    L_flow    E || v(s, a_t, t) - (e - a) ||^2                          flow matching (arXiv 2210.02747)
    L_q       - E mean_i Q_i(s, clip(euler(v, s, e)))                   differentiated through all Euler steps
    L_critic  E (Q_i(s, a) - y)^2,  y = r + discount mask agg_i Q_target,i(s', clip(euler(v, s', e')))

What FQL (arXiv 2502.02538) avoids by distilling: an update costs flow_steps passes of the flow forward and back, in the
policy loss, and as many forward in the target. Two forms are published: this one in the code of value flows
(github.com/chongyi-zheng/value-flows, agents/fbrac.py), and L_flow - Q / alpha in that of qam
(github.com/ColinQiyangLi/qam, agents/fbrac.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import FlowPolicy, euler, flow_matching_loss
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import action_scalars
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import TimeDraw
from mfrl.q_learning import TD, bellman_target, q_loss, td_loss
from mfrl.randomness import Draw, Normal
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class FBRACSettings(TD):
    """Settings of FBRAC; the defaults are those of value flows' code (agents/fbrac.py), but for alpha.

    Attributes:
        alpha: weight of the flow loss; that of value flows' commands, where the code has 10.
        flow_steps: number of Euler steps of an action.
        num_candidates: number of actions from which the policy takes the best by the critic.
        sigma: standard deviation of the noise.
        actor_lr: learning rate of the flow.
        critic_lr: learning rate of the critic.
    """

    alpha: float = 100.0
    flow_steps: int = 10
    num_candidates: int = 1
    sigma: float = 1.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


class FBRAC(Algorithm):
    """Flow behaviour-regularised actor-critic.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the velocity field v(s, a_t, t); it takes (observation_dim, action_dim).
        critic: constructor that takes (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`FBRACSettings`.
    """

    Settings = FBRACSettings
    settings: FBRACSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        critic: Callable[[int, int], nn.Module],
        updates: int,
        **others: Any,
    ) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.actor = self.network(actor)
        self.critic = self.network(critic)
        self.target_critic = frozen_copy(self.critic)
        self.alpha = FixedAlpha(c.alpha, updates)
        self.value_range = c.value_range(spec)
        self.groups = Group("actor", c.actor_lr, updates), Group("critic", c.critic_lr, updates)
        self.averages = (Average("target_critic", "critic", c.tau, before=True),)

    def policy(self) -> FlowPolicy:
        c = self.settings
        choice = {"critic": self.target_critic, "num_candidates": c.num_candidates}
        return FlowPolicy(self.actor, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps, **choice)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        shape, sigma = (batch_size, self.spec.action_dim), self.settings.sigma
        return {
            "flow": Normal(shape, sigma),  # end of the path
            "time": TimeDraw(batch_size, num_steps=None),  # where on the path
            "policy": Normal(shape, sigma),  # for the policy loss
            "target": Normal(shape, sigma),  # for the Bellman target
        }

    def critic_loss(
        self, batch: Batch, e: Tensor, s: Mapping[str, Tensor], next_s: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic: regression of Q onto y = r + discount * mask * Q_target(s', a'), a' the flow's action."""
        with torch.no_grad():
            next_actions = euler(self.actor, next_s["actor"], e, self.settings.flow_steps).clamp(-1.0, 1.0)
        y = bellman_target(
            self.target_critic, next_s["target_critic"], next_actions[None], batch, self.settings, self.value_range
        )
        return td_loss(self.critic, s["critic"], batch.actions, y)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        c, alpha = self.settings, self.alpha.alpha
        s = self.encode(batch.observations, "actor", "critic")
        with torch.no_grad():
            next_s = self.encode(batch.next_observations, "actor", "target_critic")
        critic_loss, critic_scalars = self.critic_loss(batch, drawn["target"], s, next_s)
        flow_loss = flow_matching_loss(self.actor, s["actor"], batch.actions, drawn["flow"], drawn["time"])
        a = euler(self.actor, s["actor"], drawn["policy"], c.flow_steps)
        loss, q = q_loss(self.critic, s["critic"], a, c.normalize_q)
        scalars = critic_scalars | {
            "flow_loss": flow_loss,
            "q_loss": loss,
            "policy_q": q,
            **action_scalars(a, batch.actions),
            "alpha": alpha,
        }
        return critic_loss + alpha * flow_loss + loss, scalars
