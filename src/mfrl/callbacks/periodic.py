"""Evaluations at chosen updates: when one is due, and how it is recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import lightning as L
import torch

from mfrl.errors import DivergedError
from mfrl.runs.folder import RunFolder, read_evaluations
from mfrl.system.files import write_text

if TYPE_CHECKING:
    from mfrl.callbacks.progress import Progress
    from mfrl.data.module import OfflineData
    from mfrl.data.storage import Transitions
    from mfrl.learning.training import Trained, Training


class Result(Protocol):
    """The result of an evaluation."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""

    def summary(self) -> dict[str, float]:
        """The scores by their logged names, the main score first."""

    def to_json_dict(self) -> dict[str, Any]:
        """The line of ``eval.jsonl``, as plain data: the scores and details."""


class Periodic(L.Callback):
    """Evaluates every ``every`` updates and after the last one. A resumed run does not repeat its evaluations.

    A subclass defines :meth:`evaluate`.

    Args:
        run_dir: the folder of ``eval.jsonl``.
        every: number of updates between evaluations.
        progress: the progress bar, which also prints the results.
    """

    before_training = False  #: evaluate before the first update too

    def __init__(self, run_dir: str | Path, every: int, progress: Progress) -> None:
        self.run_dir, self.every, self.progress = Path(run_dir), every, progress

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        done = keep_until(self.run_dir, pl_module.updates)
        if pl_module.updates not in done and (pl_module.updates > 0 or self.before_training):
            self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        if due(pl_module, self.every):
            with pl_module.aside():
                self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Evaluate now, and hand the result to :func:`record`."""
        raise NotImplementedError


def data_of(trainer: L.Trainer) -> OfflineData:
    """The datamodule of a training."""
    return trainer.datamodule  # type: ignore[attr-defined]  # missing from Lightning's types


def due(pl_module: Trained, every: int) -> bool:
    """Whether to evaluate now: at every multiple of ``every`` updates, and after the last update of each phase."""
    k = pl_module.updates
    return k % every == 0 or k == pl_module.total_updates or pl_module.changes_phase


def keep_until(run_dir: Path, updates: int) -> list[int]:
    """Drop the lines of ``eval.jsonl`` after ``updates``. A run that resumes there makes these evaluations again.

    Returns:
        the updates of the lines that are kept.
    """
    kept = [line for line in read_evaluations(RunFolder(run_dir)) if line["updates"] <= updates]
    if kept:
        write_text(run_dir / "eval.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
    else:
        (run_dir / "eval.jsonl").unlink(missing_ok=True)
    return [line["updates"] for line in kept]


def held_out(val: Transitions, pl_module: Training) -> dict[str, float]:
    """Losses on a fixed sample of the validation split: 4096 transitions, or 256 if observations are images."""
    size = 4096 if pl_module.spec.image_shape is None else 256
    index = torch.randint(len(val), (size,), generator=torch.Generator().manual_seed(0))
    algorithm = pl_module.algorithm
    batch = val.gather(index, algorithm.discount, algorithm.next_actions).to(pl_module.device)
    return {name: float(value) for name, value in pl_module.held_out(batch).items()}


def record(
    trainer: L.Trainer,
    pl_module: Training,
    run_dir: Path,
    progress: Progress,
    result: Result,
) -> None:
    """Print an evaluation, log it together with the held-out losses, and then append it to ``eval.jsonl``.

    The line in ``eval.jsonl`` comes last. If it exists, the loggers have the evaluation too; if the run was killed
    before, the resumed run evaluates again.

    Raises:
        DivergedError: a parameter or a score is not finite. Nothing is recorded then.
    """
    k, summary = pl_module.updates, result.summary()
    # A critic with NaN weights still chooses among candidates, and the scores look normal.
    if names := pl_module.nonfinite_parameters():
        raise DivergedError(
            f"update {k}: parameters are not finite ({names[0]} and {len(names) - 1} more), so this evaluation says "
            "nothing and is not recorded. Try a smaller learning rate"
        )
    if bad := [name for name, value in summary.items() if not math.isfinite(value)]:
        raise DivergedError(f"update {k}: {', '.join(bad)} not finite, so this evaluation is not recorded")
    progress.report(k, summary, result.seconds)
    val = data_of(trainer).val
    losses = {} if val is None else held_out(val, pl_module)
    metrics = summary | {f"val/{name}": value for name, value in losses.items()}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=k)
        logger.save()
    with (run_dir / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"updates": k} | result.to_json_dict(), allow_nan=False) + "\n")
