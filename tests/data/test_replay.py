"""The replay: a ring of the latest transitions, and a file that has them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from mfrl.data.batch import ACTION_CLIP, DataSpec
from mfrl.data.replay import Journal, Ring, records_of
from mfrl.errors import CheckpointError

STATES = DataSpec(3, 2, (0.5, -1.0, 2.0), (2.0, 0.5, 1.0), -1.0, 0.0)
IMAGES = DataSpec(0, 2, (), (), -1.0, 0.0, image_shape=(3, 2, 2, 3))


@dataclass
class Stream:
    """Random episodes in several lanes, and the plain list of all that happened."""

    spec: DataSpec
    lanes: int
    seed: int = 0
    happened: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.now = self.observe(self.lanes)
        self.history = [[now] for now in self.now]  # of each lane's episode

    def observe(self, count: int) -> np.ndarray:
        if self.spec.image_shape is None:
            return self.rng.normal(size=(count, self.spec.observation_dim)).astype(np.float32)
        return self.rng.integers(0, 256, (count, *self.spec.image_shape[1:]), dtype=np.uint8)

    def step(self, ring: Ring, journal: Journal | None = None) -> None:
        actions = self.rng.uniform(-1, 1, (self.lanes, self.spec.action_dim)).astype(np.float32)
        rewards, masks = self.rng.normal(size=self.lanes), (self.rng.random(self.lanes) > 0.1).astype(float)
        following, ended = self.observe(self.lanes), self.rng.random(self.lanes) < 0.3
        firsts = np.where(ended.reshape(-1, *[1] * (following.ndim - 1)), self.observe(self.lanes), following)
        if journal is not None:
            journal.add(records_of(journal.record, self.now, actions, rewards, masks, following, ended))
        ring.append(actions, rewards, masks, following, ended, firsts)
        for lane in range(self.lanes):
            before = self.history[lane]
            if self.happened:
                for earlier in reversed(self.happened):
                    if earlier["lane"] == lane:
                        if not earlier["ended"]:
                            earlier["next_action"] = actions[lane]
                        break
            self.happened.append(
                {
                    "lane": lane,
                    "ended": bool(ended[lane]),
                    "observation": self.stack(before),
                    "next_observation": self.stack([*before, following[lane]]),
                    "action": actions[lane],
                    "reward": rewards[lane],
                    "mask": masks[lane],
                    "next_action": np.full(self.spec.action_dim, np.nan),
                }
            )
            self.history[lane] = [firsts[lane]] if ended[lane] else [*before, following[lane]]
        self.now = firsts

    def stack(self, history: list[np.ndarray]) -> np.ndarray:
        if self.spec.image_shape is None:
            return (history[-1] - np.array(self.spec.observation_mean)) / np.array(self.spec.observation_std)
        frames = self.spec.image_shape[0]
        return np.stack([*[history[0]] * frames, *history][-frames:])


def assert_holds(ring: Ring, stream: Stream) -> None:
    """The ring gives every transition that it says it has, as it happened."""
    assert ring.count == len(stream.happened)
    index = torch.arange(ring.first, ring.count)
    batch, expected = ring.gather(index, 0.9, next_actions=True), stream.happened[ring.first :]
    wanted = {name: np.stack([one[name] for one in expected]) for name in expected[0]}
    action = np.clip(wanted["action"], -1 + ACTION_CLIP, 1 - ACTION_CLIP)
    for got, want in (
        (batch.observations, wanted["observation"]),
        (batch.next_observations, wanted["next_observation"]),
        (batch.actions, action),
        (batch.rewards, wanted["reward"]),
        (batch.masks, wanted["mask"]),
        (batch.discounts, 0.9 * wanted["mask"]),
        (batch.next_actions, np.clip(wanted["next_action"], -1 + ACTION_CLIP, 1 - ACTION_CLIP)),
    ):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [STATES, IMAGES], ids=["states", "images"])
@pytest.mark.parametrize(("lanes", "capacity"), [(1, 1000), (3, 1000), (1, 16), (3, 25), (4, 16)])
def test_the_ring_gives_what_happened_also_after_it_has_gone_round(spec: DataSpec, lanes: int, capacity: int) -> None:
    stream, ring = Stream(spec, lanes), Ring(spec, lanes, capacity)
    ring.begin(np.arange(lanes), stream.now)
    for _ in range(60):
        stream.step(ring)
        assert_holds(ring, stream)
    assert ring.count == 60 * lanes
    assert (ring.first > 0) == (capacity < 60 * lanes)
    if ring.first:  # and keeps nearly as much as it has room for: an episode's last state takes a place too
        assert ring.count - ring.first > capacity / 2 - 2 * lanes * (ring.frames - 1)


@pytest.mark.parametrize("spec", [STATES, IMAGES], ids=["states", "images"])
@pytest.mark.parametrize("capacity", [1000, 25])
def test_a_ring_read_from_the_file_is_the_one_that_wrote_it(spec: DataSpec, capacity: int, tmp_path: Path) -> None:
    stream, ring = Stream(spec, 3), Ring(spec, 3, capacity)
    journal = Journal(tmp_path / "replay.bin", spec)
    ring.begin(np.arange(3), stream.now)
    for _ in range(40):
        stream.step(ring, journal)
    journal.sync()
    seen, checksum, latest = journal.count, journal.checksum, stream.now
    for _ in range(5):  # after the checkpoint, lost with the process
        Stream(spec, 3, seed=1).step(Ring(spec, 3, 1000), journal)
    journal.close()

    again, restored = Journal(journal.path, spec), Ring(spec, 3, capacity)
    restored.restore(again.read(seen, checksum), latest)
    assert_holds(restored, stream)
    assert restored.first == ring.first
    for _ in range(10):
        stream.step(restored, again)
        assert_holds(restored, stream)
    again.close()
    # What came after the checkpoint was written over.
    third = Ring(spec, 3, capacity)
    third.restore(Journal(journal.path, spec).read(again.count, again.checksum), stream.now)
    assert_holds(third, stream)


def test_a_file_that_is_short_or_another_is_refused(tmp_path: Path) -> None:
    stream, ring, journal = Stream(STATES, 1), Ring(STATES, 1, 100), Journal(tmp_path / "replay.bin", STATES)
    ring.begin(np.arange(1), stream.now)
    for _ in range(10):
        stream.step(ring, journal)
    journal.close()
    count, checksum = journal.count, journal.checksum
    with pytest.raises(CheckpointError, match=rf"replay\.bin holds {count} states.* {count + 1}"):
        list(Journal(journal.path, STATES).read(count + 1, checksum))
    data = bytearray(journal.path.read_bytes())
    data[40] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        list(Journal(journal.path, STATES).read(count, checksum))
    with pytest.raises(CheckpointError, match="nowhere"):
        list(Journal(tmp_path / "nowhere.bin", STATES).read(1, 0))
