r"""Flow Q-learning (arXiv 2502.02538): Q-learning for a one-step policy that stays near a flow of the data.

    L = L_critic + L_flow + alpha L_distillation + L_q                                  one stage

    L_flow          E || v(s, a_t, t) - (e - a) ||^2               v by flow matching
    L_distillation  E || mu(s, e) - clip(euler(v, s, e)) ||^2      v fixed, same e; mu before clipping
    L_q             - E mean_i Q_i(s, clip(mu(s, e)))              Q fixed, same e
    L_critic        E (Q_i(s, a) - y)^2,  y = r + discount mask agg_i Q_target,i(s', clip(mu(s', e')))

Each network learns from its own terms alone: v from L_flow, mu from L_distillation and L_q, Q from L_critic. Here t = 1
is noise; FQL's paper and code count time the other way. As in FQL's code (agents/fql.py), gradients are not clipped,
learning rates are constant, and the target critic averages the critic from before the update's step. The code has one
Adam for all networks, which equals one Adam for each.

One thing differs from the code: its mu takes no time. Here mu is built as v is and t is always 1, so that the first
layer's weights of t are a second bias. This bias starts at Xavier uniform values instead of zero. Adam moves both
biases alike, so that their sum moves at twice the rate. The layer's Xavier range counts one more input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import (
    StudentPolicy,
    euler,
    flow_matching_loss,
    student_action,
    student_loss,
    student_td_loss,
)
from mfrl.algorithms.groups import Average, Group
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import TimeDraw
from mfrl.q_learning import TD, q_loss
from mfrl.randomness import Draw, Normal
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class FQLSettings(TD):
    """Settings of FQL; the defaults are those of its code (agents/fql.py).

    Attributes:
        alpha: weight of the distillation loss.
        flow_steps: number of Euler steps of the distilled flow.
        sigma: standard deviation of the noise.
        actor_lr: learning rate of the flow and of the policy.
        critic_lr: learning rate of the critic.
        actor_average: rate of the average of the policy's weights that acts, see :class:`MeanFlowQLSettings`; None,
            the published setting, acts with the weights themselves.
    """

    alpha: float = 10.0
    flow_steps: int = 10
    sigma: float = 1.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    actor_average: float | None = None


class FQL(Algorithm):
    """Flow Q-learning.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the flow and of the one-step policy; it takes (observation_dim, action_dim). The policy's
            time is always 1.
        critic: constructor that takes (observation_dim, action_dim).
        updates: number of updates.
        seed, encoder, variant: see :class:`Algorithm`.
        settings: fields of :class:`FQLSettings`. The code's normalize_q_loss is normalize_q=value here; the code has
            no "gradient".
    """

    Settings = FQLSettings
    settings: FQLSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        critic: Callable[[int, int], nn.Module],
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        variant: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(spec, updates, seed, encoder, variant, **settings)
        c = self.settings
        self.flow = self.network(actor)
        self.actor = self.network(actor)
        self.averaged_actor = None if c.actor_average is None else frozen_copy(self.actor)
        self.critic = self.network(critic)
        self.target_critic = frozen_copy(self.critic)
        self.alpha = FixedAlpha(c.alpha, updates)
        self.value_range = c.value_range(spec)

        self.groups = (
            Group("flow", c.actor_lr, updates),
            Group("actor", c.actor_lr, updates),
            Group("critic", c.critic_lr, updates),
        )
        self.averages = (Average("target_critic", "critic", c.tau, before=True),)
        if c.actor_average is not None:
            self.averages += (Average("averaged_actor", "actor", c.actor_average, from_start=True),)

    def policy(self) -> StudentPolicy:
        """The one-step policy; it takes a single candidate."""
        actor = self.averaged_actor or self.actor
        return StudentPolicy(actor, self.normalizer, self.spec.action_dim, self.settings.sigma, self.target_critic)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        shape, sigma = (batch_size, self.spec.action_dim), self.settings.sigma
        return {
            "flow": Normal(shape, sigma),  # e, the end of the flow loss's path
            "time": TimeDraw(batch_size, num_steps=None),  # t on this path
            "policy": Normal(shape, sigma),  # e of both terms of the policy loss
            "target": Normal(shape, sigma),  # e' of the Bellman target
        }

    def policy_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha L_distillation + L_q, both with the same noise. They train neither the flow nor the critic."""
        with torch.no_grad():
            target = euler(self.flow, s["flow"], e, self.settings.flow_steps).clamp(-1.0, 1.0)
        mu = student_action(self.actor, s["actor"], e)
        loss, q = q_loss(self.critic, s["critic"], mu, self.settings.normalize_q)
        return student_loss(mu, target, batch.actions, self.alpha.alpha, loss, q)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        s = self.encode(batch.observations, "flow", "actor", "critic")
        with torch.no_grad():
            next_s = self.encode(batch.next_observations, "actor", "target_critic")
        critics = self.critic, self.target_critic
        critic_loss, critic_scalars = student_td_loss(
            self.actor, critics, batch, drawn["target"], s, next_s, self.settings, self.value_range
        )
        flow_loss = flow_matching_loss(self.flow, s["flow"], batch.actions, drawn["flow"], drawn["time"])
        policy_loss, policy_scalars = self.policy_loss(batch, drawn["policy"], s)
        scalars = critic_scalars | {"flow_loss": flow_loss} | policy_scalars | {"alpha": self.alpha.alpha}
        return critic_loss + flow_loss + policy_loss, scalars
