r"""Implicit flow Q-learning: IQL's values, a flow of the data, and the best of many of its actions.

    L = L_V + L_Q + L_flow      L_V, L_Q as in IQL (arXiv 2110.06169),  L_flow as in flow matching (arXiv 2210.02747)
    a = the best by min_i Q_i of N actions of the flow

The flow's form of implicit diffusion Q-learning (arXiv 2304.10573), as FQL's code has it (agents/ifql.py): the policy
itself never sees a value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.flow_matching import FlowPolicy, flow_matching_loss
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.iql import ImplicitValues, implicit_value_loss
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import path_draws
from mfrl.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class IFQLSettings(ImplicitValues):
    """Settings of IFQL; the defaults are those of FQL's code (agents/ifql.py).

    Attributes:
        num_candidates: N, num_samples there.
        flow_steps: number of Euler steps of an action.
        sigma: standard deviation of the noise.
        actor_lr: learning rate of the flow.
        critic_lr: learning rate of Q and V.
    """

    num_candidates: int = 32
    flow_steps: int = 10
    sigma: float = 1.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4


class IFQL(Algorithm):
    """Implicit flow Q-learning.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the velocity field v(s, a_t, t); it takes (observation_dim, action_dim).
        critic, value: constructors of the Q ensemble and of V(s); they take (observation_dim, action_dim).
        updates: number of updates.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`IFQLSettings`.
    """

    Settings = IFQLSettings
    settings: IFQLSettings

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
        self.groups = (
            Group("value", c.critic_lr, updates),
            Group("critic", c.critic_lr, updates),
            Group("actor", c.actor_lr, updates),
        )
        self.averages = (Average("target_critic", "critic", c.tau, before=True),)

    def policy(self) -> FlowPolicy:
        c = self.settings
        choice = {"critic": self.critic, "num_candidates": c.num_candidates, "q_aggregation": "min"}
        return FlowPolicy(self.actor, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps, **choice)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        return path_draws(batch_size, self.spec.action_dim, self.settings.sigma, num_steps=None)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and the scalars to log."""
        s = self.encode(batch.observations, "value", "critic", "actor")
        networks = self.value, self.critic, self.target_critic
        value_loss, scalars = implicit_value_loss(*networks, batch, s, self.settings.expectile)
        flow_loss = flow_matching_loss(self.actor, s["actor"], batch.actions, drawn["flow"], drawn["time"])
        return value_loss + flow_loss, scalars | {"flow_loss": flow_loss}
