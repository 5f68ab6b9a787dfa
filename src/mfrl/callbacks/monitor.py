"""Training metrics to the loggers, throughput, and a stop where a number is no longer finite."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L

from mfrl.algorithms.base import OfflineAlgorithm
from mfrl.errors import DivergedError


class Monitor(L.Callback):
    """Every ``every`` updates: means of what the updates returned, learning rates, updates per second.

    ``perf/updates_per_second`` counts the time between chunks too, but not evaluations and checkpoints;
    ``perf/loop_share`` is the share of that time spent outside the updates: Lightning's loop and sampling.

    Raises:
        DivergedError: where a mean is not finite; the checkpoint written last is untouched.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        # Of this process's training, evaluations and checkpoints left out.
        self.seconds = 0.0
        self.seconds_inside = 0.0
        self.updates = 0

    @property
    def loop_share(self) -> float:
        """Share of the training time spent outside the updates."""
        return 1.0 - self.seconds_inside / self.seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: OfflineAlgorithm) -> None:
        self._open_window(pl_module)

    def on_train_batch_start(self, *_: Any) -> None:
        self._entered = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: OfflineAlgorithm, *_: Any) -> None:
        due = pl_module.updates % self.every == 0 or pl_module.updates == pl_module.total_updates
        # Waits for the device, so that the time of its work counts as inside.
        metrics = {f"train/{name}": value for name, value in pl_module.pop_metrics().items()} if due else {}
        self._inside += time.perf_counter() - self._entered
        if not due:
            return
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            has_critic = "critic" in pl_module.optimizer_names
            further = ", a larger algo.alpha or algo.clip_targets=true" if has_critic else ""
            raise DivergedError(
                f"diverged between updates {self._first} and {pl_module.updates}: {', '.join(bad)} not finite. The "
                f"last good checkpoint is kept. Try a smaller learning rate{further}."
            )
        seconds = time.perf_counter() - self._since - (pl_module.seconds_aside - self._aside)
        updates = pl_module.updates - self._first
        self.seconds += seconds
        self.seconds_inside += self._inside
        self.updates += updates
        metrics["perf/updates_per_second"] = updates / seconds
        metrics["perf/loop_share"] = max(0.0, 1.0 - self._inside / seconds)
        for name, optimizer in zip(pl_module.optimizer_names, trainer.optimizers, strict=True):
            metrics[f"train/{name}_lr"] = float(optimizer.param_groups[0]["lr"])
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=pl_module.updates)
        self._open_window(pl_module)

    def _open_window(self, pl_module: OfflineAlgorithm) -> None:
        self._first, self._since, self._inside = pl_module.updates, time.perf_counter(), 0.0
        self._aside = pl_module.seconds_aside
