"""An algorithm's optimisation as data: which networks take steps, and which follow them on average."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mfrl.settings import Settings


@dataclass(frozen=True)
class Group:
    """The parameters of one network, which one Adam steps (arXiv 1412.6980).

    Attributes:
        network: name of the algorithm's module.
        lr: learning rate after the warm-up.
        end: the network takes steps in updates ``begin <= k < end``; its rate rises and falls over these.
        clip: the gradient is scaled down to at most this norm; infinity clips nothing.
        warmup: the rate rises over this share of the updates, see :func:`mfrl.schedules.warmup_cosine`.
        floor: the rate falls to this share of ``lr``; ``warmup=0, floor=1`` is a constant rate.
        every: the network takes a step every so many updates.
        begin: the first update.
        beyond: number of further updates after ``end``, at the last rate.
    """

    network: str
    lr: float
    end: int
    clip: float = math.inf
    warmup: float = 0.0
    floor: float = 1.0
    every: int = 1
    begin: int = 0
    beyond: int = 0

    def steps_at(self, k: int) -> bool:
        """Whether the network takes a step in update k."""
        return self.begin <= k < self.end + self.beyond and (k - self.begin) % self.every == 0


@dataclass(frozen=True)
class Average:
    """target <- target + rate (source - target), parameter by parameter.

    Attributes:
        target, source: names of the algorithm's modules.
        rate: in (0, 1].
        before: use the source's weights from before the update's step.
        every: the target follows once in so many updates, those in which a :class:`Group` of the same ``every`` and
            ``begin`` takes a step.
        from_start: in the first 1 / rate updates, the target is the plain mean of the source's weights after each
            update, without the initial weights.
    """

    target: str
    source: str
    rate: float
    before: bool = False
    from_start: bool = False
    every: int = 1
    begin: int = 0

    def follows_at(self, k: int) -> bool:
        """Whether update k moves the target."""
        return self.begin <= k and (k - self.begin) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class ActorAdam(Settings):
    """Settings of the actor's Adam, and of gradient clipping.

    Attributes:
        actor_lr: learning rate after the warm-up.
        actor_warmup: share of the updates over which the rate rises from 0.
        actor_lr_floor: share of ``actor_lr`` to which the rate falls.
        max_grad_norm: largest norm of each network's gradient.
    """

    actor_lr: float = 1e-4
    actor_warmup: float = 0.05
    actor_lr_floor: float = 0.1
    max_grad_norm: float = 1.0

    def group(self, network: str, end: int, begin: int = 0) -> Group:
        """A group with these settings, for the updates from ``begin`` to ``end``."""
        warmup, floor = self.actor_warmup, self.actor_lr_floor
        return Group(network, self.actor_lr, end, self.max_grad_norm, warmup, floor, begin=begin)
