r"""MeanFlow behaviour cloning: the flow loss of MeanFlowQL (arXiv 2511.13035) by itself.

    L = L_flow:  regression of g(s, a_t, t) onto the MeanFlow identity's target, for any reformulation

The policy takes one forward pass from noise to action. Without a critic, it shows what a reformulation can express.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.groups import ActorAdam
from mfrl.algorithms.policy import OneStepPolicy
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import MeanFlowSettings, meanflow_loss, path_draws
from mfrl.randomness import Draw
from mfrl.reformulation import Reformulation


@dataclass(frozen=True, kw_only=True)
class MeanFlowBCSettings(MeanFlowSettings, ActorAdam):
    """Settings of the flow loss and of the actor's Adam."""


class MeanFlowBC(Algorithm):
    """Behaviour cloning with a one-step MeanFlow actor.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim), and two_times=True for a reformulation with a
            second time.
        reformulation: the meaning of the actor's output.
        updates: number of updates, for the schedule.
        others: seed and encoder of :class:`Algorithm`, and the fields of :class:`MeanFlowBCSettings`.
    """

    Settings = MeanFlowBCSettings
    settings: MeanFlowBCSettings

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[..., nn.Module],
        reformulation: Reformulation,
        updates: int,
        **others: Any,
    ) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.reformulation = reformulation
        self.actor = self.network(actor, **({"two_times": True} if reformulation.two_times else {}))
        self.groups = (c.group("actor", updates),)

    def policy(self) -> OneStepPolicy:
        sigma, dim = self.settings.sigma, self.spec.action_dim
        return OneStepPolicy(self.actor, None, self.reformulation, self.normalizer, dim, sigma, num_candidates=1)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c = self.settings
        return path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps, self.reformulation.instant_share)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s, e, times = self.actor.encode(batch.observations), drawn["flow"], drawn["time"]
        loss, error = meanflow_loss(self.actor, self.reformulation, s, batch.actions, e, times, self.settings)
        return loss, {"flow_loss": loss, "flow_error": error}
