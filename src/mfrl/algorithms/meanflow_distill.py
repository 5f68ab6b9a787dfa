r"""MeanFlow behaviour, distilled: the road with two networks that MeanFlowQL's residual network avoids.

    L = L_critic + L_flow + alpha L_distillation + L_q                                  one stage

    L_flow          the MeanFlow loss of g (arXiv 2505.13447), in whichever reformulation
    L_distillation  E || mu(s, e) - clip(a_g(s, e)) ||^2      a_g the one-step action of g, fixed; same e
    L_q             - E mean_i Q_i(s, clip(mu(s, e)))         Q fixed, same e
    L_critic        E (Q_i(s, a) - y)^2,  y = r + discount mask agg_i Q_target,i(s', clip(mu(s', e')))

FQL (arXiv 2502.02538) with a MeanFlow in the place of its flow: what is distilled costs one forward pass and no Euler
steps, but the policy that Q-learning moves is still another network than the one that knows the data. As in FQL's
code (agents/fql.py), gradients are not clipped, learning rates are constant, and the target critic averages the critic
from before the update's step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import StudentPolicy, student_action, student_loss, student_td_loss
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import one_step
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import MeanFlowSettings, meanflow_loss, path_draws
from mfrl.q_learning import TD, q_loss
from mfrl.randomness import Draw, Normal
from mfrl.reformulation import Reformulation
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class MeanFlowDistillSettings(MeanFlowSettings, TD):
    """Settings of the flow loss, as in MeanFlowQL, and of TD.

    Attributes:
        alpha: weight of the distillation loss.
        actor_lr: learning rate of the MeanFlow and of the policy.
        critic_lr: learning rate of the critic.
    """

    alpha: float = 10.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


class MeanFlowDistill(Algorithm):
    """A MeanFlow of the data and a one-step policy distilled from it under Q.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the MeanFlow and of the one-step policy; it takes (observation_dim, action_dim), and
            two_times=True for the MeanFlow of a reformulation with a second time. The policy's time is always 1.
        critic: constructor that takes (observation_dim, action_dim).
        reformulation: the meaning of the MeanFlow's output.
        updates: number of updates.
        others: seed and encoder of :class:`Algorithm`, and the fields of :class:`MeanFlowDistillSettings`.
    """

    Settings = MeanFlowDistillSettings
    settings: MeanFlowDistillSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[..., nn.Module],
        critic: Callable[[int, int], nn.Module],
        reformulation: Reformulation,
        updates: int,
        **others: Any,
    ) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.reformulation = reformulation
        self.flow = self.network(actor, **({"two_times": True} if reformulation.two_times else {}))
        self.actor = self.network(actor)
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

    def policy(self) -> StudentPolicy:
        sigma = self.settings.sigma
        return StudentPolicy(self.actor, self.normalizer, self.spec.action_dim, sigma, self.target_critic)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c, shape = self.settings, (batch_size, self.spec.action_dim)
        path = path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps, self.reformulation.instant_share)
        return path | {
            "policy": Normal(shape, c.sigma),  # for both terms of the policy loss
            "target": Normal(shape, c.sigma),  # for the Bellman target
        }

    def policy_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha L_distillation + L_q, both with the same noise. They train neither the MeanFlow nor the critic."""
        with torch.no_grad():
            target = one_step(self.flow, self.reformulation, s["flow"], e).clamp(-1.0, 1.0)
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
        flow_loss, flow_error = meanflow_loss(
            self.flow, self.reformulation, s["flow"], batch.actions, drawn["flow"], drawn["time"], self.settings
        )
        policy_loss, policy_scalars = self.policy_loss(batch, drawn["policy"], s)
        flow_scalars = {"flow_loss": flow_loss, "flow_error": flow_error}
        scalars = critic_scalars | flow_scalars | policy_scalars | {"alpha": self.alpha.alpha}
        return critic_loss + flow_loss + policy_loss, scalars
