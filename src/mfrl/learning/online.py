"""Learning online: the policy acts in an environment, and what it meets there is learned from, step by step.

    for t = 1, 2, ... :   a ~ pi(s),   s', r = environment(a),   replay <- (s, a, r, s'),   updates_per_step updates

An update of the online phase first waits for the steps that it needs, which are a function of its number alone. Actions
draw from (seed, number of the step), episodes from (seed, number of the episode), and batches from (seed, number of the
update). So an interrupted phase goes on exactly: the replay is read from its file, and the episodes under way are
played again from their seeds and actions, which are in that file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import Augment, Batch
from mfrl.data.replay import Journal, Ring, records_of
from mfrl.data.sampling import chunk_ends
from mfrl.data.storage import Transitions
from mfrl.envs import outcome
from mfrl.envs.vector import Step, VectorEnv
from mfrl.errors import CheckpointError, DivergedError
from mfrl.randomness import below, derived_seed, generator, index_words, key_of
from mfrl.settings import OnlineSettings
from mfrl.system import signals

if TYPE_CHECKING:
    from mfrl.algorithms.base import Algorithm
    from mfrl.data.module import OfflineData

JOURNAL = "replay.bin"  #: in the run folder


class Player:
    """One seed's interaction: its policy, its environments' episodes, its replay, and its scores.

    Args:
        algorithm: whose policy acts.
        settings: of the phase.
        path: of the journal.
    """

    def __init__(self, algorithm: Algorithm, settings: OnlineSettings, path: Path) -> None:
        self.algorithm, self.settings, self.seed = algorithm, settings, algorithm.seed
        self.policy = algorithm.explorer()
        self.journal = Journal(path, algorithm.spec)
        self.augment: Augment | None = None
        self.ring: Ring
        self.observations: np.ndarray
        lanes = settings.num_envs
        self.begun = 0  # episodes
        self.episodes, self.lengths = np.zeros((2, lanes), np.int64)
        self.returns = np.zeros(lanes)
        self.successes, self.told = np.zeros((2, lanes), np.bool_)
        self._finished: list[tuple[float, int, bool | None]] = []  # since the last logging

    def start(self, device: torch.device) -> None:
        """Make room for the replay, on the training device."""
        c = self.settings
        self.ring = Ring(self.algorithm.spec, c.num_envs, min(c.capacity, 2 * c.steps), device)

    def next_seeds(self, lanes: np.ndarray) -> list[int]:
        """Begin an episode in each of these lanes; returns their seeds."""
        self.episodes[lanes] = np.arange(self.begun, self.begun + len(lanes))
        self.begun += len(lanes)
        self.returns[lanes], self.lengths[lanes] = 0.0, 0
        self.successes[lanes], self.told[lanes] = False, False
        return self.seeds(lanes)

    def seeds(self, lanes: np.ndarray) -> list[int]:
        """The seeds of the episodes under way."""
        return [derived_seed(self.seed, "online episode", int(i)) % 2**31 for i in self.episodes[lanes]]

    def begin(self, observations: np.ndarray) -> None:
        """Take the states in which the first episodes begin, ``(lanes, ...)``."""
        self.observations = observations
        self.ring.begin(np.arange(len(observations)), self.latest(observations))

    def latest(self, observations: np.ndarray) -> np.ndarray:
        """Of stacks of images the last ones; states as they are."""
        return observations if self.algorithm.spec.image_shape is None else observations[:, -1]

    @torch.no_grad()
    def act(self, t: int) -> Tensor:
        """The actions of step ``t`` of all lanes, ``(lanes, action_dim)``."""
        lanes, action_dim = self.settings.num_envs, self.policy.action_dim
        if t * lanes < self.settings.random_steps:
            return 2.0 * torch.rand(lanes, action_dim, generator=generator(self.seed, "random action", t)) - 1.0
        shape = self.policy.num_candidates, lanes, action_dim
        noise = self.policy.sample_noise(shape, generator(self.seed, "online noise", t))
        return self.policy.act(torch.from_numpy(self.observations), noise)

    def score(self, step: Step) -> np.ndarray:
        """Count a step of all lanes; returns the lanes whose episodes have ended."""
        self.returns += step.rewards
        self.lengths += 1
        self.successes |= step.success
        self.told |= step.told
        ended = np.flatnonzero(step.terminated | step.truncated)
        for lane in ended:
            success = bool(self.successes[lane]) if self.told[lane] else None
            self._finished.append((float(self.returns[lane]), int(self.lengths[lane]), success))
        return ended

    def store(
        self, actions: np.ndarray, rewards: np.ndarray, masks: np.ndarray, step: Step, observations: np.ndarray
    ) -> None:
        """Put a step of all lanes into the replay.

        Args:
            rewards, masks: as the data label the step.
            observations: what follows; where new episodes have begun, their first ones.
        """
        now, following = self.latest(self.observations), self.latest(step.observations)
        happened = actions, rewards, masks, following, step.terminated | step.truncated
        self.journal.add(records_of(self.journal.record, now, *happened))
        self.ring.append(*happened, self.latest(observations))
        self.observations = observations

    def pop_metrics(self) -> dict[str, float]:
        """The means of return, length and success over the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        metrics = {"online/steps": float(self.ring.count), "online/episodes": float(len(finished))}
        if finished:
            returns, lengths, successes = zip(*finished, strict=True)
            metrics |= {"online/return": float(np.mean(returns)), "online/length": float(np.mean(lengths))}
            known = [success for success in successes if success is not None]
            if known:
                metrics["online/success"] = float(np.mean(known))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything but the replay itself, of which the file has it all."""
        self.journal.sync()
        lanes = [
            {
                "episode": int(episode),
                "return": float(total),
                "length": int(length),
                "success": bool(s),
                "told": bool(t),
            }
            for episode, total, length, s, t in zip(
                self.episodes, self.returns, self.lengths, self.successes, self.told, strict=True
            )
        ]
        return {
            "transitions": self.ring.count,
            "records": self.journal.count,
            "checksum": self.journal.checksum,
            "begun": self.begun,
            "lanes": lanes,
            "observations": torch.from_numpy(self.latest(self.observations).copy()),
            "finished": [list(episode) for episode in self._finished],
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[np.ndarray]:
        """Read the replay back; returns each lane's actions in the episode under way, ``(length, action_dim)``.

        Raises:
            CheckpointError: the state is no such one, or the file does not hold what it speaks of.
        """
        try:
            lanes, count = state["lanes"], self.settings.num_envs
            if len(lanes) != count:
                raise CheckpointError(
                    f"the online phase began with {len(lanes)} environments, not {count}: leave online.num_envs at that"
                )
            self.begun = int(state["begun"])
            self.episodes[:] = [lane["episode"] for lane in lanes]
            self.lengths[:] = [lane["length"] for lane in lanes]
            self.returns[:] = [lane["return"] for lane in lanes]
            self.successes[:] = [lane["success"] for lane in lanes]
            self.told[:] = [lane["told"] for lane in lanes]
            self._finished = [(float(total), int(length), success) for total, length, success in state["finished"]]
            latest = state["observations"].numpy()
            records, checksum = int(state["records"]), int(state["checksum"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's record of the online phase is not as mfrl wrote it: {error!r}"
            ) from error
        actions = [np.zeros((0, self.policy.action_dim), np.float32)] * len(lanes)

        def watched() -> Iterator[np.ndarray]:
            for block in self.journal.read(records, checksum):
                for lane in range(len(lanes)):
                    own = block[block["lane"] == lane]
                    last = np.flatnonzero(~own["acts"])
                    if last.size:
                        actions[lane], own = actions[lane][:0], own[last[-1] + 1 :]
                    actions[lane] = np.concatenate([actions[lane], own["action"]])
                yield block

        self.ring.restore(watched(), latest)
        if self.ring.count != state["transitions"] or [len(a) for a in actions] != self.lengths.tolist():
            raise CheckpointError(f"{self.journal.path} does not hold the episodes that the checkpoint speaks of")
        return actions


class Online:
    """The online phase of one seed or of several members of a population, each with its environments and its replay.

    Args:
        settings: of the phase.
        algorithms: the members.
        folders: their run folders.
        data: what the phase starts from, which also names the environment and labels its steps.
        batch_size: of each member's batches.
        first_update: number of the phase's first update.
        warn: called with a sentence that the user should read.

    Attributes:
        seconds: spent on acting and stepping.
    """

    def __init__(
        self,
        settings: OnlineSettings,
        algorithms: Sequence[Algorithm],
        folders: Sequence[Path],
        data: OfflineData,
        batch_size: int,
        first_update: int,
        warn: Callable[[str], None],
    ) -> None:
        self.settings, self.data, self.batch_size, self.first_update = settings, data, batch_size, first_update
        self.players = [
            Player(algorithm, settings, folder / JOURNAL) for algorithm, folder in zip(algorithms, folders, strict=True)
        ]
        for player in self.players:
            player.augment = data.augment and data.augment.of(player.seed)
        self.seconds, self.warn = 0.0, warn
        self._env: VectorEnv | None = None
        self._saved: dict[int, dict[str, Any]] = {}  # by member, until the phase starts
        self._actions: np.ndarray | None = None  # of a step that has begun
        self._offline: Transitions | None = None
        self._ready = False

    @property
    def steps(self) -> int:
        """Transitions that a member has made."""
        return self.players[0].ring.count if self._ready else 0

    def chunks(self, first: int, last: int, size: int, marks: tuple[int, ...]) -> list[OnlineChunk]:
        """The updates from ``first`` to ``last`` that are of the phase, see :func:`chunk_ends`."""
        first = max(first, self.first_update)
        ends = [first, *chunk_ends(first, last, size, marks)]
        return [OnlineChunk(self, begin, end) for begin, end in pairwise(ends)]

    def start(self) -> None:
        """Begin the phase, or go on with it where a checkpoint left it. Does nothing the second time."""
        if self._ready:
            return
        device = self.players[0].algorithm.normalizer.mean.device
        for player in self.players:
            player.start(device)
        if self.data.train is not None:
            self._offline = self.data.on_device(device)
        actions = [
            player.load_state_dict(self._saved[m]) if m in self._saved else None
            for m, player in enumerate(self.players)
        ]
        self._ready = True
        if actions[0] is None:
            self._begin()
        else:
            self._play_again([lane for member in actions if member is not None for lane in member])
        self._saved.clear()

    def advance(self, k: int) -> None:
        """Make the steps that update ``k`` needs.

        Raises:
            Interrupted: a signal has come.
            EnvError, WorkerError: an environment fails.
            DivergedError: no policy gives finite actions any more.
        """
        start = time.perf_counter()
        needed, lanes = self.settings.needed(k - self.first_update), self.settings.num_envs
        if not self.settings.overlap:
            while self.steps < needed:
                self._launch()
                self._finish()
        else:
            while self.steps + lanes * (self._actions is not None) < needed:
                self._finish()
                self._launch()
            if self.steps == 0:
                self._finish()
        self.seconds += time.perf_counter() - start

    def batch(self, k: int, words: Sequence[tuple[Tensor, Tensor]]) -> Batch:
        """The batch of update ``k``; for several members every field has a leading axis of members.

        Args:
            words: of every member, the random words of the indices ``(2 batch,)``: of all or of the data's half, and of
                the interaction's half.
        """
        visible = self.settings.needed(k - self.first_update)
        if self.settings.overlap:
            visible = max(visible - self.settings.num_envs, self.settings.num_envs)
        batches = [self._batch(player, k, visible, *own) for player, own in zip(self.players, words, strict=True)]
        return batches[0] if len(batches) == 1 else Batch.together(batches, torch.stack)

    def words(self, first: int, end: int) -> list[list[tuple[Tensor, Tensor]]]:
        """For each update its ``words`` of :meth:`batch`."""
        device = self.players[0].ring.device if self._offline is None else self._offline.starts.device
        half = self.batch_size // 2 if self.settings.balanced else 0
        k = torch.arange(first, end, device=device)
        keys = torch.stack([key_of(player.seed) for player in self.players]).to(device)
        drawn = index_words(keys, "batch", k, self.batch_size - half), index_words(keys, "replay", k, half)
        return [list(zip(*of_an_update, strict=True)) for of_an_update in zip(*drawn, strict=True)]

    def pop_metrics(self, member: int = 0) -> dict[str, float]:
        """The scores of a member's interaction since the last call."""
        return self.players[member].pop_metrics() if self._ready else {}

    def state_dict(self, member: int = 0) -> dict[str, Any] | None:
        """What a checkpoint holds of a member's phase; None before it begins."""
        if not self._ready:
            return self._saved.get(member)
        self._finish()
        return self.players[member].state_dict()

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """Go on from what :meth:`state_dict` returned, once the phase starts."""
        self._saved[member] = state

    def close(self) -> None:
        """Stop the environments and close the files."""
        if self._env is not None:
            self._env.close()
            self._env = None
        for player in self.players:
            player.journal.close()

    # ---- environments

    @property
    def env(self) -> VectorEnv:
        """The environments of all members, those of a member side by side."""
        if self._env is None:
            c, count = self.settings, self.settings.num_envs * len(self.players)
            workers = c.workers
            if workers is None and count == 1:
                workers = 1 if c.overlap else 0
            self._env = VectorEnv(self.data.env, count, workers, render=self.data.env.observes_pixels)
        return self._env

    def _slots(self, member: int) -> slice:
        lanes = self.settings.num_envs
        return slice(member * lanes, (member + 1) * lanes)

    def _begin(self) -> None:
        lanes = np.arange(self.settings.num_envs)
        seeds = [seed for player in self.players for seed in player.next_seeds(lanes)]
        observations = self.env.reset(range(len(seeds)), seeds)
        for m, player in enumerate(self.players):
            player.algorithm.begin_online()
            player.begin(observations[self._slots(m)])

    def _play_again(self, actions: Sequence[np.ndarray]) -> None:
        """Bring every environment back to where it was in the episode under way."""
        lanes = np.arange(self.settings.num_envs)
        seeds = [seed for player in self.players for seed in player.seeds(lanes)]
        observations = self.env.reset(range(len(seeds)), seeds)
        lengths = np.array([len(own) for own in actions])
        given = np.zeros((len(actions), self.players[0].policy.action_dim), np.float32)
        for t in range(lengths.max()):
            signals.leave_if_asked()
            active = lengths > t
            given[active] = [own[t] for own in actions if len(own) > t]
            observations = self.env.step(given, active).observations
        for m, player in enumerate(self.players):
            now, saved = observations[self._slots(m)], self._saved[m]["observations"].numpy()
            player.observations = now
            same = (player.latest(now) == saved).reshape(len(lanes), -1).all(1)
            if not same.all():
                self._abandon(m, np.flatnonzero(~same), saved)

    def _abandon(self, member: int, lanes: np.ndarray, saved: np.ndarray) -> None:
        """Cut episodes off where they were saved: played again, their environment came out elsewhere."""
        player = self.players[member]
        self.warn(
            f"{self.data.env.env_id} does not come out where it was when an episode is played again from its seed and "
            f"actions: {len(lanes)} of {self.settings.num_envs} episodes under way were cut off, and new ones begun"
        )
        records = np.zeros(len(lanes), player.journal.record)
        records["observation"], records["lane"] = saved[lanes], lanes
        player.journal.add(records)
        seeds = player.next_seeds(lanes)
        observations = self.env.reset((self._slots(member).start + lanes).tolist(), seeds)
        player.observations = observations[self._slots(member)]
        player.ring.begin_anew(lanes, player.latest(player.observations)[lanes])

    def _launch(self) -> None:
        """Choose actions and begin a step with them."""
        signals.leave_if_asked()
        t = self.steps // self.settings.num_envs
        actions = np.zeros((self.env.num_envs, self.players[0].policy.action_dim), np.float32)
        chosen = [player.act(t) for player in self.players]  # on a GPU all are at work before the first is waited for
        for m, own in enumerate(chosen):
            actions[self._slots(m)] = own.float().cpu().numpy().clip(-1.0, 1.0)
        finite = np.isfinite(actions).all(1)
        if not finite.any():
            raise DivergedError(
                f"the policy's action in online step {self.steps:,} is not finite: {actions[0].tolist()}"
            )
        actions[~finite] = 0.0  # of a member that has diverged: it ends when its scalars are logged
        self.env.start_step(actions)
        self._actions = actions

    def _finish(self) -> None:
        """Wait for the step that has begun, if there is one, and store it."""
        if self._actions is None:
            return
        actions, self._actions = self._actions, None
        step = self.env.finish_step()
        self._refuse_nonfinite(step)
        rewards, terminated = self.data.labels(step.observations, step.rewards, step.terminated)
        each = [(player, self._slots(m)) for m, player in enumerate(self.players)]
        steps = [Step(*(field[slots] for field in step)) for _, slots in each]
        seeds: dict[int, int] = {}
        for (player, slots), own in zip(each, steps, strict=True):
            ended = player.score(own)
            seeds |= zip((slots.start + ended).tolist(), player.next_seeds(ended), strict=True)
        observations = self.env.reset(list(seeds), list(seeds.values())) if seeds else step.observations
        for (player, slots), own in zip(each, steps, strict=True):
            player.store(actions[slots], rewards[slots], 1.0 - terminated[slots], own, observations[slots])

    def _refuse_nonfinite(self, step: Step) -> None:
        for what, values in (("an observation", step.observations), ("a reward", step.rewards)):
            if not np.isfinite(values).all():
                raise outcome.not_finite(self.data.env.env_id, what, f"in online step {self.steps:,}")

    # ---- batches

    def _batch(self, player: Player, k: int, visible: int, words: Tensor, replay_words: Tensor) -> Batch:
        ring, data, algorithm = player.ring, self._offline, player.algorithm
        arguments = algorithm.discount, algorithm.next_actions
        if self.settings.balanced:
            assert data is not None, "a balanced run has data"
            index = ring.first + below(replay_words, visible - ring.first)
            halves = data.gather(below(words, len(data)), *arguments), ring.gather(index.to(ring.device), *arguments)
            batch = Batch.together(halves, torch.cat)
        elif data is None:
            batch = ring.gather(ring.first + below(words, visible - ring.first), *arguments)
        else:
            before = len(data)
            oldest = min(max(before + visible - self.settings.capacity, 0), before)
            # An episode's last state takes a place in the ring too, so that it may be full while some data are left.
            index = oldest + below(words, before - oldest + visible - ring.first)
            offline = data.gather(index.clamp(max=before - 1), *arguments)
            online = ring.gather(ring.first + (index - before).clamp(min=0).to(ring.device), *arguments)
            batch = Batch.together([online, offline], _chosen_by((index >= before).to(ring.device)))
        return batch if player.augment is None else player.augment(batch, k)


def _chosen_by(which: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Row by row, of two tensors the first where ``which`` ``(batch,)`` says so."""

    def choose(fields: list[Tensor]) -> Tensor:
        first, second = fields
        return torch.where(which.view(-1, *[1] * (first.ndim - 1)), first, second)

    return choose


@dataclass(frozen=True)
class OnlineChunk:
    """Several updates of the online phase, which Lightning handles as one batch. Iterating steps the environments."""

    online: Online
    first: int
    end: int

    def __iter__(self) -> Iterator[Batch]:
        self.online.start()  # only now, after the updates before
        words = self.online.words(self.first, self.end)
        for k in range(self.first, self.end):
            self.online.advance(k)
            yield self.online.batch(k, words[k - self.first])
