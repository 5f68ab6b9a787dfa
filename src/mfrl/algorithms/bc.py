r"""Deterministic behaviour cloning: the mean action for every state.

    L = E || mu(s) - a ||^2

Between two modes of the data lies their mean, which may be no action of the data at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.groups import ActorAdam
from mfrl.algorithms.policy import MeanPolicy
from mfrl.data.batch import Batch, DataSpec


class BC(Algorithm):
    """Regression of the data's actions on their states.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim); the network gives an action for a state.
        updates: number of updates, for the schedule.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`ActorAdam`.
    """

    Settings = ActorAdam
    settings: ActorAdam

    def __init__(self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, **others: Any) -> None:
        super().__init__(spec, updates, **others)
        self.actor = self.network(actor)
        self.groups = (self.settings.group("actor", updates),)

    def policy(self) -> MeanPolicy:
        return MeanPolicy(self.actor, self.normalizer, self.spec.action_dim)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mu = self.actor(self.actor.encode(batch.observations))
        loss = (mu - batch.actions).square().mean()
        return loss, {"bc_loss": loss}
