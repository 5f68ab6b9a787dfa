r"""Drift Q-learning (arXiv 2606.00350): one step from noise to action, kept near the data by a drift field.

    L = L_critic + alpha L_drift + L_q                                                  one stage, one policy network

    a_i      clip(mu(s, e_i)), i = 1 .. N                   candidates for one state; a is the data's action
    V+_i     a - a_i                                        attraction
    V-_i     sum_{k != i} w_ik (a_k - a_i),   w_i = softmax_k l_ik                      repulsion is -V-
    l_ik     - |a_i - a_k| / (T sqrt(D))   or   - |a_i - a_k|^2 / (2 T^2 D)             Laplace or Gaussian kernel

    L_drift  E mean_i (a_i - y_i)^2,   y_i = clip(a_i + V+_i - V-_i) fixed
    L_q      - E mean_j Q_j(s, clip(mu(s, e)))              Q fixed, e of its own
    L_critic E (Q_j(s, a) - y)^2,  y = r + discount mask agg_j Q_target,j(s', clip(mu(s', e')))

D is the size of an action and T the kernel's temperature. The equations are those of the project's page
(driftql.github.io), the settings those that its code's README lists (github.com/anashoussaini/driftql), which builds on
FQL's: gradients are not clipped, rates are constant, and the target critic averages the critic from before the update's
step. An earlier state of that code divides V of each state by its root mean square, which ``normalize_drift`` does. The
noise has the size of an action; that code's `noise_dim`, which it sets for cube-double, is not here. As in FQL here,
mu is built as a flow's network is, and its time is always 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import StudentPolicy, student_action, student_td_loss
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import action_scalars
from mfrl.data.batch import Batch, DataSpec
from mfrl.q_learning import TD, q_loss
from mfrl.randomness import Draw, Normal
from mfrl.schedules import FixedAlpha


@dataclass(frozen=True, kw_only=True)
class DriftQLSettings(TD):
    """Settings of DriftQL; the defaults are those that its code's README lists.

    Attributes:
        alpha: weight of the drift loss.
        num_generated: N, candidates for each state of the drift loss, at least 2.
        temperature: T of the kernel.
        kernel: "laplace" or "gaussian".
        normalize_drift: whether V of each state is divided by its root mean square.
        sigma: standard deviation of the noise.
        actor_lr: learning rate of the policy.
        critic_lr: learning rate of the critic.
    """

    q_aggregation: str = "min"
    alpha: float = 10.0
    num_generated: int = 32
    temperature: float = 0.2
    kernel: str = "laplace"
    normalize_drift: bool = False
    sigma: float = 1.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


def drift_field(candidates: Tensor, data: Tensor, temperature: float, kernel: str) -> Tensor:
    """V = V+ - V-, where the candidates are to go: ``(N, batch, action_dim)``.

    Args:
        candidates: a_i, ``(N, batch, action_dim)``.
        data: a, ``(batch, action_dim)``.
        temperature: T.
        kernel: "laplace" or "gaussian".
    """
    N, _, D = candidates.shape
    squared = (candidates[:, None] - candidates[None]).square().sum(-1)  # (i, k, batch)
    if kernel == "laplace":
        logits = -squared.sqrt() / (temperature * math.sqrt(D))
    else:
        logits = -squared / (2.0 * temperature**2 * D)
    itself = torch.eye(N, dtype=torch.bool, device=candidates.device)[..., None]
    w = logits.masked_fill(itself, -math.inf).softmax(1)
    attraction = data - candidates
    repulsion = torch.einsum("ikb,kbd->ibd", w, candidates) - candidates  # each row of w adds up to 1
    return attraction - repulsion


class DriftQL(Algorithm):
    """Drift Q-learning.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the policy; it takes (observation_dim, action_dim). The policy's time is always 1.
        critic: constructor that takes (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`DriftQLSettings`.
    """

    Settings = DriftQLSettings
    settings: DriftQLSettings

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

    def policy(self) -> StudentPolicy:
        sigma = self.settings.sigma
        return StudentPolicy(self.actor, self.normalizer, self.spec.action_dim, sigma, self.target_critic)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c, shape = self.settings, (batch_size, self.spec.action_dim)
        return {
            "drift": Normal((c.num_generated, *shape), c.sigma),  # e_i
            "policy": Normal(shape, c.sigma),  # e of L_q
            "target": Normal(shape, c.sigma),  # e' of the Bellman target
        }

    def drift_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_drift."""
        c = self.settings
        a = student_action(self.actor, s["actor"], e).clamp(-1.0, 1.0)
        with torch.no_grad():
            v = drift_field(a, batch.actions, c.temperature, c.kernel)
            size = v.square().mean((0, 2), keepdim=True).sqrt()
            if c.normalize_drift:
                v = v / size.clamp_min(1e-6)
            y = (a + v).clamp(-1.0, 1.0)
        loss = (a - y).square().mean()
        return loss, {"drift_loss": loss, "drift": size.mean(), "spread": a.std(0).mean()}

    def policy_loss(self, batch: Batch, e: Tensor, s: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_q. It does not train the critic."""
        mu = student_action(self.actor, s["actor"], e)
        loss, q = q_loss(self.critic, s["critic"], mu, self.settings.normalize_q)
        return loss, {"q_loss": loss, "policy_q": q} | action_scalars(mu, batch.actions)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        s = self.encode(batch.observations, "actor", "critic")
        with torch.no_grad():
            next_s = self.encode(batch.next_observations, "actor", "target_critic")
        critics = self.critic, self.target_critic
        critic_loss, critic_scalars = student_td_loss(
            self.actor, critics, batch, drawn["target"], s, next_s, self.settings, self.value_range
        )
        drift_loss, drift_scalars = self.drift_loss(batch, drawn["drift"], s)
        policy_loss, policy_scalars = self.policy_loss(batch, drawn["policy"], s)
        scalars = critic_scalars | drift_scalars | policy_scalars | {"alpha": self.alpha.alpha}
        return critic_loss + self.alpha.alpha * drift_loss + policy_loss, scalars
