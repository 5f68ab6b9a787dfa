"""Evaluation of a policy: fixed episodes, many environments at once, one batched action call a step.

Episode i starts from a seed that depends on (evaluation seed, i) alone, and its policy noise at step s on
(evaluation seed, i, s) alone. So runs are paired episode by episode, and how many environments run side by
side changes nothing but floating-point rounding in the batched call.

An episode is a success if any of its steps reports one. In OGBench's single-task environments, which
terminate at success, that is the ``info["success"]`` of the last step, which OGBench's own evaluation
reports. In environments that go on after a success, a task once solved stays solved. Where no step of any episode tells
of a success or a failure (``info["success"]`` or ``info["is_success"]``), nothing is known, and nothing is reported.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mfrl.envs.spec import EnvError, EnvSpec
from mfrl.envs.vector import VectorEnv
from mfrl.errors import DivergedError
from mfrl.randomness import derived_seed
from mfrl.system import signals

_NOISE_BLOCK = 64  # steps of noise drawn at a time: long episodes need not hold all of theirs

Progress = Callable[[int, int, float | None], None]


class Actor(Protocol):
    """What can be evaluated.

    Attributes:
        action_dim: size of an action.
        num_candidates: how many noise vectors an action takes.
    """

    action_dim: int
    num_candidates: int

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise for actions, ``shape`` ending in action_dim, on the generator's device."""
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
    """What happened, episode by episode; arrays are ``(episodes,)``.

    Attributes:
        seeds: environment seeds.
        returns: undiscounted sums of rewards.
        successes: bool; None where the environment told of none, good or bad.
        lengths: steps.
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
        """Means over episodes by their logged names; success and normalised score only where they are defined."""
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
    """Runs a policy in environments that stay alive between evaluations, since starting them takes seconds.

    Args:
        spec: the environment.
        num_envs: environments side by side, which is also the batch of every action call.
        workers: processes they run in; 0 steps them here, None takes one a core.
        seed: of the episodes; keep it fixed to compare runs episode by episode.
    """

    def __init__(self, spec: EnvSpec, num_envs: int = 10, workers: int | None = None, seed: int = 0) -> None:
        self.spec, self.num_envs, self.workers, self.seed = spec, num_envs, workers, seed
        self._env: VectorEnv | None = None
        self._renders = spec.observes_pixels

    @property
    def env(self) -> VectorEnv:
        """The environments, started when first asked for; its ``signature`` has the maze and the shapes."""
        if self._env is None:
            self._env = VectorEnv(self.spec, self.num_envs, self.workers, render=self._renders)
        return self._env

    def check_filming(self) -> None:
        """Start the environments so that they can be filmed, and take one picture.

        Raises:
            EnvError: there is none to take.
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

    # Not inference mode: what the policy caches here, training may later use in a graph.
    @torch.no_grad()
    def run(
        self,
        policy: Actor,
        episodes: int,
        *,
        progress: Progress | None = None,
        record_paths: int = 0,
        video_episodes: int = 0,
        max_frames: int = 200,
    ) -> Evaluation:
        """Run episodes 0 to ``episodes - 1``.

        Args:
            progress: called whenever episodes have finished with (finished, episodes, success rate so far or None).
            record_paths: keep the positions of this many first episodes.
            video_episodes: film this many first episodes, if need be in workers restarted for rendering.
            max_frames: frames are taken every so many steps that a full-length episode has about this many.

        Raises:
            DivergedError: the policy gave an action that is not finite.
            ValueError: the policy's actions have the wrong shape.
            EnvError, WorkerError: from the environments, one that gives an observation or a reward that is not
                finite among them.
            Interrupted: a signal has come, where signals are noted.

        Whatever the error, Ctrl-C included, the environments are closed and a later call starts them afresh.
        """
        if episodes < 1:
            raise ValueError(f"an evaluation needs at least one episode, not {episodes}")
        if video_episodes and not self._renders:
            self.close()
            self._renders = True
        try:
            return self._run(policy, episodes, progress, record_paths, video_episodes, max_frames)
        except BaseException:
            self.close()  # an interrupted step leaves answers in the pipes that nobody waits for
            raise

    def _run(
        self,
        policy: Actor,
        episodes: int,
        progress: Progress | None,
        record_paths: int,
        video_episodes: int,
        max_frames: int,
    ) -> Evaluation:
        env, started = self.env, time.perf_counter()
        seeds = np.array([derived_seed(self.seed, "evaluation episode", i) % 2**31 for i in range(episodes)])
        noise = _NoiseStreams(policy, env.num_envs, self.seed)
        recorder = _Recorder(env, record_paths, video_episodes, max_frames)
        returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        successes, told, finished = np.zeros((3, episodes), np.bool_)
        waiting = deque(range(episodes))
        playing = np.full(env.num_envs, -1)  # the episode in each slot; -1 in those that have run out of work

        def start_episodes(slots: np.ndarray) -> np.ndarray:
            slots = slots[: len(waiting)]
            playing[slots] = [waiting.popleft() for _ in slots]
            noise.restart(slots, playing[slots])
            observations = env.reset(slots.tolist(), seeds[playing[slots]].tolist())
            self._refuse_nonfinite(observations, slots, playing, lengths)
            recorder.start(slots, playing[slots])
            return observations

        observations = start_episodes(np.arange(env.num_envs))
        while (active := playing >= 0).any():
            signals.leave_if_asked()
            # Idle slots stay in the batch: with one shape, equal evaluations give equal numbers.
            actions = policy.act(torch.from_numpy(observations), noise.next())
            step = env.step(_checked(actions, policy.action_dim, active, playing, lengths), active)
            now = playing[active]
            returns[now] += step.rewards[active]
            lengths[now] += 1
            slots = np.flatnonzero(active)
            self._refuse_nonfinite(step.observations, slots, playing, lengths, returns)
            successes[now] |= step.success[active]
            told[now] |= step.told[active]
            done = active & (step.terminated | step.truncated)
            recorder.add(playing, lengths, done)
            observations = step.observations
            if done.any():
                finished[playing[done]] = True
                playing[done] = -1
                if progress is not None:
                    success = float(successes[finished].mean()) if told.any() else None
                    progress(int(finished.sum()), episodes, success)
                if waiting:
                    observations = start_episodes(np.flatnonzero(done))
        return Evaluation(
            seeds=seeds,
            returns=returns,
            successes=successes if told.any() else None,
            lengths=lengths,
            seconds=time.perf_counter() - started,
            paths=[np.stack(path) for path in recorder.paths.values()],
            frames=[np.stack(film) for film in recorder.films.values()],
            frame_stride=recorder.stride,
            reference_returns=self.spec.reference_returns,
        )

    def _refuse_nonfinite(
        self,
        observations: np.ndarray,
        slots: np.ndarray,
        playing: np.ndarray,
        lengths: np.ndarray,
        returns: np.ndarray | None = None,
    ) -> None:
        """Say that it was the environment, before the policy is shown what no policy can act on."""
        good = np.isfinite(observations[slots]).reshape(len(slots), -1).all(axis=1)
        what = "an observation"
        if good.all() and returns is not None:
            good, what = np.isfinite(returns[playing[slots]]), "a reward"
        if not good.all():
            episode = playing[slots[good.argmin()]]
            raise EnvError(
                f"{self.spec.env_id} gave {what} that is not finite, in evaluation episode {episode} after "
                f"{lengths[episode]} steps. The policy's actions were finite until then: look for the fault in the "
                "environment, e.g. in a simulation that blew up"
            )

    def close(self) -> None:
        """Stop the environments; a later ``run`` starts them again."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NoiseStreams:
    """A stream of policy noise for each slot, started over from its episode's own seed."""

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
    """Keeps the paths and the frames of the first episodes, by episode."""

    def __init__(self, env: VectorEnv, record_paths: int, video_episodes: int, max_frames: int) -> None:
        self._env = env
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
            for episode, xy in zip(episodes[kept], self._env.positions[slots[kept]], strict=True):
                self.paths[episode].append(xy)

    def _film(self, slots: np.ndarray, episodes: np.ndarray) -> None:
        kept = episodes < self._num_films
        if kept.any():
            for episode, frame in zip(episodes[kept], self._env.render(slots[kept].tolist()), strict=True):
                self.films[episode].append(frame)


def _checked(
    actions: Tensor, action_dim: int, active: np.ndarray, playing: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Actions on the CPU, clipped to [-1, 1], or the reason why they cannot be taken."""
    if actions.shape != (len(active), action_dim):
        raise ValueError(f"policy gave actions {tuple(actions.shape)}, expected {(len(active), action_dim)}")
    on_cpu = actions.float().cpu().numpy()
    bad = np.flatnonzero(active & ~np.isfinite(on_cpu).all(axis=1))
    if bad.size:
        episode = playing[bad[0]]
        raise DivergedError(
            f"the policy's action in evaluation episode {episode}, step {lengths[episode]} is not finite: "
            f"{on_cpu[bad[0]].tolist()}"
        )
    return on_cpu.clip(-1.0, 1.0)
