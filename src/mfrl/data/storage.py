"""Transitions as tensors on the training device, or mapped from files and sent there batch by batch."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import Batch, normalize

_MOVED_TOGETHER = 1 << 14  # rows moved to a GPU at once


@dataclass
class Transitions:
    """Trajectories with one row for each visited state, so that every observation is stored once.

    Row i and row i + 1 are consecutive states of a trajectory unless row i is its last state. ``starts`` lists the rows
    from which a transition starts, in ascending order.

    Attributes:
        observations: ``(rows, observation_dim)`` float32, or images ``(rows, height, width, channels)`` uint8.
        actions: ``(rows, action_dim)`` float32.
        rewards, masks: ``(rows,)`` float32.
        starts: ``(transitions,)`` int64.
        firsts: ``(rows,)`` int64, the first row of each row's trajectory; only for stacked frames.
        frames: number of images in an observation; a trajectory's first image is repeated.
        statistics: mean and deviation ``(2, observation_dim)`` with which :meth:`gather` normalises states; None if
            they are normalised already, or images.
        ships_to: None if the transitions lie on the training device. Otherwise they stay in files mapped into memory,
            and batches are sent to this device.
        pages: of the mapped files; None without mapped files.
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
        """The transitions numbered ``index`` (batch,), without a discount."""
        return self.gather(index, discount=1.0)

    def gather(self, index: Tensor, discount: float, next_actions: bool = False) -> Batch:
        """The transitions numbered ``index`` (batch,), on the training device.

        Args:
            discount: of the value of the next observation, where the episode did not terminate.
            next_actions: also gather the data's action in the next observation. It is NaN for the last transition of a
                trajectory.
        """
        if self.pages is not None:
            self.pages.give_back()
        row = self._start(index)
        observations, next_observations = self._images(row) if self.observations.ndim > 2 else self._states(row)
        masks = self._take(self.masks, row)
        return Batch(
            observations,
            self._take(self.actions, row),
            self._take(self.rewards, row),
            masks,
            next_observations,
            discounts=discount * masks,
            next_actions=self._next_actions(index) if next_actions else None,
        )

    @property
    def stride(self) -> int:
        """The number of rows from a state to the next one of its trajectory."""
        return 1

    def _start(self, index: Tensor) -> Tensor:
        """The rows of the states from which these transitions start."""
        return self.starts[index]

    def _next_actions(self, index: Tensor) -> Tensor:
        row, following = self.starts[index], self.starts[(index + 1).clamp(max=len(self.starts) - 1)]
        actions = self._take(self.actions, following)
        known = (following == row + 1).to(actions.device, non_blocking=True)
        return torch.where(known.view(-1, *[1] * (actions.ndim - 1)), actions, torch.nan)

    def _states(self, row: Tensor) -> tuple[Tensor, Tensor]:
        s, next_s = (self._take(self.observations, at) for at in (row, row + self.stride))
        if self.statistics is not None:
            s, next_s = normalize(s, *self.statistics), normalize(next_s, *self.statistics)
        return s, next_s

    def _images(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks ending in ``row`` and in the next row, two views of one window of frames + 1 images."""
        assert self.firsts is not None
        window = row[:, None] + self.stride * torch.arange(1 - self.frames, 2, device=row.device)
        window = torch.maximum(window, self._first(row)[:, None])
        images = self._take(self.observations, window.flatten()).unflatten(0, window.shape)
        return images[:, :-1], images[:, 1:]

    def _first(self, row: Tensor) -> Tensor:
        """The first row of each row's trajectory."""
        assert self.firsts is not None
        return self.firsts[row]

    def _take(self, field: Tensor, row: Tensor) -> Tensor:
        """Rows of a field, where training runs. They go to a GPU out of page-locked memory, from which it copies
        while the CPU goes on."""
        if self.ships_to is None:
            return field.index_select(0, row)
        lock = self.ships_to.type == "cuda"
        rows = torch.empty(len(row), *field.shape[1:], dtype=field.dtype, pin_memory=lock)
        return torch.index_select(field, 0, row, out=rows).to(self.ships_to, non_blocking=True)

    def to(self, device: torch.device) -> Transitions:
        """Move all tensors to ``device``. Mapped files stay where they are and send batches there.

        Mapped files move too if they take at most half of a GPU's free memory.
        """
        if self.ships_to is not None and self.nbytes() > _room(device):
            statistics = None if self.statistics is None else self.statistics.to(device)
            return replace(self, ships_to=device, statistics=statistics)
        moved: dict[str, Any] = {name: self._moved(tensor, device) for name, tensor in self._tensors().items()}
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


class Pages:
    """The pages of mapped files that this process holds. It gives them back before they fill its memory.

    Reading one place may map 2 MiB around it, so that a few hundred places are a large part of a file. Pages that are
    given back stay in the system's file cache while there is room, and are mapped again at little cost. They no longer
    count as the process's memory, which stays small whatever the size of the files.

    Args:
        arrays: mapped arrays, see :class:`mfrl.data.cache.Prepared`.
    """

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self.maps = [cast(mmap.mmap, array.base) for array in arrays]

    def give_back(self) -> None:
        for file in self.maps:
            file.madvise(mmap.MADV_DONTNEED)  # read-only and shared: nothing is lost


def as_tensor(array: np.ndarray) -> Tensor:
    """The array's memory as a tensor. Do not write to that of a mapped array."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor written to
        return torch.from_numpy(np.asarray(array))


def _room(device: torch.device) -> int:
    """The number of bytes of mapped files that may move to a device: half of its memory that is free now."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
