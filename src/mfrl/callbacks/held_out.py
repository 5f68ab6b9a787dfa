"""Evaluation without an environment: losses on held-out data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from mfrl.callbacks.periodic import Periodic, held_out, record
from mfrl.callbacks.progress import Progress
from mfrl.envs.spec import EnvSpec

if TYPE_CHECKING:
    from mfrl.learning.training import Training


@dataclass(frozen=True)
class HeldOutEvaluation:
    """The losses by name, the number of transitions and the time in seconds."""

    losses: dict[str, float]
    transitions: int
    seconds: float

    def summary(self) -> dict[str, float]:
        """By their logged names."""
        return {f"eval/{name}": loss for name, loss in self.losses.items()}

    def to_json_dict(self) -> dict[str, Any]:
        """Plain data; there were no episodes."""
        return {**self.summary(), "episodes": 0, "transitions": self.transitions, "seconds": self.seconds}


class EvaluateHeldOut(Periodic):
    """Evaluates every ``every`` updates and at the end, for datasets without an environment. It gives no returns.

    Args:
        spec: not used; there is no environment.
        run_dir: where ``eval.jsonl`` lies.
        every: updates.
        progress: the bar to report to.
    """

    def __init__(self, spec: EnvSpec, run_dir: str | Path, every: int, progress: Progress) -> None:
        super().__init__(run_dir, every, progress)

    def evaluate(self, trainer: L.Trainer, pl_module: Training) -> None:
        started = time.perf_counter()
        losses = held_out(trainer.datamodule, pl_module)
        result = HeldOutEvaluation(losses, len(trainer.datamodule.val), time.perf_counter() - started)
        record(trainer, pl_module, self.run_dir, self.progress, result)
