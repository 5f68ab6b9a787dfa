r"""MeanFlow behaviour cloning: the flow loss of MeanFlowQL (arXiv 2511.13035) by itself.

    L = L_flow:  g(s, a_t, t) regressed onto its MeanFlow identity target, whatever the reformulation

One forward pass from noise to action; what a reformulation can express, without a critic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.behaviour_cloning import PathCloning
from mfrl.algorithms.ranges import check_ranges
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import Time, flow_loss
from mfrl.networks import encode
from mfrl.policy import OneStepPolicy
from mfrl.reformulation import Reformulation


class MeanFlowBC(PathCloning):
    """Behaviour cloning with a one-step MeanFlow actor.

    Args:
        actor: constructor taking (observation_dim, action_dim), and two_times=True for a reformulation with a second
            time.
        reformulation: what the actor's output stands for.
        time_steps: training times are drawn from a grid of so many points; None draws them from (0, 1].
        gamma_adaptive, c_adaptive, target_clip: of the flow loss.
        sigma: standard deviation of the noise.
        training: of :class:`PathCloning`.
    """

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[..., nn.Module],
        reformulation: Reformulation,
        updates: int,
        seed: int = 0,
        time_steps: int | None = 50,
        gamma_adaptive: float = 0.8,
        c_adaptive: float = 1e-4,
        target_clip: float = 5.0,
        sigma: float = 1.0,
        **training: Any,
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, time_steps, sigma, **training)
        second = {"two_times": True} if reformulation.two_times else {}
        self.actor = self.network(actor, **second)
        self.reformulation, self.instant_share = reformulation, reformulation.instant_share
        self.gamma_adaptive, self.c_adaptive, self.target_clip = gamma_adaptive, c_adaptive, target_clip

    def policy(self) -> OneStepPolicy:
        """What acts in an environment; shares the network being trained."""
        return OneStepPolicy(
            self.actor, None, self.reformulation, self.normalizer, self.spec.action_dim, self.sigma, num_candidates=1
        )

    def loss(self, batch: Batch, e: Tensor, time: Time) -> tuple[Tensor, dict[str, Tensor]]:
        loss, error = flow_loss(
            self.actor,
            self.reformulation,
            encode(self.actor, batch.observations),
            batch.actions,
            e,
            time,
            self.target_clip,
            self.gamma_adaptive,
            self.c_adaptive,
        )
        return loss, {"flow_loss": loss, "flow_error": error}
