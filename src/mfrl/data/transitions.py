"""Transitions where the update runs: tensors on the training device, sampled there by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfrl.errors import MfrlError
from mfrl.randomness import generator

#: Dataset actions are kept this far inside [-1, 1], as OGBench's own code does.
ACTION_CLIP = 1e-5


class DataError(MfrlError):
    """Data that is missing, damaged or unusable; the message names the file and the field."""


class Batch(NamedTuple):
    """One batch of transitions, observations normalised."""

    observations: Tensor  #: (batch, observation_dim)
    actions: Tensor  #: (batch, action_dim) in [-1 + 1e-5, 1 - 1e-5]
    rewards: Tensor  #: (batch,)
    masks: Tensor  #: (batch,) 0 where the task is complete: no bootstrap
    next_observations: Tensor  #: (batch, observation_dim)


@dataclass(frozen=True)
class DataSpec:
    """What an algorithm must know of the data: sizes, statistics and the range of returns. Plain numbers only."""

    observation_dim: int
    action_dim: int
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    reward_min: float
    reward_max: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def value_range(self, discount: float) -> tuple[float, float]:
        """Bounds of every discounted return: rewards within [min, max], ended at any time by a mask."""
        horizon = 1.0 / (1.0 - discount)
        return min(self.reward_min, 0.0) * horizon, max(self.reward_max, 0.0) * horizon


@dataclass
class Transitions:
    """Trajectories as one row per visited state, so that every observation is stored once.

    Row i and row i + 1 are consecutive states of a trajectory unless row i is its last state; ``starts`` lists
    the rows a transition starts from.

    Attributes:
        observations: ``(rows, observation_dim)`` float32, normalised.
        actions: ``(rows, action_dim)`` float32.
        rewards, masks: ``(rows,)`` float32.
        starts: ``(transitions,)`` int64.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Tensor) -> Batch:
        """The transitions numbered ``index`` (batch,), gathered on the device they lie on."""
        row = self.starts[index]
        return Batch(
            self.observations.index_select(0, row),
            self.actions.index_select(0, row),
            self.rewards.index_select(0, row),
            self.masks.index_select(0, row),
            self.observations.index_select(0, row + 1),
        )

    def to(self, device: torch.device) -> Transitions:
        return Transitions(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class Chunk:
    """Several index batches over the same transitions: what Lightning sees as one batch."""

    transitions: Transitions
    indices: Tensor  #: (updates, batch)

    def __iter__(self) -> Iterator[Batch]:
        return (self.transitions[index] for index in self.indices)


def chunk_ends(first: int, last: int, size: int, marks: tuple[int, ...]) -> list[int]:
    """Where chunks of at most ``size`` updates end between update ``first`` and ``last``.

    A chunk never crosses a multiple of one of the ``marks`` (when something is logged, evaluated or saved), so that
    what happens there does not depend on the chunk size.
    """
    ends, at = [], first
    while at < last:
        end = min(at + size, last, *((at // mark + 1) * mark for mark in marks if mark > 0))
        ends.append(end)
        at = end
    return ends


class ChunkLoader:
    """Iterates over chunks from update ``first`` to ``last``; update k draws its indices from (seed, k) alone."""

    def __init__(
        self,
        transitions: Transitions,
        batch_size: int,
        seed: int,
        first: int,
        last: int,
        size: int,
        marks: tuple[int, ...],
    ) -> None:
        self.transitions, self.batch_size, self.seed, self.first = transitions, batch_size, seed, first
        self.ends = chunk_ends(first, last, size, marks)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Chunk]:
        device, at = self.transitions.starts.device, self.first
        for end in self.ends:
            indices = torch.stack([self._draw(k, device) for k in range(at, end)])
            yield Chunk(self.transitions, indices)
            at = end

    def _draw(self, k: int, device: torch.device) -> Tensor:
        draws = generator(self.seed, "batch", k, device)
        return torch.randint(len(self.transitions), (self.batch_size,), generator=draws, device=device)
