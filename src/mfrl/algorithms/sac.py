r"""Soft actor-critic (arXiv 1801.01290, 1812.05905), and with prior data RLPD (arXiv 2302.02948).

    a = tanh(m(s) + sigma(s) e),   e ~ N(0, I),   log pi(a | s) = log N(u; m, sigma^2) - sum_d log(1 - tanh(u_d)^2)

    L_critic  E (Q_i(s, a) - y)^2,   y = r + discount mask (agg_i Q_target,i(s', a') - beta log pi(a' | s'))
    L_policy  E [ beta log pi(a | s) - agg_i Q_i(s, a) ]
    L_beta    beta (H - h |A|),   H = - E log pi(a | s), without gradient in H

beta is the temperature, a learned number; h |A| is the entropy that it aims at. The term of log pi' in y is optional
(``backup_entropy``). Target and policy each aggregate the ensemble by its minimum, its mean, or mean - rho std. The
target critic averages the critic from after the update's step; FQL's code (agents/sac.py) takes that from before.

RLPD is the same with half of every batch from a dataset (``online.balanced``), ten critics with LayerNorm, and mean -
rho std in target and policy, acting by samples in evaluation too: as in the code of qam (agents/rlpd.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.gaussian_bc import negative_log_likelihood
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import Normalizer, Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import Values, aggregate, q_loss, td_loss
from mfrl.randomness import Draw, Normal


@dataclass(frozen=True, kw_only=True)
class SACSettings(Values):
    """Settings of SAC; the defaults are those of its form in FQL's code (agents/sac.py).

    Attributes:
        target_aggregation: of the ensemble in the target: "min", "mean" or "mean_minus_std".
        rho: weight of the ensemble's standard deviation in "mean_minus_std".
        policy_aggregation: of the ensemble in the policy's loss, by the same names.
        backup_entropy: whether the target counts the next action's entropy.
        target_entropy: h, the entropy to aim at for each dimension of the action.
        temperature: beta before the first update.
        deterministic: whether evaluation acts by tanh(m(s)); interaction always samples.
        actor_lr: learning rate of the policy and of beta.
        critic_lr: learning rate of the critic.
    """

    target_aggregation: str = "min"
    rho: float = 0.5
    policy_aggregation: str = "mean"
    backup_entropy: bool = False
    target_entropy: float = -0.5
    temperature: float = 1.0
    deterministic: bool = True
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


class Temperature(nn.Module):
    """beta = exp(log_beta), a positive number that is learned.

    Args:
        beta: the first value.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))

    def forward(self) -> Tensor:
        return self.log_beta.exp()


def squashed(mean: Tensor, log_std: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u) with u = mean + exp(log_std) e, and log pi(a | s) ``(batch,)``."""
    u = mean + log_std.exp() * e
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which stays exact where tanh rounds to 1.
    log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u)).sum(-1)
    return u.tanh(), -negative_log_likelihood(u, mean, log_std) - log_slope


class SquashedGaussianPolicy(Policy):
    """a = tanh(m(s) + sigma(s) e), or a = tanh(m(s)) whatever the noise.

    Args:
        actor: the network, which gives m and log sigma.
        critic, normalizer, action_dim: see :class:`Policy`; the critic gives values, and has nothing to choose.
        deterministic: whether the noise is left out.
    """

    def __init__(
        self,
        actor: EncodedNetwork,
        critic: EncodedNetwork,
        normalizer: Normalizer,
        action_dim: int,
        deterministic: bool,
    ) -> None:
        super().__init__(normalizer, action_dim, critic=critic)
        self.actor, self.deterministic = actor, deterministic

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(self.actor.encode(observations))
        u = mean.expand_as(noise) if self.deterministic else mean + log_std.exp() * noise
        return u.tanh()


class SAC(Algorithm):
    """Soft actor-critic.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim); the network gives (mean, log_std).
        critic: constructor that takes (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`SACSettings`.
    """

    Settings = SACSettings
    settings: SACSettings

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
        self.temperature = Temperature(c.temperature)
        self.groups = (
            Group("critic", c.critic_lr, updates),
            Group("actor", c.actor_lr, updates),
            Group("temperature", c.actor_lr, updates),
        )
        self.averages = (Average("target_critic", "critic", c.tau),)

    def policy(self) -> SquashedGaussianPolicy:
        return self._policy(self.settings.deterministic)

    def explorer(self) -> SquashedGaussianPolicy:
        return self._policy(deterministic=False)

    def _policy(self, deterministic: bool) -> SquashedGaussianPolicy:
        networks = self.actor, self.target_critic
        return SquashedGaussianPolicy(*networks, self.normalizer, self.spec.action_dim, deterministic)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        shape = (batch_size, self.spec.action_dim)
        return {"target": Normal(shape), "policy": Normal(shape)}

    def critic_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic: regression of Q onto y."""
        c = self.settings
        with torch.no_grad():
            mean, log_std = self.actor(self.actor.encode(batch.next_observations))
            a, log_pi = squashed(mean, log_std, e)
            q = self.target_critic(self.target_critic.encode(batch.next_observations), a)
            value = aggregate(q, c.target_aggregation, c.rho)
            if c.backup_entropy:
                value = value - self.temperature() * log_pi
            y = batch.rewards + batch.discounts * value
        return td_loss(self.critic, s["critic"], batch.actions, y)

    def policy_loss(self, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_policy + L_beta, of which each trains its own part, and neither the critic."""
        c = self.settings
        mean, log_std = self.actor(s["actor"])
        a, log_pi = squashed(mean, log_std, e)
        beta = self.temperature()
        minus_q, q = q_loss(self.critic, s["critic"], a, q_aggregation=c.policy_aggregation, rho=c.rho)
        entropy = -log_pi.mean()
        policy_loss = minus_q - beta.detach() * entropy
        temperature_loss = beta * (entropy.detach() - c.target_entropy * self.spec.action_dim)
        return policy_loss + temperature_loss, {
            "q_loss": minus_q,
            "policy_q": q,
            "entropy": entropy,
            "std": log_std.exp().mean(),
            "temperature": beta,
        }

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic + L_policy + L_beta and the scalars to log."""
        s = self.encode(batch.observations, "critic", "actor")
        critic_loss, critic_scalars = self.critic_loss(batch, drawn["target"], s)
        policy_loss, policy_scalars = self.policy_loss(drawn["policy"], s)
        return critic_loss + policy_loss, critic_scalars | policy_scalars
