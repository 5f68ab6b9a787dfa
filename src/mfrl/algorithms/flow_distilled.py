r"""A flow distilled into one step, in two stages: the behaviour-only part of FQL (arXiv 2502.02538).

    1.  v(s, a_t, t) by flow matching                                   the first updates
    2.  L = E || mu(s, e) - euler(v, s, e) ||^2,  v fixed, same e       the other updates

mu(s, e) is one forward pass. Both stages together make as many updates as the one stage of other algorithms.
FQL's code clips the end of the Euler steps; here the target is not clipped, so that mu copies the flow itself.
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
    """Settings of both stages.

    Attributes:
        flow_share: share of ``updates`` that train the flow. Resuming with more updates moves the end of the first
            stage: a student that had already begun then waits while the flow goes on learning.
    """

    flow_share: float = 0.5


class FlowDistilled(Algorithm):
    """Behaviour cloning with a one-step student of a flow.

    Each stage has its own Adam, whose rate rises and falls over the stage.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the flow and of the student; it takes (observation_dim, action_dim). The student's time
            is always 1.
        updates: number of updates of both stages together.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`FlowDistilledSettings`.
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
        """The student in the second stage; the flow in the first stage."""
        c, (_, student) = self.settings, self.groups
        if self.k <= student.begin:
            return FlowPolicy(self.flow, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps)
        return StudentPolicy(self.student, self.normalizer, self.spec.action_dim, c.sigma)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c = self.settings
        return path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each stage whose network is trained. No loss trains the other stage's network."""
        e, losses = drawn["flow"], {}
        if "flow" in trained:
            s = self.flow.encode(batch.observations)
            losses["flow_loss"] = flow_matching_loss(self.flow, s, batch.actions, e, drawn["time"])
        if "student" in trained:
            s = self.student.encode(batch.observations)
            with torch.no_grad():
                target = euler(self.flow, self.flow.encode(batch.observations), e, self.settings.flow_steps)
            losses["distillation_loss"] = (student_action(self.student, s, e) - target).square().mean()
        return sum(losses.values(), torch.zeros_like(e[0, 0])), losses
