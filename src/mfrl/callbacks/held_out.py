"""Evaluation without an environment: the losses on data held out, at chosen updates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from mfrl.callbacks.evaluation import due, held_out, keep_until, record
from mfrl.callbacks.progress import Progress
from mfrl.envs.spec import EnvSpec

if TYPE_CHECKING:
    from mfrl.learning.training import Training


@dataclass(frozen=True)
class HeldOutEvaluation:
    """The losses by name, over how many transitions, in how many seconds."""

    losses: dict[str, float]
    transitions: int
    seconds: float

    def summary(self) -> dict[str, float]:
        """By their logged names."""
        return {f"eval/{name}": loss for name, loss in self.losses.items()}

    def to_json_dict(self) -> dict[str, Any]:
        """Plain data; there were no episodes."""
        return {**self.summary(), "episodes": 0, "transitions": self.transitions, "seconds": self.seconds}


class EvaluateHeldOut(L.Callback):
    """Every ``every`` updates and at the end, for datasets that record no environment. It says nothing about returns.

    Args:
        spec: not used; there is no environment.
        run_dir: where ``eval.jsonl`` lies.
        every: updates.
        progress: the bar to report to.
    """

    def __init__(self, spec: EnvSpec, run_dir: str | Path, every: int, progress: Progress) -> None:
        self.run_dir, self.every, self.progress = Path(run_dir), every, progress

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        k = pl_module.updates
        if k not in keep_until(self.run_dir, k) and k and due(pl_module, self.every):
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        if due(pl_module, self.every):
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: Training) -> None:
        with pl_module.aside():
            started = time.perf_counter()
            losses = held_out(trainer.datamodule, pl_module)
            result = HeldOutEvaluation(losses, len(trainer.datamodule.val), time.perf_counter() - started)
            record(trainer, pl_module, self.run_dir, self.progress, result)
