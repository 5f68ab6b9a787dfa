"""What a policy meets in environments: a ring on the training device, and a file that only grows.

Several environments write side by side. Each has a lane of its own: with E lanes, row ``tick * E + lane`` holds the
lane's state number ``tick``, and the next state of its trajectory lies E rows further. So every state is stored once,
as in :class:`mfrl.data.storage.Transitions`. Rows count on for ever; row r lies at place r modulo the ring's size.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import ACTION_CLIP, DataSpec
from mfrl.data.storage import Transitions
from mfrl.errors import CheckpointError

_READ_TOGETHER = 1 << 14  # records


class Ring(Transitions):
    """The latest transitions of all lanes, numbered from 0 in the order in which they were made.

    ``starts`` holds the rows of the latest ``capacity`` transitions, number i at place i modulo ``capacity``.

    Args:
        spec: sizes and statistics of the data; observations are stored raw, images one at a time.
        lanes: number of environments.
        capacity: states to keep. A trajectory has one more than it has transitions.
        device: where training runs.

    Attributes:
        count: transitions made.
        first: number of the oldest one that is still whole; at most ``count``.
    """

    def __init__(self, spec: DataSpec, lanes: int, capacity: int, device: torch.device | str = "cpu") -> None:
        images = spec.image_shape is not None
        frames = 1 if spec.image_shape is None else spec.image_shape[0]
        ticks = max(math.ceil(capacity / lanes) + 1, frames + 2)
        rows = ticks * lanes
        shape = spec.image_shape[1:] if spec.image_shape is not None else (spec.observation_dim,)
        mean, std = torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std)
        super().__init__(
            observations=torch.empty(rows, *shape, dtype=torch.uint8 if images else torch.float32, device=device),
            actions=torch.empty(rows, spec.action_dim, device=device),
            rewards=torch.empty(rows, device=device),
            masks=torch.empty(rows, device=device),
            starts=torch.zeros(capacity, dtype=torch.int64, device=device),
            firsts=torch.empty(rows, dtype=torch.int64, device=device) if images else None,
            frames=frames,
            statistics=None if images else torch.stack([mean, std]).to(device),
        )
        self.lanes, self.capacity = lanes, capacity
        self.count = self.first = 0
        self._ticks = np.zeros(lanes, np.int64)  # of the state that each lane is in
        self._begins = np.zeros(lanes, np.int64)  # of the first state of its trajectory
        self._numbers = np.full(rows, -1)  # of the transition that starts in a row; -1 where none does

    @property
    def stride(self) -> int:
        return self.lanes

    @property
    def device(self) -> torch.device:
        return self.starts.device

    def __len__(self) -> int:
        return self.count

    def begin(self, lanes: np.ndarray, observations: np.ndarray) -> None:
        """Put the first state of a trajectory into these lanes ``(n,)``, which are at its tick already.

        Args:
            observations: ``(n, observation_dim)``, or the latest images ``(n, height, width, channels)``.
        """
        self._begins[lanes] = self._ticks[lanes]
        self._observe_now(lanes, observations)

    def begin_anew(self, lanes: np.ndarray, observations: np.ndarray) -> None:
        """End the trajectories of these lanes where they are, and :meth:`begin` others."""
        self._ticks[lanes] += 1
        self.begin(lanes, observations)

    def append(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        masks: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
        first_observations: np.ndarray,
    ) -> None:
        """Add a transition in every lane.

        Args:
            actions: ``(lanes, action_dim)`` in [-1, 1].
            rewards, masks: ``(lanes,)``.
            next_observations: of the states in which the transitions end.
            ended: bool ``(lanes,)``, whether the episode is over.
            first_observations: of the episodes that begin in the lanes that have ended; other rows are of no meaning.
        """
        rows = self._ticks * self.lanes + np.arange(self.lanes)
        self._act(rows, actions, rewards, masks)
        self._ticks += 1
        self._observe_now(np.arange(self.lanes), next_observations)
        if ended.any():
            self.begin_anew(np.flatnonzero(ended), first_observations[ended])

    def restore(self, records: Iterator[np.ndarray], observations: np.ndarray) -> None:
        """Add what a :class:`Journal` holds, and the states in which the lanes are now ``(lanes, ...)``."""
        for block in records:
            together = len(self.rewards) // self.lanes - self.frames  # so that no place is written twice at once
            for begin in range(0, len(block), together):
                self._replay(block[begin : begin + together])
        self._observe_now(np.arange(self.lanes), observations)

    def _replay(self, records: np.ndarray) -> None:
        lanes, acts = records["lane"].astype(np.int64), records["acts"]
        ticks, begins = np.empty_like(lanes), np.empty_like(lanes)
        for lane in np.unique(lanes):
            (at,) = np.nonzero(lanes == lane)
            ticks[at] = self._ticks[lane] + np.arange(len(at))
            begin = np.where(np.concatenate([[False], ~acts[at][:-1]]), ticks[at], self._begins[lane])
            begins[at] = np.maximum.accumulate(begin)
            self._ticks[lane] += len(at)
            self._begins[lane] = begins[at[-1]] if acts[at[-1]] else self._ticks[lane]
        rows = ticks * self.lanes + lanes
        self._observe(rows, begins * self.lanes + lanes, records["observation"])
        self._act(rows[acts], records["action"][acts], records["reward"][acts], records["mask"][acts])

    def _start(self, index: Tensor) -> Tensor:
        return self.starts[index % self.capacity]

    def _first(self, row: Tensor) -> Tensor:
        assert self.firsts is not None
        return self.firsts[row % len(self.firsts)]

    def _take(self, field: Tensor, row: Tensor) -> Tensor:
        return field.index_select(0, row % len(field))

    def _next_actions(self, index: Tensor) -> Tensor:
        # NaN where a trajectory has ended, and where the next action has not been taken yet.
        return self._take(self.actions, self._start(index) + self.stride)

    def _observe(self, rows: np.ndarray, firsts: np.ndarray, observations: np.ndarray) -> None:
        places = rows % len(self.rewards)
        # The state that was there is lost, and with it what starts in it or shows it in a stack of images.
        showing = (places[:, None] + self.lanes * np.arange(self.frames)) % len(self.rewards)
        self.first = max(self.first, int(self._numbers[showing].max()) + 1)
        self._numbers[places] = -1
        at = self._index(places)
        self.observations[at] = torch.from_numpy(observations.copy()).to(self.device)
        self.actions[at] = torch.nan
        if self.firsts is not None:
            self.firsts[at] = self._index(firsts)

    def _observe_now(self, lanes: np.ndarray, observations: np.ndarray) -> None:
        rows, firsts = (ticks[lanes] * self.lanes + lanes for ticks in (self._ticks, self._begins))
        self._observe(rows, firsts, observations)

    def _act(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray, masks: np.ndarray) -> None:
        places = rows % len(self.rewards)
        at = self._index(places)
        actions = np.clip(actions, -1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP)
        for field, values in ((self.actions, actions), (self.rewards, rewards), (self.masks, masks)):
            field[at] = torch.from_numpy(values.astype(np.float32)).to(self.device)
        self._numbers[places] = numbers = np.arange(self.count, self.count + len(rows))
        self.starts[self._index(numbers % self.capacity)] = self._index(rows)
        self.count += len(rows)
        self.first = max(self.first, self.count - self.capacity)

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class Journal:
    """A file of everything that happened, one record a state, which only grows.

    A record holds a state, the action taken in it, the reward and the mask (0 where the episode terminated), its lane,
    and whether an action was taken: in the last state of an episode none was. Records have a fixed size; see
    :attr:`record`. A checkpoint names the number of records that it has seen. Later ones are written again.

    Args:
        path: of the file, which is made if it is not there.
        spec: of the data.
    """

    def __init__(self, path: Path, spec: DataSpec) -> None:
        self.path, self.record = path, record_of(spec)
        self.count = self.checksum = 0
        self._file: BinaryIO | None = None

    def add(self, records: np.ndarray) -> None:
        """Write records ``(n,)``; they are on the disk for good after :meth:`sync`."""
        if self._file is None:
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            self._file.seek(self.count * self.record.itemsize)
        data = records.tobytes()
        self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.count += len(records)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self, count: int, checksum: int) -> Iterator[np.ndarray]:
        """The first ``count`` records, in blocks; afterwards :meth:`add` goes on behind them.

        Raises:
            CheckpointError: there are fewer, or their checksum is another one.
        """
        size = self.record.itemsize
        there = self.path.stat().st_size // size if self.path.is_file() else 0
        if there < count:
            raise CheckpointError(
                f"{self.path} holds {there:,} states, and the checkpoint has seen {count:,}: the file is not "
                "the run's, or was cut off. Go on from a checkpoint of before the online phase"
            )
        found = 0
        with self.path.open("rb") as file:
            for begin in range(0, count, _READ_TOGETHER):
                data = file.read(size * min(_READ_TOGETHER, count - begin))
                found = zlib.crc32(data, found)
                yield np.frombuffer(data, self.record)
        if found != checksum:
            raise CheckpointError(
                f"{self.path} is damaged, or not what the checkpoint has seen: its checksum differs. Go on from a "
                "checkpoint of before the online phase"
            )
        self.count, self.checksum = count, checksum

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def records_of(
    record: np.dtype,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    masks: np.ndarray,
    next_observations: np.ndarray,
    ended: np.ndarray,
) -> np.ndarray:
    """The records of one step in all lanes: of every lane the state acted in, and the last one of an episode too."""
    lanes = np.arange(len(ended))
    records = np.zeros(len(lanes) + int(ended.sum()), record)
    places = lanes + np.concatenate([[0], np.cumsum(ended)[:-1]])
    fields = {"observation": observations, "action": actions, "reward": rewards, "mask": masks}
    for name, values in fields.items():
        records[name][places] = values
    records["lane"][places], records["acts"][places] = lanes, True
    last = places[ended] + 1
    records["observation"][last], records["lane"][last] = next_observations[ended], lanes[ended]
    return records


def record_of(spec: DataSpec) -> np.dtype:
    """The type of a :class:`Journal`'s records, little-endian on every machine."""
    if spec.image_shape is None:
        observation: Any = ("observation", "<f4", (spec.observation_dim,))
    else:
        observation = ("observation", "u1", spec.image_shape[1:])
    action = ("action", "<f4", (spec.action_dim,))
    return np.dtype([observation, action, ("reward", "<f4"), ("mask", "<f4"), ("lane", "<u2"), ("acts", "?")])
