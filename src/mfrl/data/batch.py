"""The data as algorithms get them: batches, and their sizes and ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Dataset actions are kept this far inside [-1, 1], as OGBench's own code does.
ACTION_CLIP = 1e-5


class Batch(NamedTuple):
    """A batch of transitions. States are normalised, images are not.

    Critics learn towards ``rewards + discounts * Q(next_observations, .)``.
    """

    observations: Tensor  #: (batch, observation_dim), or uint8 (batch, frames, height, width, channels)
    actions: Tensor  #: (batch, action_dim), or (batch, horizon, action_dim) of chunks, in [-1 + 1e-5, 1 - 1e-5]
    rewards: Tensor  #: (batch,)
    masks: Tensor  #: (batch,) 0 where the episode terminated, so that no value follows
    next_observations: Tensor  #: like observations
    discounts: Tensor  #: (batch,) factor of the next observation's value: discount * mask
    #: like actions: the data's in the next observation, where they were asked for; NaN where the trajectory ends there
    next_actions: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every field changed that is there."""
        return Batch(*(field if field is None else change(field) for field in self))  # type: ignore[arg-type]  # None stays

    def to(self, device: torch.device) -> Batch:
        return self.each(lambda field: field.to(device))

    @staticmethod
    def together(batches: Sequence[Batch], join: Callable[[list[Tensor]], Tensor]) -> Batch:
        """Several batches as one: ``join`` makes one tensor of each field's, of those fields that are there."""
        fields = (None if field[0] is None else join(list(field)) for field in zip(*batches, strict=True))
        return Batch(*fields)  # type: ignore[arg-type]  # None stays


Augment = Callable[[Batch, int], Batch]  #: (batch, number of the update) -> the batch to train on


def normalize(states: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(s - mean) / std, for states ``(..., observation_dim)`` and statistics ``(observation_dim,)``."""
    return (states - mean) / std


def normalize_(states: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The same in place."""
    return states.sub_(mean).div_(std)


@dataclass(frozen=True)
class DataSpec:
    """The data's sizes, statistics and range of rewards, as plain numbers.

    Attributes:
        observation_dim: size of a state; 0 where observations are images.
        action_dim: size of an action.
        observation_mean, observation_std: of each dimension of a state; empty where observations are images.
        reward_min, reward_max: range of the rewards.
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
        """Bounds of all discounted returns: rewards lie in [min, max], and any step may terminate."""
        horizon = 1.0 / (1.0 - discount)
        return min(self.reward_min, 0.0) * horizon, max(self.reward_max, 0.0) * horizon
