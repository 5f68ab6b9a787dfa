"""Evaluates by comparing samples of the policy with samples of a known distribution, and draws figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from mfrl.callbacks.periodic import Periodic, record
from mfrl.callbacks.progress import Progress
from mfrl.envs.spec import EnvSpec
from mfrl.study import figures
from mfrl.study.evaluate import SampleEvaluation, SampleEvaluator, displaced_lines, noise_lines
from mfrl.study.toys import find_toy

if TYPE_CHECKING:
    from mfrl.learning.training import Training


class EvaluateSamples(Periodic):
    """Evaluates ``samples`` actions before the first update, every ``every`` updates and at the end.

    Every evaluation uses the same noise.

    Each evaluation is one line of ``eval.jsonl``; losses on the validation split are logged as ``val/...`` beside it.
    The figures (actions beside the data; the map from noise to action) go to TensorBoard.

    Args:
        spec: the environment, which names the toy.
        run_dir: the folder of ``eval.jsonl``.
        every: number of updates between evaluations.
        samples: number of actions in an evaluation.
        seed: seed of the noise and of the data's samples.
        progress: the progress bar, which also prints the results.
    """

    before_training = True

    def __init__(
        self, spec: EnvSpec, run_dir: str | Path, every: int, samples: int, seed: int, progress: Progress
    ) -> None:
        super().__init__(run_dir, every, progress)
        self.evaluator = SampleEvaluator(find_toy(spec.env_id), samples, seed)

    def evaluate(self, trainer: L.Trainer, pl_module: Training) -> None:
        result = self.evaluator.run(pl_module.policy().folded())
        record(trainer, pl_module, self.run_dir, self.progress, result)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._draw(logger.experiment, pl_module, result)

    def _draw(self, writer: Any, pl_module: Training, result: SampleEvaluation) -> None:
        k, policy, toy = pl_module.updates, pl_module.policy(), self.evaluator.toy
        clouds = {"data": result.data, "policy": result.drawn}
        writer.add_figure("figures/samples", figures.sample_clouds(clouds), k)
        maps = {"noise": noise_lines(policy.sigma)}
        for group in range(toy.num_groups):
            name = "action" if toy.num_groups == 1 else f"action, observation {group + 1}"
            maps[name] = displaced_lines(policy, toy, group)
        writer.add_figure("figures/noise_to_action", figures.displaced_grids(maps), k)
        writer.flush()
