r"""MeanFlowQL: one-step generative policies with Q-learning (arXiv 2511.13035).

One network g(s, a_t, t) is both the velocity field of a flow from data to noise and the map from noise to an action. A
single stage trains it together with the Q ensemble:

    L = L_critic + L_q + w_bound L_bound + alpha L_flow
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.groups import ActorAdam, Average, Group
from mfrl.algorithms.policy import OneStepPolicy, action_scalars, one_step
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import MeanFlowSettings, TimeDraw, bound_loss, meanflow_loss
from mfrl.q_learning import TD, bellman_target, q_loss, td_loss
from mfrl.randomness import Draw, Normal
from mfrl.reformulation import Reformulation
from mfrl.schedules import CosineAlpha, DynamicAlpha, FixedAlpha

ALPHA_SCHEDULE = {"fixed": FixedAlpha, "cosine": CosineAlpha, "dynamic": DynamicAlpha}


@dataclass(frozen=True, kw_only=True)
class MeanFlowQLSettings(MeanFlowSettings, TD, ActorAdam):
    """Settings of MeanFlowQL; the defaults are published (arXiv 2511.13035, Table 6).

    Attributes:
        alpha: weight of the flow loss.
        alpha_schedule: how alpha changes: "fixed", "cosine" or "dynamic".
        num_candidates: number of actions from which the policy takes the best by the critic (best of N).
        target_candidates: the same number in the Bellman target; None takes ``num_candidates``.
        clip_candidates: when acting, clip the candidates' values to the largest discounted sum of the data's rewards.
            Where all candidates exceed it, the critic does not choose and the policy acts as its actor does.
        bound_weight: weight of the bound loss.
        critic_lr: learning rate of the critic.
        actor_average: rate of an average of the actor's weights, over about 1 / actor_average updates, that acts.
            None, the published setting, acts with the weights themselves. Training is the same in both cases.
    """

    discount: float = 0.995
    alpha: float = 10.0
    alpha_schedule: str = "dynamic"
    num_candidates: int = 5
    target_candidates: int | None = None
    clip_candidates: bool = False
    bound_weight: float = 1.0
    critic_lr: float = 1e-4
    actor_average: float | None = None


class MeanFlowQL(Algorithm):
    """MeanFlowQL.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim), and two_times=True for a reformulation with a
            second time.
        critic: constructor that takes (observation_dim, action_dim).
        reformulation: the meaning of the actor's output.
        updates: number of updates, for the schedules.
        seed, encoder: see :class:`Algorithm`.
        settings: fields of :class:`MeanFlowQLSettings`.
    """

    Settings = MeanFlowQLSettings
    settings: MeanFlowQLSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[..., nn.Module],
        critic: Callable[[int, int], nn.Module],
        reformulation: Reformulation,
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(spec, updates, seed, encoder, **settings)
        c = self.settings
        self.reformulation = reformulation
        self.actor = self.network(actor, **({"two_times": True} if reformulation.two_times else {}))
        self.averaged_actor = None if c.actor_average is None else frozen_copy(self.actor)
        self.critic = self.network(critic)
        self.target_critic = frozen_copy(self.critic)
        self.alpha = ALPHA_SCHEDULE[c.alpha_schedule](c.alpha, updates)
        self.value_range = c.value_range(spec)

        self.groups = (
            c.group("actor", updates),
            Group("critic", c.critic_lr, updates, c.max_grad_norm),
        )
        self.averages = (Average("target_critic", "critic", c.tau),)
        if c.actor_average is not None:
            self.averages += (Average("averaged_actor", "actor", c.actor_average, from_start=True),)

    def policy(self) -> OneStepPolicy:
        c = self.settings
        return OneStepPolicy(
            self.averaged_actor or self.actor,
            self.target_critic,
            self.reformulation,
            self.normalizer,
            self.spec.action_dim,
            c.sigma,
            c.num_candidates,
            self.spec.value_range(c.discount)[1] if c.clip_candidates else math.inf,
        )

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c, shape = self.settings, (batch_size, self.spec.action_dim)
        return {
            "flow": Normal(shape, c.sigma),  # e, the end of the flow loss's path
            "time": TimeDraw(batch_size, c.time_steps, self.reformulation.instant_share),  # t (and b) on this path
            "policy": Normal(shape, c.sigma),  # e of the policy loss
            "target": Normal((c.target_candidates or c.num_candidates, *shape), c.sigma),  # e' of the Bellman target
        }

    def critic_loss(
        self, batch: Batch, e: Tensor, s: Mapping[str, Tensor], next_s: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic: regression of Q onto y = r + discount * mask * Q_target(s', a'), a' the best of N actions."""
        with torch.no_grad():
            candidates = one_step(self.actor, self.reformulation, next_s["actor"], e).clamp(-1.0, 1.0)
        y = bellman_target(
            self.target_critic, next_s["target_critic"], candidates, batch, self.settings, self.value_range
        )
        return td_loss(self.critic, s["critic"], batch.actions, y)

    def policy_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_q + w_bound L_bound at the one-step action. L_q does not train the critic."""
        a_hat = one_step(self.actor, self.reformulation, s["actor"], e)
        loss, q = q_loss(self.critic, s["critic"], a_hat, self.settings.normalize_q)
        bound = bound_loss(a_hat)
        return loss + self.settings.bound_weight * bound, {
            "q_loss": loss,
            "policy_q": q,
            "bound_loss": bound,
            **action_scalars(a_hat, batch.actions),
        }

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        s = self.encode(batch.observations, "actor", "critic")
        with torch.no_grad():
            next_s = self.encode(batch.next_observations, "actor", "target_critic")
        critic_loss, critic_scalars = self.critic_loss(batch, drawn["target"], s, next_s)
        flow_loss, flow_error = meanflow_loss(
            self.actor, self.reformulation, s["actor"], batch.actions, drawn["flow"], drawn["time"], self.settings
        )
        policy_loss, policy_scalars = self.policy_loss(batch, drawn["policy"], s)
        alpha = self.alpha.alpha
        flow_scalars = {"flow_loss": flow_loss, "flow_error": flow_error}
        scalars = critic_scalars | flow_scalars | policy_scalars | {"alpha": alpha}
        return critic_loss + policy_loss + alpha * flow_loss, scalars

    def after(self, k: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        changed = self.alpha.after(k, metrics["flow_loss"])
        return {f"alpha.{name}": value for name, value in changed.items()}
