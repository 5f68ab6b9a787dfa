r"""A flow distilled into one step, in two stages: the behaviour-only part of FQL (arXiv 2502.02538).

    1.  v(s, a_t, t) by flow matching                                   the first share of the updates
    2.  L = E || mu(s, e) - euler(v, s, e) ||^2,  v fixed, same e       the rest of them

mu(s, e) is one forward pass. Both stages together make as many updates as the one stage of other algorithms.
Unlike FQL's code, the target is the end of the Euler steps before clipping, so that mu copies the flow as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.flow_matching import (
    FlowPolicy,
    FlowSettings,
    StudentPolicy,
    euler,
    flow_matching_loss,
    student_action,
)
from mfrl.algorithms.policy import Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import require
from mfrl.meanflow import path_draws
from mfrl.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class FlowDistilledSettings(FlowSettings):
    """Of both stages.

    Attributes:
        flow_share: share of ``updates`` that train the flow. A run resumed with more updates has the end of its first
            stage at a later update: if the student had begun before that, it waits while the flow learns on.
    """

    flow_share: float = 0.5


class FlowDistilled(Algorithm):
    """Behaviour cloning with a one-step student of a flow.

    Each stage has its own Adam, whose rate warms up and falls over the stage.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor taking (observation_dim, action_dim), of the flow and of the student; the student's time
            stays at 1.
        updates: number of updates of both stages.
        others: seed, encoder, variant, see :class:`Algorithm`, and the settings of :class:`FlowDistilledSettings`.
    """

    Settings = FlowDistilledSettings
    settings: FlowDistilledSettings

    def __init__(self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, **others: Any) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        middle = round(c.flow_share * updates)
        require("updates", 0 < middle < updates, updates, "enough to leave one for each of the two stages")
        self.flow = self.network(actor)
        self.student = self.network(actor)
        self.groups = c.group("flow", middle), c.group("student", updates, begin=middle)

    def policy(self) -> Policy:
        """The student once it has begun to learn; before that the flow, which is all there is to act with."""
        c, (_, student) = self.settings, self.groups
        if self.k <= student.begin:
            return FlowPolicy(self.flow, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps)
        return StudentPolicy(self.student, self.normalizer, self.spec.action_dim, c.sigma)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c = self.settings
        return path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps)

    def loss(
        self, batch: Batch, noise: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the stages' losses, of which each trains its own network and nothing else."""
        e, losses = noise["flow"], {}
        if "flow" in trained:
            s = self.flow.see(batch.observations)
            losses["flow_loss"] = flow_matching_loss(self.flow, s, batch.actions, e, noise["time"])
        if "student" in trained:
            s = self.student.see(batch.observations)
            with torch.no_grad():
                target = euler(self.flow, self.flow.see(batch.observations), e, self.settings.flow_steps)
            losses["distillation_loss"] = (student_action(self.student, s, e) - target).square().mean()
        return sum(losses.values(), torch.zeros_like(e[0, 0])), losses
