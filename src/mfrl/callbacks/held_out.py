"""Evaluates by the losses on held-out data, where there is no environment."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from mfrl.callbacks.periodic import Periodic, data_of, held_out, record
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
        """The losses by their logged names."""
        return {f"eval/{name}": loss for name, loss in self.losses.items()}

    def to_json_dict(self) -> dict[str, Any]:
        """The line of ``eval.jsonl``, with 0 episodes."""
        return {**self.summary(), "episodes": 0, "transitions": self.transitions, "seconds": self.seconds}


class EvaluateHeldOut(Periodic):
    """Evaluates every ``every`` updates and at the end, for datasets without an environment. It gives no returns.

    Args:
        spec: not used, because there is no environment.
        run_dir: the folder of ``eval.jsonl``.
        every: number of updates between evaluations.
        progress: the progress bar, which also prints the results.
    """

    def __init__(self, spec: EnvSpec, run_dir: str | Path, every: int, progress: Progress) -> None:
        super().__init__(run_dir, every, progress)

    def evaluate(self, trainer: L.Trainer, pl_module: Training) -> None:
        started = time.perf_counter()
        val = data_of(trainer).val
        assert val is not None, "mfrl.app.parts.build_data refuses data without a validation split"
        losses = held_out(val, pl_module)
        result = HeldOutEvaluation(losses, len(val), time.perf_counter() - started)
        record(trainer, pl_module, self.run_dir, self.progress, result)
