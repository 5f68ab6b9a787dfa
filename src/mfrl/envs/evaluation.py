"""Evaluation of policies: fixed episodes, many environments at once, one batched action call a step.

The start of episode i is a function of (evaluation seed, i), and the policy's noise at step s of (evaluation seed, i,
s). Runs are therefore paired episode by episode. The number of environments side by side changes nothing but the
rounding of the batched call.

Several policies can be evaluated side by side. Each acts in its own environments, as many as it would have alone, and
one call steps all of them. A policy's numbers are the same to the last bit as if it were alone.

An episode is a success if any of its steps reports one. OGBench's single-task environments terminate at success, so
that this is the ``info["success"]`` of the last step, which OGBench's own evaluation reports. In environments that go
on after a success, a solved task stays solved. If no step of any episode reports a success or a failure
(``info["success"]`` or ``info["is_success"]``), the evaluation has no success rate.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mfrl.envs import outcome
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import Step, VectorEnv
from mfrl.errors import DivergedError, EnvError
from mfrl.randomness import derived_seed
from mfrl.system import signals

#: So many environments at most are stepped side by side: one with OGBench's arm takes up to 170 MB and a second.
MOST_SIDE_BY_SIDE = 40

_NOISE_BLOCK = 64  # steps of noise drawn at a time: long episodes need not hold all of theirs

Progress = Callable[[int, int, float | None], None]


class Actor(Protocol):
    """The interface of a policy that can be evaluated.

    Attributes:
        action_dim: size of an action.
        num_candidates: number of noise vectors for an action.
    """

    action_dim: int
    num_candidates: int

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise for actions, on the generator's device; the last dimension of ``shape`` is action_dim."""
        ...

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions ``(batch, action_dim)`` in [-1, 1].

        Args:
            observations: ``(batch, ...)`` as the environment gives them, float32 or uint8, on the CPU.
            noise: ``(candidate, batch, action_dim)``, on the CPU.
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, episode by episode; arrays are ``(episodes,)``.

    Attributes:
        seeds: environment seeds.
        returns: undiscounted sums of rewards.
        successes: bool; None if the environment reported neither successes nor failures.
        lengths: numbers of steps.
        seconds: wall time.
        paths: ``(length + 1, 2)`` positions of the recorded episodes, where the environment has positions.
        frames: uint8 ``(frames, height, width, 3)`` of the filmed episodes.
        frame_stride: environment steps between two frames.
        reference_returns: returns that score 0 and 100, where the benchmark has them.
    """

    seeds: np.ndarray
    returns: np.ndarray
    successes: np.ndarray | None
    lengths: np.ndarray
    seconds: float
    paths: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    frame_stride: int = 1
    reference_returns: tuple[float, float] | None = None

    def summary(self) -> dict[str, float]:
        """Means over episodes by their logged names; success and normalised score only if they are defined."""
        means = {} if self.successes is None else {"eval/success": float(self.successes.mean())}
        means |= {"eval/return": float(self.returns.mean()), "eval/length": float(self.lengths.mean())}
        if self.reference_returns is not None:
            low, high = self.reference_returns
            means["eval/normalized_score"] = 100.0 * (means["eval/return"] - low) / (high - low)
        return means

    def to_json_dict(self) -> dict[str, Any]:
        """The summary and every episode's numbers, as plain data."""
        return {
            **self.summary(),
            "episodes": len(self.seeds),
            "seconds": self.seconds,
            "seeds": self.seeds.tolist(),
            "returns": self.returns.tolist(),
            **({} if self.successes is None else {"successes": self.successes.tolist()}),
            "lengths": self.lengths.tolist(),
        }


class Evaluator:
    """Runs policies in environments that stay alive between evaluations, because starting them takes seconds.

    Args:
        spec: the environment.
        num_envs: number of environments of each policy, which is also the batch size of every action call.
        workers: number of processes that step the environments; 0 steps them in this process, None takes one a core.
        seed: of the episodes; keep it fixed to compare runs episode by episode.
        policies: number of policies side by side. If they would need more than ``MOST_SIDE_BY_SIDE`` environments,
            they are evaluated in several turns.
    """

    def __init__(
        self, spec: EnvSpec, num_envs: int = 10, workers: int | None = None, seed: int = 0, policies: int = 1
    ) -> None:
        self.spec, self.num_envs, self.workers, self.seed = spec, num_envs, workers, seed
        self._at_once = _turn(policies, max(1, MOST_SIDE_BY_SIDE // num_envs))
        self._env: VectorEnv | None = None
        self._renders = spec.observes_pixels

    @property
    def env(self) -> VectorEnv:
        """The environments, which start at the first use; their ``signature`` has the maze and the shapes."""
        if self._env is None:
            self._env = VectorEnv(self.spec, self._at_once * self.num_envs, self.workers, render=self._renders)
        return self._env

    def check_filming(self) -> None:
        """Start the environments so that they can be filmed, and render one frame.

        Raises:
            EnvError: no frame can be rendered.
        """
        if not self._renders:
            self.close()
            self._renders = True
        try:
            self.env.reset([0], [self.seed])
            self.env.render([0])
        except BaseException:
            self.close()
            raise

    def run(self, policy: Actor, episodes: int, *, progress: Progress | None = None, **recording: int) -> Evaluation:
        """Run episodes 0 to ``episodes - 1`` of one policy.

        Args:
            progress: called whenever episodes have finished with (finished, episodes, success rate so far or None).
            recording: see :meth:`run_each`, which raises further errors.

        Raises:
            DivergedError: the policy gave an action that is not finite.
            EnvError: the environment gave an observation or a reward that is not finite.
        """

        def report(finished: int, rates: Sequence[float]) -> None:
            if progress is not None:
                progress(finished, episodes, rates[0] if rates else None)

        (result,) = self.run_each([policy], episodes, progress=report, **recording)
        if isinstance(result, Exception):
            raise result
        return result

    # Not inference mode: what the policy caches here, training may later use in a graph.
    @torch.no_grad()
    def run_each(
        self,
        policies: Sequence[Actor],
        episodes: int,
        *,
        progress: Callable[[int, Sequence[float]], None] | None = None,
        record_paths: int = 0,
        video_episodes: int = 0,
        max_frames: int = 200,
    ) -> list[Evaluation | DivergedError | EnvError]:
        """Run episodes 0 to ``episodes - 1`` of each policy, side by side.

        Args:
            progress: called whenever episodes have finished with the number of all that have, and the success rate so
                far of each policy that has one.
            record_paths: keep the positions of this many first episodes of each policy.
            video_episodes: film this many first episodes of each, if need be in workers restarted for rendering. A film
                takes 40 MB.
            max_frames: frames are taken every so many steps that a full-length episode has about this many.

        Returns:
            for each policy its evaluation, or the error that ended it: the policy gave an action that is not finite, or
            its environment an observation or a reward. The other policies go on.

        Raises:
            ValueError: a policy's actions have the wrong shape.
            EnvError, WorkerError: the environments failed for all policies.
            Interrupted: a signal has come, if signals are noted.

        Any error, Ctrl-C included, closes the environments; a later call starts them anew.
        """
        if episodes < 1:
            raise ValueError(f"an evaluation needs at least one episode, not {episodes}")
        if video_episodes and not self._renders:
            self.close()
            self._renders = True
        seeds = np.array([derived_seed(self.seed, "evaluation episode", i) % 2**31 for i in range(episodes)])
        turn = _turn(len(policies), self._at_once)
        try:
            plays = []
            for number, policy in enumerate(policies):
                first = number % turn * self.num_envs
                recorder = _Recorder(self.env, first, record_paths, video_episodes, max_frames)
                plays.append(_Play(policy, self.spec, slice(first, first + self.num_envs), seeds, self.seed, recorder))

            def report() -> None:
                if progress is not None:
                    rates = [play.success_rate for play in plays]
                    progress(
                        sum(int(play.finished.sum()) for play in plays), [rate for rate in rates if rate is not None]
                    )

            for begin in range(0, len(plays), turn):
                self._run(plays[begin : begin + turn], report)
        except BaseException:
            self.close()  # an interrupted step leaves answers in the pipes that nobody waits for
            raise
        return [play.outcome() for play in plays]

    def _run(self, plays: Sequence[_Play], report: Callable[[], None]) -> None:
        env, started = self.env, time.perf_counter()
        actions = np.zeros((env.num_envs, plays[0].policy.action_dim), np.float32)
        self._start_episodes(plays)
        while any(play.active.any() for play in plays):
            signals.leave_if_asked()
            active = np.zeros(env.num_envs, np.bool_)
            # On a GPU all policies are at work before the first answer is waited for.
            for play, acted in [(play, play.act()) for play in plays if play.active.any()]:
                actions[play.slots] = play.checked(acted)
                active[play.slots] = play.active  # it may have left
            if not active.any():
                break
            step = env.step(actions, active)
            ended = [play.take(step) for play in plays]
            if any(ended):
                report()
                self._start_episodes(plays)
        for play in plays:
            play.seconds = (time.perf_counter() - started) / len(plays)

    def _start_episodes(self, plays: Sequence[_Play]) -> None:
        """Start the next episodes in all free slots."""
        seeds: dict[int, int] = {}
        for play in plays:
            seeds |= play.next_episodes()
        if seeds:
            observations = self.env.reset(list(seeds), list(seeds.values()))
            for play in plays:
                play.begin(observations)

    def close(self) -> None:
        """Stop the environments; a later ``run`` starts them again."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Play:
    """The episodes of one policy, in its own slots: which ones wait, which ones run, and their results.

    Args:
        slots: the policy's slots in the environments; this class counts them from 0.
        seeds: of the episodes ``(episodes,)``.
        seed: of the evaluation.

    Attributes:
        active: the slots with an episode, ``(num_envs,)`` bool.
        seconds: the policy's share of the time of all policies side by side.
    """

    def __init__(
        self, policy: Actor, spec: EnvSpec, slots: slice, seeds: np.ndarray, seed: int, recorder: _Recorder
    ) -> None:
        self.policy, self.slots, self.seconds = policy, slots, 0.0
        self._spec, self._seeds, self._recorder = spec, seeds, recorder
        episodes, num_envs = len(seeds), slots.stop - slots.start
        self.returns, self.lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        self.successes, self.told, self.finished = np.zeros((3, episodes), np.bool_)
        self._waiting = deque(range(episodes))
        self._playing = np.full(num_envs, -1)  # the episode in each slot; -1 in those that have run out of work
        self._begun = np.zeros(0, np.int64)  # slots
        self._noise = _NoiseStreams(policy, num_envs, seed)
        self._observations = np.zeros(0)
        self._error: DivergedError | EnvError | None = None

    @property
    def active(self) -> np.ndarray:
        return self._playing >= 0

    @property
    def success_rate(self) -> float | None:
        """The success rate of finished episodes; None if the environment reports no success."""
        known = self._error is None and self.finished.any() and self.told.any()
        return float(self.successes[self.finished].mean()) if known else None

    def next_episodes(self) -> dict[int, int]:
        """Put waiting episodes into free slots. Returns the environments to start, and their seeds."""
        slots = np.flatnonzero(~self.active)[: len(self._waiting)]
        self._playing[slots] = [self._waiting.popleft() for _ in slots]
        self._noise.restart(slots, self._playing[slots])
        self._begun = slots
        seeds = self._seeds[self._playing[slots]]
        return dict(zip((self.slots.start + slots).tolist(), seeds.tolist(), strict=True))

    def begin(self, observations: np.ndarray) -> None:
        """Take the first observations of started episodes; ``observations`` are those of all environments."""
        slots = self._begun
        self._observations = observations[self.slots]
        if slots.size and self._finite(slots):
            self._recorder.start(slots, self._playing[slots])

    def act(self) -> Tensor:
        """The next action of every slot, ``(num_envs, action_dim)``."""
        # Idle slots stay in the batch: with one shape, equal evaluations give equal numbers.
        return self.policy.act(torch.from_numpy(self._observations), self._noise.next())

    def checked(self, actions: Tensor) -> np.ndarray:
        """Actions on the CPU, clipped to [-1, 1]; an action that is not finite ends the policy's evaluation."""
        if actions.shape != (expected := (len(self._playing), self.policy.action_dim)):
            raise ValueError(f"policy gave actions {tuple(actions.shape)}, expected {expected}")
        on_cpu = actions.float().cpu().numpy()
        bad = np.flatnonzero(self.active & ~np.isfinite(on_cpu).all(axis=1))
        if bad.size:
            episode = self._playing[bad[0]]
            self._leave(
                DivergedError(
                    f"the policy's action in evaluation episode {episode}, step {self.lengths[episode]} is not finite: "
                    f"{on_cpu[bad[0]].tolist()}"
                )
            )
        return on_cpu.clip(-1.0, 1.0)

    def take(self, step: Step) -> bool:
        """Take a step of all environments; returns whether episodes have ended. NaN ends the policy's evaluation."""
        active = self.active
        if not active.any():
            return False
        own, now = Step(*(field[self.slots] for field in step)), self._playing[active]
        self.returns[now] += own.rewards[active]
        self.lengths[now] += 1
        self._observations = own.observations
        if not self._finite(np.flatnonzero(active)):
            return False
        self.successes[now] |= own.success[active]
        self.told[now] |= own.told[active]
        done = active & (own.terminated | own.truncated)
        self._recorder.add(self._playing, self.lengths, done)
        self.finished[self._playing[done]] = True
        self._playing[done] = -1
        return bool(done.any())

    def outcome(self) -> Evaluation | DivergedError | EnvError:
        """The evaluation, or the error that ended it."""
        return self._error or Evaluation(
            seeds=self._seeds,
            returns=self.returns,
            successes=self.successes if self.told.any() else None,
            lengths=self.lengths,
            seconds=self.seconds,
            paths=[np.stack(path) for path in self._recorder.paths.values()],
            frames=[np.stack(film) for film in self._recorder.films.values()],
            frame_stride=self._recorder.stride,
            reference_returns=self._spec.reference_returns,
        )

    def _finite(self, slots: np.ndarray) -> bool:
        """Whether observations and returns are finite; otherwise the error names the environment, not the policy."""
        playing = self._playing[slots]
        good = np.isfinite(self._observations[slots]).reshape(len(slots), -1).all(axis=1)
        what = "an observation"
        if good.all():
            good, what = np.isfinite(self.returns[playing]), "a reward"
        if not good.all():
            episode = playing[good.argmin()]
            where = f"in evaluation episode {episode} after {self.lengths[episode]} steps"
            self._leave(outcome.not_finite(self._spec.env_id, what, where))
        return bool(good.all())

    def _leave(self, error: DivergedError | EnvError) -> None:
        self._error = error
        self._playing[:] = -1
        self._waiting.clear()


class _NoiseStreams:
    """A stream of policy noise for each slot. Each episode restarts its slot's stream from the episode's seed."""

    def __init__(self, policy: Actor, num_envs: int, seed: int) -> None:
        self._policy, self._seed = policy, seed
        self._generators = [torch.Generator() for _ in range(num_envs)]
        self._steps = np.zeros(num_envs, np.int64)
        self._blocks = torch.zeros(num_envs, _NOISE_BLOCK, policy.num_candidates, policy.action_dim)
        self._slots = torch.arange(num_envs)

    def restart(self, slots: np.ndarray, episodes: np.ndarray) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._generators[slot].manual_seed(derived_seed(self._seed, "evaluation noise", int(episode)))
            self._steps[slot] = 0

    def next(self) -> Tensor:
        """Noise of this step for all slots, ``(candidate, num_envs, action_dim)``."""
        within = self._steps % _NOISE_BLOCK
        for slot in np.flatnonzero(within == 0):
            shape = tuple(self._blocks.shape[1:])
            self._blocks[slot] = self._policy.sample_noise(shape, self._generators[slot])
        self._steps += 1
        return self._blocks[self._slots, torch.from_numpy(within)].transpose(0, 1).contiguous()


class _Recorder:
    """Keeps the paths and the frames of the first episodes, by episode.

    Args:
        first: the slot of the environments that this class counts as 0.
    """

    def __init__(self, env: VectorEnv, first: int, record_paths: int, video_episodes: int, max_frames: int) -> None:
        self._env, self._first = env, first
        self._num_paths = record_paths if env.signature.has_position else 0
        self._num_films = video_episodes
        self.stride = max(1, math.ceil(env.signature.max_episode_steps / max_frames))
        self.paths: dict[int, list[np.ndarray]] = {i: [] for i in range(self._num_paths)}
        self.films: dict[int, list[np.ndarray]] = {i: [] for i in range(self._num_films)}

    def start(self, slots: np.ndarray, episodes: np.ndarray) -> None:
        """Note the state in which episodes begin."""
        self._note_positions(slots, episodes)
        self._film(slots, episodes)

    def add(self, playing: np.ndarray, lengths: np.ndarray, done: np.ndarray) -> None:
        """Note the state after a step; the frame only every ``stride`` steps and at the end."""
        slots = np.flatnonzero(playing >= 0)
        self._note_positions(slots, playing[slots])
        due = slots[(lengths[playing[slots]] % self.stride == 0) | done[slots]]
        self._film(due, playing[due])

    def _note_positions(self, slots: np.ndarray, episodes: np.ndarray) -> None:
        kept = episodes < self._num_paths
        if kept.any():
            for episode, xy in zip(episodes[kept], self._env.positions[self._first + slots[kept]], strict=True):
                self.paths[episode].append(xy)

    def _film(self, slots: np.ndarray, episodes: np.ndarray) -> None:
        kept = episodes < self._num_films
        if kept.any():
            frames = self._env.render((self._first + slots[kept]).tolist())
            for episode, frame in zip(episodes[kept], frames, strict=True):
                self.films[episode].append(frame)


def _turn(policies: int, most: int) -> int:
    """The number of policies in a turn, at most ``most``, so that all turns have about the same number."""
    return math.ceil(policies / math.ceil(policies / most))
