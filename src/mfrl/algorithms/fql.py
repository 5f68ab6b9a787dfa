r"""Flow Q-learning (arXiv 2502.02538): Q-learning for a one-step policy that stays near a flow of the data.

    L = L_critic + L_flow + alpha L_distillation + L_q                                  one stage

    L_flow          E || v(s, a_t, t) - (e - a) ||^2               v by flow matching
    L_distillation  E || mu(s, e) - clip(euler(v, s, e)) ||^2      v fixed, same e; mu before clipping
    L_q             - E mean_i Q_i(s, clip(mu(s, e)))              Q fixed, same e
    L_critic        E (Q_i(s, a) - y)^2,  y = r + discount mask agg_i Q_target,i(s', clip(mu(s', e')))

Each network learns from its own terms alone: v from L_flow, mu from L_distillation and L_q, Q from L_critic. Here t = 1
is noise; FQL's paper and code count time the other way. As in its code (agents/fql.py), no gradient is clipped, no
learning rate changes, and the target critic's average takes in the critic as it was before the update's step; there one
Adam holds all networks, which for Adam is the same as one for each.

One thing departs from its code: there mu takes no time. Here it is built as v is, with t held at 1, so that the first
layer's weights of t are a second bias. It starts at Xavier uniform values and not at zero, and as Adam moves both
biases alike, their sum moves at twice the rate; the layer's Xavier range counts one input more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import StudentPolicy, euler, flow_matching_loss, student_action
from mfrl.algorithms.groups import Average, Group
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import Times
from mfrl.q_learning import TD, bellman_target, q_loss, td_loss
from mfrl.randomness import Draw, Normal
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class FQLSettings(TD):
    """Defaults are those of its code (agents/fql.py).

    Attributes:
        alpha: weight of the distillation loss.
        flow_steps: Euler steps of what the policy is distilled from.
        sigma: standard deviation of the noise.
        actor_lr, critic_lr: of Adam; the flow's and the policy's, and the critic's.
        actor_average: act with an average of the policy's weights, see :class:`MeanFlowQLSettings`; None is the
            published setting.
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
        actor: constructor taking (observation_dim, action_dim), of the flow and of the one-step policy; the policy's
            time stays at 1.
        critic: constructor taking (observation_dim, action_dim).
        updates: number of offline updates.
        seed, encoder, variant: see :class:`Algorithm`.
        settings: of :class:`FQLSettings`. Its code's normalize_q_loss is normalize_q=value; "gradient" is ours.
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
        self.value_range = spec.value_range(c.discount) if c.clip_targets else None

        self.groups = (
            Group("flow", c.actor_lr, updates),
            Group("actor", c.actor_lr, updates),
            Group("critic", c.critic_lr, updates),
        )
        self.averages = (Average("target_critic", "critic", c.tau, before=True),)
        if c.actor_average is not None:
            self.averages += (Average("averaged_actor", "actor", c.actor_average, from_start=True),)

    def policy(self) -> StudentPolicy:
        """One action is drawn, and taken."""
        actor = self.averaged_actor or self.actor
        return StudentPolicy(actor, self.normalizer, self.spec.action_dim, self.settings.sigma, self.target_critic)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        shape, sigma = (batch_size, self.spec.action_dim), self.settings.sigma
        return {
            "flow": Normal(shape, sigma),  # end of the path
            "time": Times(batch_size, num_steps=None),  # where on the path
            "policy": Normal(shape, sigma),  # for both terms of the policy loss
            "target": Normal(shape, sigma),  # for the Bellman target
        }

    def critic_loss(
        self, batch: Batch, e: Tensor, s: Mapping[str, Tensor], next_s: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD to y = r + discount * mask * Q_target(s', a'), a' the policy's action."""
        with torch.no_grad():
            next_actions = student_action(self.actor, next_s["actor"], e).clamp(-1.0, 1.0)
        y = bellman_target(
            self.target_critic,
            next_s["target_critic"],
            next_actions[None],
            batch.rewards,
            batch.discounts,
            self.settings.q_aggregation,
            self.value_range,
        )
        return td_loss(self.critic, s["critic"], batch.actions, y)

    def policy_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha L_distillation + L_q at the same noise; flow and critic are used, not trained."""
        with torch.no_grad():
            target = euler(self.flow, s["flow"], e, self.settings.flow_steps).clamp(-1.0, 1.0)
        mu = student_action(self.actor, s["actor"], e)
        distillation_loss = (mu - target).square().mean()
        loss, q = q_loss(self.critic, s["critic"], mu, self.settings.normalize_q)
        return self.alpha.alpha * distillation_loss + loss, {
            "distillation_loss": distillation_loss,
            "q_loss": loss,
            "policy_q": q,
            "out_of_bounds": (mu.detach().abs() > 1.0).float().mean(),
            "distance_to_data": (mu.detach() - batch.actions).square().mean(),
        }

    def loss(
        self, batch: Batch, noise: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The single-stage objective and its parts."""
        s = self.see(batch.observations, "flow", "actor", "critic")
        with torch.no_grad():
            next_s = self.see(batch.next_observations, "actor", "target_critic")
        critic_loss, of_critic = self.critic_loss(batch, noise["target"], s, next_s)
        flow_loss = flow_matching_loss(self.flow, s["flow"], batch.actions, noise["flow"], noise["time"])
        policy_loss, of_policy = self.policy_loss(batch, noise["policy"], s)
        scalars = of_critic | {"flow_loss": flow_loss} | of_policy | {"alpha": self.alpha.alpha}
        return critic_loss + flow_loss + policy_loss, scalars
