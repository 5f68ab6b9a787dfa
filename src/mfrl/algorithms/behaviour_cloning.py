"""What the algorithms that only imitate the data share: one loss, one Adam step with its schedule, no critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mfrl.algorithms.base import OfflineAlgorithm
from mfrl.algorithms.ranges import check_ranges
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import Time, draw_time
from mfrl.policy import Normalizer
from mfrl.randomness import generator
from mfrl.schedules import warmup_cosine


class BehaviourCloning(OfflineAlgorithm):
    """An actor trained by one loss on observations and actions; rewards are not looked at.

    A subclass sets ``self.actor`` and defines ``loss(batch, *noise)``, a pure function of the parameters, a batch and
    the random numbers that its ``noise(k, batch_size, purpose)`` draws, and ``policy()``.

    Args:
        spec: sizes and statistics of the data.
        updates: number of updates, for the schedule.
        seed: of the noise (initialisation uses torch's global generator).
        encoder: constructor of the networks' image encoders; None where observations are states.
        actor_lr, actor_warmup, actor_lr_floor, max_grad_norm: of Adam; the rate warms up over a share of the updates
            and falls to a share of itself.
        compile: compile the loss with torch.compile.
        variant: the chosen reformulation, for a subclass that has none: ``{name: none}`` is all it may be.

    Raises:
        ConfigError: for a setting out of its range, or a variant that would be of no effect.
    """

    optimizer_names = ("actor",)
    actor: nn.Module

    def __init__(
        self,
        spec: DataSpec,
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        actor_lr: float = 1e-4,
        actor_warmup: float = 0.05,
        actor_lr_floor: float = 0.1,
        max_grad_norm: float = 1.0,
        compile: bool = False,
        variant: Mapping[str, Any] | None = None,
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, encoder)
        self.refuse_variant(variant)
        self.actor_lr, self.actor_warmup, self.actor_lr_floor = actor_lr, actor_warmup, actor_lr_floor
        self.max_grad_norm = max_grad_norm
        self.normalizer = Normalizer(torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std))
        self._loss = torch.compile(self.loss, dynamic=False) if compile else self.loss

    def loss(self, batch: Batch, *noise: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and the scalars to log."""
        raise NotImplementedError

    def noise(self, k: int, batch_size: int, purpose: str = "update") -> tuple[Any, ...]:
        """The random numbers of update k, a function of (seed, purpose, k)."""
        raise NotImplementedError

    def draw(self, k: int, purpose: str) -> dict[str, Any]:
        """Where random numbers of step ``k`` come from and go to: the arguments of torch's samplers."""
        return {"generator": generator(self.seed, purpose, k, self.device), "device": self.device}

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """The loss on data not trained on, with the same noise each time."""
        return self.loss(batch, *self.noise(0, len(batch.actions), "held out"))[1]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of Adam."""
        loss, metrics = self._loss(batch, *self.noise(self.updates, len(batch.actions)))
        metrics["actor_grad_norm"] = self.descend(loss, self.actor, self.optimizers(), self.lr_schedulers())
        return metrics

    def descend(self, loss: Tensor, network: nn.Module, optimizer: Optimizer, schedule: LambdaLR) -> Tensor:
        """One step of the network's optimiser and of its schedule; returns the norm of the gradient."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        norm = clip_grad_norm_(network.parameters(), self.max_grad_norm)
        optimizer.step()
        schedule.step()
        return norm

    def adam(self, network: nn.Module, updates: int) -> tuple[Adam, LambdaLR]:
        """Adam for a network trained for so many updates, and its schedule."""
        optimizer = Adam(network.parameters(), lr=self.actor_lr, fused=True)
        return optimizer, LambdaLR(
            optimizer, lambda k: warmup_cosine(k, updates, self.actor_warmup, self.actor_lr_floor)
        )

    def configure_optimizers(self) -> tuple[list[Adam], list[LambdaLR]]:
        optimizer, schedule = self.adam(self.actor, self.total_updates)
        return [optimizer], [schedule]


class PathCloning(BehaviourCloning):
    """Behaviour cloning by what is learned along the path from an action to noise.

    Args:
        time_steps: training times are drawn from a grid of so many points; None draws them from (0, 1].
        sigma: standard deviation of the noise.
        training: of :class:`BehaviourCloning`.
    """

    instant_share: float | None = None  #: of a reformulation with a second time, see :func:`mfrl.meanflow.draw_time`

    def __init__(
        self, spec: DataSpec, updates: int, seed: int, time_steps: int | None, sigma: float, **training: Any
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, **training)
        self.time_steps, self.sigma = time_steps, sigma

    def noise(self, k: int, batch_size: int, purpose: str = "update") -> tuple[Tensor, Time]:
        """e ``(batch, action_dim)`` and the times of update k, a function of (seed, purpose, k)."""
        draw = self.draw(k, purpose)
        time = draw_time(batch_size, self.time_steps, self.instant_share, **draw)
        return self.sigma * torch.randn(batch_size, self.spec.action_dim, **draw), time
