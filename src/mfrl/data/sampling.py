"""Choose the transitions of each update: indices are a function of (seed, number of the update), grouped in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from mfrl.data.batch import Augment, Batch
from mfrl.data.storage import Transitions
from mfrl.randomness import indices, key_of


@dataclass(frozen=True)
class Chunk:
    """The index batches of several updates, which Lightning handles as one batch. Iterating gives their batches."""

    transitions: Transitions
    indices: Tensor  #: (updates, batch), or (updates, members, batch) for a population
    discount: float
    first: int = 0  #: number of the first update
    augment: Augment | Sequence[Augment] | None = None  #: for a population, one for each member
    next_actions: bool = False

    def __iter__(self) -> Iterator[Batch]:
        for k, index in enumerate(self.indices, self.first):
            batch = self.transitions.gather(index.flatten(), self.discount, self.next_actions)
            yield self._alone(batch, k) if index.ndim == 1 else self._together(batch, k, len(index))

    def _alone(self, batch: Batch, k: int) -> Batch:
        return self.augment(batch, k) if callable(self.augment) else batch

    def _together(self, batch: Batch, k: int, members: int) -> Batch:
        """The batches of all members, stacked: every field has an axis of members before that of the batch."""
        stacked = batch.each(lambda field: field.unflatten(0, (members, -1)))
        if self.augment is None:
            return stacked
        assert not callable(self.augment), "every member has its own"
        each = (stacked.each(itemgetter(m)) for m in range(members))
        augmented = [augment(one, k) for augment, one in zip(self.augment, each, strict=True)]
        return Batch.together(augmented, torch.stack)


def chunk_ends(first: int, last: int, size: int, marks: tuple[int, ...]) -> list[int]:
    """The updates at which chunks of at most ``size`` updates end, between update ``first`` and ``last``.

    No chunk crosses a multiple of one of the ``marks``, at which something is logged, evaluated or saved. Results
    therefore do not depend on the chunk size.
    """
    ends, at = [], first
    while at < last:
        end = min(at + size, last, *((at // mark + 1) * mark for mark in marks if mark > 0))
        ends.append(end)
        at = end
    return ends


class ChunkLoader:
    """Iterates over chunks from update ``first`` to ``last``. The indices of update k are a function of (seed, k).

    Args:
        transitions: to draw from.
        batch_size: number of transitions in an update.
        seed: of the indices; a population has several, and each member draws as it would alone.
        first, last, size, marks: see :func:`chunk_ends`.
        discount: of values, see :meth:`Transitions.gather`; 1 for an algorithm that learns no values.
        augment: changes each batch; a population has one for each member.
        next_actions: whether batches hold the next actions.
    """

    def __init__(
        self,
        transitions: Transitions,
        batch_size: int,
        seed: int | Sequence[int],
        first: int,
        last: int,
        size: int,
        marks: tuple[int, ...],
        discount: float,
        augment: Augment | Sequence[Augment] | None = None,
        next_actions: bool = False,
    ) -> None:
        self.transitions, self.batch_size, self.seed, self.first = transitions, batch_size, seed, first
        self.discount, self.augment, self.next_actions = discount, augment, next_actions
        self.ends = chunk_ends(first, last, size, marks)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Chunk]:
        device, at = self.transitions.starts.device, self.first
        key = key_of(self.seed) if isinstance(self.seed, int) else torch.stack([key_of(seed) for seed in self.seed])
        key = key.to(device)  # of all members: on a GPU each operation is a launch
        for end in self.ends:
            k = torch.arange(at, end, device=device)
            index = indices(key, "batch", k, self.batch_size, len(self.transitions))
            yield Chunk(self.transitions, index, self.discount, at, self.augment, self.next_actions)
            at = end


class InTurn:
    """Iterates over several loaders, one after another."""

    def __init__(self, loaders: Sequence[Any]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.loaders)
