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
    from mfrl.learning.training import Training


class Result(Protocol):
    """What an evaluation found."""

    @property
    def seconds(self) -> float:
        """Wall time."""

    def summary(self) -> dict[str, float]:
        """Its numbers by their logged names, the score first."""

    def to_json_dict(self) -> dict[str, Any]:
        """These and whatever else a line of ``eval.jsonl`` is to hold, as plain data."""


class Periodic(L.Callback):
    """Evaluates every ``every`` updates and after the last, but not again what an earlier attempt of the run has.

    A subclass defines :meth:`evaluate`.

    Args:
        run_dir: where ``eval.jsonl`` lies.
        every: updates.
        progress: the bar to report to.
    """

    before_training = False  #: whether to evaluate before the first update too

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
        """Evaluate now, and :func:`record` the result."""
        raise NotImplementedError


def due(pl_module: Training, every: int) -> bool:
    """Whether to evaluate now: at every multiple of ``every`` updates, and after the last of each phase."""
    k = pl_module.updates
    return k % every == 0 or k == pl_module.total_updates or pl_module.changes_phase


def keep_until(run_dir: Path, updates: int) -> list[int]:
    """Drop the evaluations after ``updates``: a run that goes on from there makes them again.

    Returns:
        the updates of those that stay.
    """
    kept = [line for line in read_evaluations(RunFolder(run_dir)) if line["updates"] <= updates]
    if kept:
        write_text(run_dir / "eval.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
    else:
        (run_dir / "eval.jsonl").unlink(missing_ok=True)
    return [line["updates"] for line in kept]


def held_out(data: L.LightningDataModule, pl_module: Training) -> dict[str, float]:
    """Losses on a fixed sample of the validation split, smaller where observations are images."""
    size = 4096 if pl_module.spec.image_shape is None else 256
    index = torch.randint(len(data.val), (size,), generator=torch.Generator().manual_seed(0))
    algorithm = pl_module.algorithm
    batch = data.val.gather(index, algorithm.discount, algorithm.next_actions).to(pl_module.device)
    return {name: float(value) for name, value in pl_module.held_out(batch).items()}


def record(
    trainer: L.Trainer,
    pl_module: Training,
    run_dir: Path,
    progress: Progress,
    result: Result,
) -> None:
    """An evaluation on the screen, with the held-out losses in every logger, and as a line of ``eval.jsonl``.

    In this order: the line says that nothing is missing, and a run that was killed before it evaluates again.

    Raises:
        DivergedError: a parameter, or what was measured, is not finite; nothing is recorded.
    """
    k, summary = pl_module.updates, result.summary()
    # A critic that is no number still chooses among candidates, and the actions look like any others.
    if names := pl_module.nonfinite_parameters():
        raise DivergedError(
            f"update {k}: parameters are not finite ({names[0]} and {len(names) - 1} more), so this evaluation says "
            "nothing and is not recorded. Try a smaller learning rate"
        )
    if bad := [name for name, value in summary.items() if not math.isfinite(value)]:
        raise DivergedError(f"update {k}: {', '.join(bad)} not finite, so this evaluation is not recorded")
    progress.report(k, summary, result.seconds)
    losses = {} if trainer.datamodule.val is None else held_out(trainer.datamodule, pl_module)
    metrics = summary | {f"val/{name}": value for name, value in losses.items()}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=k)
        logger.save()
    with (run_dir / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"updates": k} | result.to_json_dict(), allow_nan=False) + "\n")
