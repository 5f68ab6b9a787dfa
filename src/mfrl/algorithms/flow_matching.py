r"""Flow matching (arXiv 2210.02747) on straight paths, and its one-step student. Several algorithms share this module.

a_t = (1 - t) a + t e                       t = 0 is data, t = 1 is noise
L = E || v(s, a_t, t) - (e - a) ||^2        minimised by the marginal velocity E[e - a | s, a_t]
a_{t - h} = a_t - h v(s, a_t, t)            from a_1 = e in steps of h = 1 / K down to t = 0
mu(s, e)                                    the student: the same end in one step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfrl.algorithms.groups import ActorAdam
from mfrl.algorithms.policy import Normalizer, Policy, action_scalars
from mfrl.data.batch import Batch
from mfrl.meanflow import Network, Times, end_time, interpolate
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import TD, Critic, bellman_target, td_loss


def flow_matching_loss(flow: Network, observations: Tensor, a: Tensor, e: Tensor, times: Times) -> Tensor:
    """The mean of (v(s, a_t, t) - (e - a))^2 over batch and dimensions, on the path from a to e."""
    a_t, v = interpolate(a, e, times.t)
    return (flow(observations, a_t, times) - v).square().mean()


def euler(flow: Network, observations: Tensor, e: Tensor, steps: int) -> Tensor:
    """Euler steps from noise e at t = 1 to an action at t = 0; the actions are not clipped and shaped like e.

    Args:
        e: ``(..., batch, action_dim)``; all leading axes (candidates) share the observations.
        steps: number of steps.
    """
    a = e
    for k in range(steps, 0, -1):
        a = a - flow(observations, a, Times(e.new_full((1, 1), k / steps))) / steps
    return a


class FlowPolicy(Policy):
    """A policy that maps noise to an action in ``steps`` forward passes of the flow.

    Args:
        steps: number of Euler steps.
        choice: further arguments of :class:`Policy`, with which a critic chooses among candidates.
    """

    def __init__(
        self,
        flow: EncodedNetwork,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float,
        steps: int,
        **choice: Any,
    ) -> None:
        super().__init__(normalizer, action_dim, sigma, **choice)
        self.flow, self.steps = flow, steps

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return euler(self.flow, self.flow.encode(observations), noise, self.steps)


def student_action(student: Network, observations: Tensor, e: Tensor) -> Tensor:
    """mu(s, e), the student's output at t = 1: ``(..., batch, action_dim)``, shaped like the noise e."""
    return student(observations, e, end_time(e, two_times=False))


def student_td_loss(
    student: Network,
    critics: tuple[Critic, Critic],
    batch: Batch,
    e: Tensor,
    s: Mapping[str, Tensor],
    next_s: Mapping[str, Tensor],
    settings: TD,
    value_range: tuple[float, float] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_critic: regression of Q onto y = r + discount * mask * Q_target(s', a'), a' = clip(mu(s', e)); scalars to log.

    Args:
        student: mu.
        critics: Q and its target.
        e: noise ``(batch, action_dim)``.
        s, next_s: what each network takes as observations, by "actor", "critic" and "target_critic".
        settings, value_range: see :func:`mfrl.q_learning.bellman_target`.
    """
    critic, target_critic = critics
    with torch.no_grad():
        next_actions = student_action(student, next_s["actor"], e).clamp(-1.0, 1.0)
    y = bellman_target(target_critic, next_s["target_critic"], next_actions[None], batch, settings, value_range)
    return td_loss(critic, s["critic"], batch.actions, y)


def student_loss(
    mu: Tensor, target: Tensor, data: Tensor, alpha: Tensor, q_loss: Tensor, q: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """alpha L_distillation + L_q, and the scalars to log: what the student learns from where it is also to find value.

    Args:
        mu: the student's actions ``(batch, action_dim)`` before clipping.
        target: the actions that they are to come near; without gradient.
        data: the data's actions.
        q_loss, q: of mu, see :func:`mfrl.q_learning.q_loss`.
    """
    distillation_loss = (mu - target).square().mean()
    scalars = {"distillation_loss": distillation_loss, "q_loss": q_loss, "policy_q": q}
    return alpha * distillation_loss + q_loss, scalars | action_scalars(mu, data)


class StudentPolicy(Policy):
    """A policy that maps noise to an action in one forward pass of the student."""

    def __init__(
        self,
        student: EncodedNetwork,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float,
        critic: EncodedNetwork | None = None,
    ) -> None:
        super().__init__(normalizer, action_dim, sigma, critic)
        self.student = student

    def folded(self) -> StudentPolicy:
        return self._with("student", self.student.folded(end_time(self.normalizer.mean, two_times=False)))

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return student_action(self.student, self.student.encode(observations), noise)


@dataclass(frozen=True, kw_only=True)
class FlowSettings(ActorAdam):
    """Settings of flow matching.

    Attributes:
        flow_steps: number of Euler steps for an action.
        time_steps: number of points of the grid of training times; None draws times from (0, 1).
        sigma: standard deviation of the noise.
    """

    flow_steps: int = 10
    time_steps: int | None = None
    sigma: float = 1.0
