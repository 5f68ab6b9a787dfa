r"""Behaviour cloning by flow matching (arXiv 2210.02747), see :mod:`mfrl.algorithms.flow_matching`.

This baseline spends K forward passes on an action.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.flow_matching import FlowPolicy, FlowSettings, flow_matching_loss
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import path_draws
from mfrl.randomness import Draw


class FlowBC(Algorithm):
    """Behaviour cloning with a flow that acts by Euler steps.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the velocity field v(s, a_t, t); it takes (observation_dim, action_dim).
        updates: number of updates, for the schedule.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`FlowSettings`.
    """

    Settings = FlowSettings
    settings: FlowSettings

    def __init__(self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, **others: Any) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.actor = self.network(actor)
        self.groups = (c.group("actor", updates),)

    def policy(self) -> FlowPolicy:
        c = self.settings
        return FlowPolicy(self.actor, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c = self.settings
        return path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.actor.encode(batch.observations)
        loss = flow_matching_loss(self.actor, s, batch.actions, drawn["flow"], drawn["time"])
        return loss, {"flow_loss": loss}
