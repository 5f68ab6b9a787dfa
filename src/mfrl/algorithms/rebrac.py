r"""ReBRAC (arXiv 2305.09836): TD3 with a penalty on the distance from the data, in the policy and in the target.

    L_critic  E (Q_i(s, a) - y)^2
              y = r + discount mask (min_i Q_target,i(s', a') - alpha_critic | a' - a'_data |^2)
              a' = clip(mu_target(s') + clip(noise e, -c, c))
    L_policy  - E Q(s, mu(s)) / mean |Q| + alpha E | mu(s) - a |^2,   Q = min_i Q_i

mu is a tanh of its network. It takes a step in every `actor_every`-th update, and only then do both targets move,
towards the weights from before the step. Where a trajectory ends without its task being complete, the data have no next
action, and the target no penalty; FQL's code (agents/rebrac.py), whose settings these are, takes the next row's action
there, which belongs to another trajectory. In the updates between mu's steps its one Adam moves mu too, by momentum,
as with a gradient of zero; here mu rests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import MeanPolicy, action_scalars
from mfrl.data.batch import Batch, DataSpec
from mfrl.q_learning import Q_AGGREGATION, TD, q_loss, td_loss
from mfrl.randomness import Draw, Normal
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class ReBRACSettings(TD):
    """Settings of ReBRAC; the defaults are those of its form in FQL's code (agents/rebrac.py), but for alpha.

    Attributes:
        q_aggregation: of the ensemble, "min" or "mean"; it rules both the target and the policy's loss.
        alpha: weight of the penalty in the policy's loss, alpha_actor there; 0 in the code, whose commands set it for
            each task.
        alpha_critic: weight of the penalty in the target.
        actor_every: the policy takes a step in every so many updates.
        actor_noise, actor_noise_clip: noise on the target's action, and its bound.
        actor_lr: learning rate of the policy.
        critic_lr: learning rate of the critic.
    """

    q_aggregation: str = "min"
    normalize_q: str = "value"
    alpha: float = 0.1
    alpha_critic: float = 0.0
    actor_every: int = 2
    actor_noise: float = 0.2
    actor_noise_clip: float = 0.5
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


class ReBRAC(Algorithm):
    """ReBRAC.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim); the network gives an action for a state.
        critic: constructor that takes (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`ReBRACSettings`.
    """

    Settings = ReBRACSettings
    settings: ReBRACSettings
    next_actions = True

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
        self.target_actor, self.target_critic = frozen_copy(self.actor), frozen_copy(self.critic)
        self.alpha = FixedAlpha(c.alpha, updates)
        self.value_range = c.value_range(spec)
        # The first step is the actor_every-th update's.
        now: dict[str, Any] = {"every": c.actor_every, "begin": c.actor_every - 1}
        self.groups = Group("critic", c.critic_lr, updates), Group("actor", c.actor_lr, updates, **now)
        self.averages = (
            Average("target_critic", "critic", c.tau, before=True, **now),
            Average("target_actor", "actor", c.tau, before=True, **now),
        )

    def policy(self) -> MeanPolicy:
        return MeanPolicy(self.actor, self.normalizer, self.spec.action_dim, self.target_critic)

    def explorer(self) -> MeanPolicy:
        """mu with the noise of the target's action, as in FQL's code."""
        c = self.settings
        return MeanPolicy(
            self.actor, self.normalizer, self.spec.action_dim, std=c.actor_noise, limit=c.actor_noise_clip
        )

    def draws(self, batch_size: int) -> dict[str, Draw]:
        return {"target": Normal((batch_size, self.spec.action_dim), self.settings.actor_noise)}

    def critic_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic: regression of Q onto y, the penalised value of the target policy's action."""
        c = self.settings
        assert batch.next_actions is not None, "every batch of an algorithm that asks for next actions holds them"
        with torch.no_grad():
            mu = self.target_actor(self.target_actor.encode(batch.next_observations))
            a = (mu + e.clamp(-c.actor_noise_clip, c.actor_noise_clip)).clamp(-1.0, 1.0)
            q = self.target_critic(self.target_critic.encode(batch.next_observations), a)
            distance = (a - batch.next_actions).square().sum(-1)
            penalty = torch.where(batch.next_actions.isnan().any(-1), 0.0, distance)
            y = batch.rewards + batch.discounts * Q_AGGREGATION[c.q_aggregation](q)
            if self.value_range is not None:  # of rewards, of which the penalty is none
                y = y.clamp(*self.value_range)
            y = y - batch.discounts * c.alpha_critic * penalty
        loss, scalars = td_loss(self.critic, s["critic"], batch.actions, y)
        return loss, scalars | {"next_distance_to_data": penalty.mean()}

    def policy_loss(self, batch: Batch, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_policy. It does not train the critic."""
        c = self.settings
        mu = self.actor(s["actor"])
        bc_loss = (mu - batch.actions).square().sum(-1).mean()
        loss, q = q_loss(self.critic, s["critic"], mu, c.normalize_q, c.q_aggregation)
        return loss + self.alpha.alpha * bc_loss, {
            "q_loss": loss,
            "policy_q": q,
            "bc_loss": bc_loss,
            **action_scalars(mu, batch.actions),
            "alpha": self.alpha.alpha,
        }

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic, in every `actor_every`-th update L_policy as well, and the scalars to log."""
        s = self.encode(batch.observations, *trained)
        loss, scalars = self.critic_loss(batch, drawn["target"], s)
        if "actor" in trained:
            policy_loss, policy_scalars = self.policy_loss(batch, s)
            loss, scalars = loss + policy_loss, scalars | policy_scalars
        return loss, scalars
