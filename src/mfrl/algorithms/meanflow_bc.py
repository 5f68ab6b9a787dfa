r"""MeanFlow behaviour cloning: the flow loss of MeanFlowQL (arXiv 2511.13035) by itself.

    L = L_flow:  g(s, a_t, t) regressed onto its MeanFlow identity target, whatever the reformulation

One forward pass from noise to action; what a reformulation can express, without a critic.
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
from mfrl.meanflow import FlowLoss, flow_loss, path_draws
from mfrl.randomness import Draw
from mfrl.reformulation import Reformulation


@dataclass(frozen=True, kw_only=True)
class MeanFlowBCSettings(FlowLoss, ActorAdam):
    """Those of the flow loss and of the actor's Adam."""


class MeanFlowBC(Algorithm):
    """Behaviour cloning with a one-step MeanFlow actor.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor taking (observation_dim, action_dim), and two_times=True for a reformulation with a second
            time.
        reformulation: what the actor's output stands for.
        updates: number of updates, for the schedule.
        others: seed and encoder, see :class:`Algorithm`, and the settings of :class:`MeanFlowBCSettings`.
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
        self, batch: Batch, noise: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s, e, time = self.actor.see(batch.observations), noise["flow"], noise["time"]
        loss, error = flow_loss(self.actor, self.reformulation, s, batch.actions, e, time, self.settings)
        return loss, {"flow_loss": loss, "flow_error": error}
