"""What an algorithm sees of the data: batches, and the sizes and ranges of what is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Dataset actions are kept this far inside [-1, 1], as OGBench's own code does.
ACTION_CLIP = 1e-5


class Batch(NamedTuple):
    """One batch of transitions: states normalised, images as they are.

    A value is learned towards ``rewards + discounts * Q(next_observations, .)``, whatever made the batch.
    """

    observations: Tensor  #: (batch, observation_dim), or uint8 (batch, frames, height, width, channels)
    actions: Tensor  #: (batch, action_dim), or (batch, horizon, action_dim) of chunks, in [-1 + 1e-5, 1 - 1e-5]
    rewards: Tensor  #: (batch,)
    masks: Tensor  #: (batch,) 0 where the task is complete: no bootstrap
    next_observations: Tensor  #: like observations
    discounts: Tensor  #: (batch,) of the value of the next observation: discount * mask
    #: like actions: the data's in the next observation, where they were asked for; NaN where the trajectory ends there
    next_actions: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every field changed that is there."""
        return Batch(*(field if field is None else change(field) for field in self))  # type: ignore[arg-type]  # None stays

    def to(self, device: torch.device) -> Batch:
        return self.each(lambda field: field.to(device))


Augment = Callable[[Batch, int], Batch]  #: (batch, number of the update) -> the batch to train on


def normalize(states: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(s - mean) / std, for states ``(..., observation_dim)`` and statistics ``(observation_dim,)``."""
    return (states - mean) / std


def normalize_(states: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The same in place."""
    return states.sub_(mean).div_(std)


@dataclass(frozen=True)
class DataSpec:
    """What an algorithm must know of the data: sizes, statistics and the range of returns. Plain numbers only.

    Attributes:
        observation_dim: of states; 0 where observations are images.
        observation_mean, observation_std: of states, per dimension; empty where observations are images.
        image_shape: ``(frames, height, width, channels)`` of an observation; None for states.
    """

    observation_dim: int
    action_dim: int
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    reward_min: float
    reward_max: float
    image_shape: tuple[int, int, int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def value_range(self, discount: float) -> tuple[float, float]:
        """Bounds of every discounted return: rewards within [min, max], ended at any time by a mask."""
        horizon = 1.0 / (1.0 - discount)
        return min(self.reward_min, 0.0) * horizon, max(self.reward_max, 0.0) * horizon
