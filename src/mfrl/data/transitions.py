"""Transitions where the update runs: tensors on the training device, sampled there by index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mfrl.errors import DataError as DataError
from mfrl.randomness import generator

if TYPE_CHECKING:
    from mfrl.data.cache import Pages

#: Dataset actions are kept this far inside [-1, 1], as OGBench's own code does.
ACTION_CLIP = 1e-5

_MOVED_TOGETHER = 1 << 14  # rows moved to a GPU at once


class Batch(NamedTuple):
    """One batch of transitions: states normalised, images as they are."""

    observations: Tensor  #: (batch, observation_dim), or uint8 (batch, frames, height, width, channels)
    actions: Tensor  #: (batch, action_dim) in [-1 + 1e-5, 1 - 1e-5]
    rewards: Tensor  #: (batch,)
    masks: Tensor  #: (batch,) 0 where the task is complete: no bootstrap
    next_observations: Tensor  #: like observations


Augment = Callable[[Batch, int], Batch]  #: (batch, number of the update) -> the batch to train on


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


@dataclass
class Transitions:
    """Trajectories as one row per visited state, so that every observation is stored once.

    Row i and row i + 1 are consecutive states of a trajectory unless row i is its last state; ``starts`` lists
    the rows a transition starts from.

    Attributes:
        observations: ``(rows, observation_dim)`` float32, or images ``(rows, height, width, channels)`` uint8.
        actions: ``(rows, action_dim)`` float32.
        rewards, masks: ``(rows,)`` float32.
        starts: ``(transitions,)`` int64.
        firsts: ``(rows,)`` int64, the first row of each row's trajectory; needed where frames are stacked.
        frames: of images, the last so many make an observation; before a trajectory's first, that one is repeated.
        statistics: mean and deviation ``(2, observation_dim)`` to normalise states with as they are gathered; None
            where they are normalised already, or images.
        ships_to: None: the transitions lie where training runs. A device: they stay in files mapped into memory,
            and batches are sent there.
        pages: of the mapped files; None where there are none.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    starts: Tensor
    firsts: Tensor | None = None
    frames: int = 1
    statistics: Tensor | None = None
    ships_to: torch.device | None = None
    pages: Pages | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Tensor) -> Batch:
        """The transitions numbered ``index`` (batch,), gathered where they lie."""
        if self.pages is not None:
            self.pages.give_back()
        row = self.starts[index]
        observations, next_observations = self._images(row) if self.observations.ndim > 2 else self._states(row)
        return Batch(
            observations,
            self._take(self.actions, row),
            self._take(self.rewards, row),
            self._take(self.masks, row),
            next_observations,
        )

    def _states(self, row: Tensor) -> tuple[Tensor, Tensor]:
        s, next_s = self._take(self.observations, row), self._take(self.observations, row + 1)
        if self.statistics is not None:
            mean, std = self.statistics
            s, next_s = (s - mean) / std, (next_s - mean) / std
        return s, next_s

    def _images(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks ending in ``row`` and in ``row + 1``, two views of one window of frames + 1 images."""
        assert self.firsts is not None
        window = row[:, None] + torch.arange(1 - self.frames, 2, device=row.device)
        window = torch.maximum(window, self.firsts[row][:, None])
        images = self._take(self.observations, window.flatten()).unflatten(0, window.shape)
        return images[:, :-1], images[:, 1:]

    def _take(self, field: Tensor, row: Tensor) -> Tensor:
        """Rows of a field, where training runs. They go to a GPU out of page-locked memory, from which it copies on its
        own while the CPU goes on."""
        if self.ships_to is None:
            return field.index_select(0, row)
        lock = self.ships_to.type == "cuda"
        rows = torch.empty(len(row), *field.shape[1:], dtype=field.dtype, pin_memory=lock)
        return torch.index_select(field, 0, row, out=rows).to(self.ships_to, non_blocking=True)

    def to(self, device: torch.device) -> Transitions:
        """Move everything to ``device``; what is mapped from files stays and sends its batches there.

        Mapped files move as well where they take at most half of a GPU's free memory.
        """
        if self.ships_to is not None and self.nbytes() > _room(device):
            statistics = None if self.statistics is None else self.statistics.to(device)
            return replace(self, ships_to=device, statistics=statistics)
        moved = {name: self._moved(tensor, device) for name, tensor in self._tensors().items()}
        return replace(self, ships_to=None, pages=None, **moved)

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self.pages is None:
            return tensor.to(device)
        moved = torch.empty_like(tensor, device=device)
        for part, source in zip(moved.split(_MOVED_TOGETHER), tensor.split(_MOVED_TOGETHER), strict=True):
            part.copy_(source)
            self.pages.give_back()
        return moved

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def _room(device: torch.device) -> int:
    """How many bytes of mapped files may move to a device: half of what is free there now, beside other programs."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0


@dataclass(frozen=True)
class Chunk:
    """Several index batches over the same transitions: what Lightning sees as one batch."""

    transitions: Transitions
    indices: Tensor  #: (updates, batch)
    first: int = 0  #: number of the first update
    augment: Augment | None = None

    def __iter__(self) -> Iterator[Batch]:
        for k, index in enumerate(self.indices, self.first):
            batch = self.transitions[index]
            yield batch if self.augment is None else self.augment(batch, k)


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
        augment: Augment | None = None,
    ) -> None:
        self.transitions, self.batch_size, self.seed, self.first = transitions, batch_size, seed, first
        self.augment = augment
        self.ends = chunk_ends(first, last, size, marks)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Chunk]:
        device, at = self.transitions.starts.device, self.first
        for end in self.ends:
            indices = torch.stack([self._draw(k) for k in range(at, end)]).to(device)
            yield Chunk(self.transitions, indices, at, self.augment)
            at = end

    def _draw(self, k: int) -> Tensor:
        # On the CPU, wherever the transitions lie: where that is depends on the machine, what is drawn must not.
        draws = generator(self.seed, "batch", k)
        return torch.randint(len(self.transitions), (self.batch_size,), generator=draws)
