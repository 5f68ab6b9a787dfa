r"""A flow distilled into one step, in two stages: the behaviour-only part of FQL (arXiv 2502.02538).

    1.  v(s, a_t, t) by flow matching                                   the first share of the updates
    2.  L = E || mu(s, e) - euler(v, s, e) ||^2,  v fixed, same e       the rest of them

mu(s, e) is one forward pass. Both stages together make as many updates as the one stage of other algorithms.
Unlike FQL's code, the target is the end of the Euler steps before clipping, so that mu copies the flow as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from mfrl.algorithms.behaviour_cloning import PathCloning
from mfrl.algorithms.flow_bc import FlowPolicy, euler, flow_matching_loss
from mfrl.algorithms.ranges import check_ranges
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import require
from mfrl.meanflow import Time, end_time
from mfrl.networks import encode
from mfrl.policy import Normalizer, Policy


def student_action(student: nn.Module, observations: Tensor, e: Tensor) -> Tensor:
    """mu(s, e): the student's output at t = 1, ``(..., batch, action_dim)`` like the noise e."""
    return student(observations, e, end_time(e, two_times=False))


class StudentPolicy(Policy):
    """Noise to action in one forward pass of the student."""

    def __init__(
        self,
        student: nn.Module,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float,
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__(normalizer, action_dim, sigma, critic)
        self.student = student

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return student_action(self.student, encode(self.student, observations), noise)


class FlowDistilled(PathCloning):
    """Behaviour cloning with a one-step student of a flow.

    Each stage has its own Adam, whose rate warms up and falls over the stage.

    Args:
        actor: constructor taking (observation_dim, action_dim), of the flow and of the student; the student's time
            stays at 1.
        flow_share: share of ``updates`` that train the flow. A run resumed with more updates has the end of its first
            stage at a later update: if the student had begun before that, it waits while the flow learns on.
        flow_steps, time_steps, sigma: as in :class:`FlowBC`.
        training: of :class:`PathCloning`, for both networks.
    """

    optimizer_names = ("flow", "student")

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        updates: int,
        seed: int = 0,
        flow_share: float = 0.5,
        flow_steps: int = 10,
        time_steps: int | None = None,
        sigma: float = 1.0,
        **training: Any,
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, time_steps, sigma, **training)
        self.flow_updates = round(flow_share * updates)
        require("updates", 0 < self.flow_updates < updates, updates, "enough to leave one for each of the two stages")
        self.flow = self.network(actor)
        self.student = self.network(actor)
        self.flow_steps = flow_steps

    def policy(self) -> Policy:
        """The student once it has begun to learn; before that the flow, which is all there is to act with."""
        if self.updates <= self.flow_updates:
            return FlowPolicy(self.flow, self.normalizer, self.spec.action_dim, self.sigma, self.flow_steps)
        return StudentPolicy(self.student, self.normalizer, self.spec.action_dim, self.sigma)

    def loss(self, batch: Batch, e: Tensor, time: Time, stage: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of stage 1 or 2, which trains the flow or the student and nothing else."""
        if stage == 1:
            seen = encode(self.flow, batch.observations)
            loss = flow_matching_loss(self.flow, seen, batch.actions, e, time)
            return loss, {"flow_loss": loss}
        with torch.no_grad():
            target = euler(self.flow, encode(self.flow, batch.observations), e, self.flow_steps)
        seen = encode(self.student, batch.observations)
        loss = (student_action(self.student, seen, e) - target).square().mean()
        return loss, {"distillation_loss": loss}

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses on data not trained on, with the same noise each time."""
        noise = self.noise(0, len(batch.actions), "held out")
        return self.loss(batch, *noise, 1)[1] | self.loss(batch, *noise, 2)[1]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the flow's Adam or of the student's; the number of the update says which."""
        stage = 1 if self.updates < self.flow_updates else 2
        network = (self.flow, self.student)[stage - 1]
        loss, _ = self._loss(batch, *self.noise(self.updates, len(batch.actions)), stage)
        norm = self.descend(loss, network, self.optimizers()[stage - 1], self.lr_schedulers()[stage - 1])
        # The same names in both stages: they are averaged over windows that may hold the end of the first.
        return {"stage_loss": loss, "stage": loss.new_tensor(float(stage)), "grad_norm": norm}

    def configure_optimizers(self) -> tuple[list[Adam], list[LambdaLR]]:
        flow, flow_schedule = self.adam(self.flow, self.flow_updates)
        student, student_schedule = self.adam(self.student, self.total_updates - self.flow_updates)
        return [flow, student], [flow_schedule, student_schedule]
