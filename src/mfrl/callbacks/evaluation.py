"""Evaluates a policy in its environment at chosen updates, with figures and videos."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mfrl.callbacks import figures
from mfrl.callbacks.periodic import data_of, due, keep_until, record
from mfrl.callbacks.progress import Progress
from mfrl.envs.evaluation import Evaluation, Evaluator
from mfrl.envs.maze import MazeLayout
from mfrl.envs.spec import EnvSpec
from mfrl.envs.video import tensorboard_gif, write_video
from mfrl.errors import DivergedError, EnvError

if TYPE_CHECKING:
    from mfrl.algorithms.policy import Policy
    from mfrl.data.storage import Transitions
    from mfrl.learning.training import Trained, Training

FPS = 15


class Evaluate(L.Callback):
    """Evaluates every ``every`` updates and after the last one, over episodes with the same seeds each time.

    Evaluations before the last one can have fewer episodes (``interim_episodes``): the episodes of a policy that still
    fails are long, as only the time limit ends them.

    Each evaluation is one line of ``eval.jsonl`` with every episode's seed, return, length and, if the environment
    reports it, success. Losses on the validation split, if there is one, are logged as ``val/...``. Figures go to
    TensorBoard: action samples and, for mazes, paths and values.

    Args:
        spec: the environment.
        run_dir: the folder of ``eval.jsonl`` and ``videos/``.
        every: number of updates between evaluations.
        episodes: number of episodes of the last evaluation.
        num_envs, workers, seed: see :class:`mfrl.envs.evaluation.Evaluator`.
        videos: number of episodes that each evaluation films; 0 needs no renderer.
        progress: the progress bar, which also prints the results.
        interim_episodes: number of episodes of the other evaluations, at most ``episodes``; None: ``episodes``.
        device: where the policy acts, as "cpu"; None: where it trains.
    """

    def __init__(
        self,
        spec: EnvSpec,
        run_dir: str | Path,
        every: int,
        episodes: int,
        num_envs: int,
        workers: int | None,
        seed: int,
        videos: int,
        progress: Progress,
        interim_episodes: int | None = None,
        device: str | None = None,
    ) -> None:
        self.spec, self.run_dir = spec, Path(run_dir)
        self.every, self.episodes, self.videos = every, episodes, videos
        self.interim_episodes = interim_count(episodes, interim_episodes)
        self.num_envs, self.workers, self.seed = num_envs, workers, seed
        self.progress = progress
        self.device = device
        self.evaluator: Evaluator | None = None
        self._done: list[int] = []  # the updates at which an earlier attempt of the run has evaluated

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self.keep(trainer, pl_module)
        with pl_module.aside():
            self.evaluator = self.start()
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        if self.is_due(pl_module):
            with pl_module.aside():
                (result,) = self.run([pl_module])
                self.record(trainer, pl_module, result)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.evaluator is not None:
            self.evaluator.close()
            self.evaluator = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not call it after an error

    def keep(self, trainer: L.Trainer, pl_module: Trained) -> None:
        """Keep the evaluations of an earlier attempt up to this update, and drop later ones."""
        self._done = keep_until(self.run_dir, pl_module.updates)

    def start(self, policies: int = 1) -> Evaluator:
        """Start the environments, and check rendering if episodes are filmed.

        This happens before the first update, so that a simulator or renderer that does not work is noticed at once.

        Args:
            policies: number of policies that are evaluated side by side.

        Raises:
            EnvError: an environment or the renderer does not work.
        """
        evaluator = Evaluator(self.spec, self.num_envs, self.workers, self.seed, policies)
        if self.videos:
            evaluator.check_filming()
        _ = evaluator.env
        return evaluator

    def is_due(self, pl_module: Trained) -> bool:
        """Whether to evaluate now. Update 0 is evaluated where a run begins online, which is what it starts from."""
        begun = pl_module.updates > 0 or pl_module.changes_phase
        return begun and due(pl_module, self.every) and pl_module.updates not in self._done

    def run(self, modules: Sequence[Trained]) -> list[Evaluation | DivergedError | EnvError]:
        """Evaluate one module, or several members of a population side by side.

        Returns:
            for each module its evaluation, or the error that ended it.
        """
        assert self.evaluator is not None, "on_train_start starts it"
        first = modules[0]
        last = first.updates == first.total_updates or (first.changes_phase and first.updates > 0)
        episodes = self.episodes if last else self.interim_episodes
        task = self.progress.bar.add_task("evaluate", total=episodes * len(modules), note="")

        def show(finished: int, rates: Sequence[float]) -> None:
            ends = [f"{rate:.2f}" for rate in (min(rates), max(rates))] if rates else []
            note = f"success {' to '.join(dict.fromkeys(ends))}" if ends else ""
            self.progress.bar.update(task, completed=finished, note=note)

        results = self.evaluator.run_each(
            [self.acting(module.policy()) for module in modules],
            episodes,
            progress=show,
            record_paths=0 if self.evaluator.env.signature.maze is None else episodes,
            video_episodes=self.videos,
        )
        self.progress.bar.remove_task(task)
        return results

    def acting(self, policy: Policy) -> Policy:
        """The policy with what is constant folded, or a copy of it on another device than it trains on."""
        return (policy if self.device is None else copy.deepcopy(policy).to(self.device)).folded()

    def record(self, trainer: L.Trainer, pl_module: Training, result: Evaluation | DivergedError | EnvError) -> None:
        """Print and log a result of :meth:`run`, and write it to files, with figures and videos.

        Raises:
            DivergedError, EnvError: the result is an error, or a score is not finite.
        """
        if isinstance(result, Exception):
            raise result
        record(trainer, pl_module, self.run_dir, self.progress, result)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._draw(logger.experiment, trainer, pl_module, result)
        for number, frames in enumerate(result.frames):
            write_video(frames, self.run_dir / "videos" / f"update={pl_module.updates}-episode={number}.mp4", FPS)

    def _draw(self, writer: Any, trainer: L.Trainer, pl_module: Training, result: Evaluation) -> None:
        data = data_of(trainer).train
        assert self.evaluator is not None
        k, layout, policy = pl_module.updates, self.evaluator.env.signature.maze, pl_module.policy()
        # TensorBoard shows figures in the order of their names.
        if layout is not None and result.successes is not None:
            writer.add_figure("figures/paths", figures.maze_paths(layout, result.paths, result.successes.tolist()), k)
        if data is not None:  # a run that began online has none to compare with
            samples = action_samples(policy, data, in_maze=layout is not None)
            writer.add_figure("figures/samples", figures.action_samples(*samples), k)
        if layout is not None and policy.critic is not None and pl_module.spec.image_shape is None:
            middle = np.asarray(pl_module.spec.observation_mean, dtype=np.float32)
            xy, values = maze_values(policy, layout, middle)
            writer.add_figure("figures/value", figures.value_map(layout, xy, values), k)
        for number, frames in enumerate(result.frames):
            tensorboard_gif(writer, f"videos/episode_{number}", frames, k, FPS)
        writer.flush()


def interim_count(episodes: int, interim_episodes: int | None) -> int:
    """The number of episodes of an evaluation before the last one, at most ``episodes``."""
    return min(interim_episodes or episodes, episodes)


def action_samples(
    policy: Policy,
    data: Transitions,
    states: int = 4,
    samples: int = 256,
    neighbours: int = 64,
    in_maze: bool = False,
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Sample one-step actions in a few states of the data, and collect the data's actions near each of these states.

    States and noise are the same in each call, so that the figures of a run can be compared. Images are compared by
    their latest frames.

    Args:
        states, samples: number of states, and of actions in each.
        neighbours: number of the nearest states whose actions are collected, for each state.
        in_maze: the first two numbers of an observation are x and y.

    Returns:
        samples ``(states, samples, action_dim)``, without best of N; for each state the data's actions
        ``(neighbours, action_dim)``; and for each state a title: its place in the maze, or its row in the data.
    """
    generator = torch.Generator().manual_seed(0)
    images = data.observations.ndim > 2
    index = torch.randint(len(data), (1_000 if images else 20_000,), generator=generator)
    pool = data[index.to(data.starts.device)]
    points = pool.observations[:, -1].flatten(1).float() if images else pool.observations
    nearest = torch.cdist(points[:states], points).topk(neighbours, largest=False).indices
    chosen = pool.observations[:states]
    noise = policy.sample_noise((samples, states, policy.action_dim), generator).to(chosen.device)
    with torch.no_grad():
        drawn = policy.candidates(chosen, noise)
    actions = pool.actions[nearest]
    if in_maze and not images:
        normalizer = policy.normalizer
        places = (chosen.to(normalizer.mean.device) * normalizer.std + normalizer.mean)[:, :2]
        names = [f"x = {x:.1f}, y = {y:.1f}" for x, y in places.tolist()]
    else:
        names = [f"transition {number:,}" for number in index[:states].tolist()]
    return drawn.transpose(0, 1).cpu().numpy(), list(actions.cpu().numpy()), names


def maze_values(policy: Policy, layout: MazeLayout, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The critic's value of the policy over the free cells of a maze.

    Args:
        start: an observation ``(observation_dim,)``, e.g. the data's mean. Its first two numbers, x and y, are replaced
            by each point's.

    Returns:
        points ``(n, 2)`` and values ``(n,)``.
    """
    xy = layout.free_points(resolution=8)
    observations = torch.from_numpy(np.repeat(start[None], len(xy), axis=0)).float()
    observations[:, :2] = torch.from_numpy(xy)
    noise = policy.sample_noise((8, len(xy), policy.action_dim), torch.Generator().manual_seed(0))
    with torch.no_grad():
        return xy, policy.value(observations, noise).cpu().numpy()
