"""What an algorithm says of its optimisation: which parameters a step takes, and which follow them on average."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mfrl.settings import Settings


@dataclass(frozen=True)
class Group:
    """The parameters of one network, stepped by one Adam (arXiv 1412.6980).

    Attributes:
        network: name of the algorithm's module.
        lr: rate after warming up.
        clip: largest norm of the whole gradient, infinite for none.
        warmup, floor: the rate rises over this share of the updates and falls to this share of itself, see
            :func:`mfrl.schedules.warmup_cosine`; 0 and 1 leave it constant.
        every: a step at each so many updates.
        begin, end: the updates that step it, ``begin <= k < end``, over which its rate rises and falls.
    """

    network: str
    lr: float
    end: int
    clip: float = math.inf
    warmup: float = 0.0
    floor: float = 1.0
    every: int = 1
    begin: int = 0

    def steps_at(self, k: int) -> bool:
        """Whether update k steps it."""
        return self.begin <= k < self.end and (k - self.begin) % self.every == 0


@dataclass(frozen=True)
class Average:
    """target <- target + rate (source - target), parameter by parameter.

    Attributes:
        target, source: names of the algorithm's modules.
        rate: in (0, 1].
        before: the source is taken as it was before the update's step.
        every: once in so many updates, in those that step a :class:`Group` of the same ``every`` and ``begin``.
        from_start: until 1 / rate updates have passed, the target is the mean of the source's weights after each, so
            that it does not lag behind the start; the initial weights are left out altogether.
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
    """Of the actor's Adam, and of the gradient's norm in every group.

    Attributes:
        actor_lr, actor_warmup, actor_lr_floor: the rate warms up over a share of the updates and falls to a share of
            itself.
        max_grad_norm: of each network's gradient.
    """

    actor_lr: float = 1e-4
    actor_warmup: float = 0.05
    actor_lr_floor: float = 0.1
    max_grad_norm: float = 1.0

    def group(self, network: str, end: int, begin: int = 0) -> Group:
        """The actor's network, or one that is trained as an actor is, over the updates from ``begin`` to ``end``."""
        warmup, floor = self.actor_warmup, self.actor_lr_floor
        return Group(network, self.actor_lr, end, self.max_grad_norm, warmup, floor, begin=begin)
