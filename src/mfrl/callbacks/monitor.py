"""Logs training metrics and throughput, warns about impossible numbers, and stops training at NaN or infinity."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console
from rich.markup import escape

from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.explosions import Explosions
from mfrl.errors import DivergedError
from mfrl.q_learning import TD, Values
from mfrl.settings import Settings

if TYPE_CHECKING:
    from mfrl.learning.training import Training


class Monitor(L.Callback):
    """Logs, every ``every`` updates, the means of all scalars, the learning rates and the updates per second.

    ``perf/updates_per_second`` includes the time between chunks, but no evaluations and checkpoints.
    ``perf/loop_share`` is the share of that time outside the updates, in Lightning's loop and in sampling. In an online
    phase, ``perf/interaction_share`` is the share in which the policy acts and environments are stepped, and
    ``online/...`` are the scores there.

    Attributes:
        explosions: the warnings of the whole run, earlier attempts included.
        seconds, updates: duration and number of the updates in this process.
        seconds_inside: the part of ``seconds`` inside the updates.

    Raises:
        DivergedError: a mean is not finite. The last checkpoint stays as it is.
    """

    def __init__(self, every: int, console: Console | None = None) -> None:
        self.every, self.console = every, console or Console(stderr=True)
        self.explosions = Explosions()
        self.seconds = 0.0
        self.seconds_inside = 0.0
        self.updates = 0

    @property
    def loop_share(self) -> float:
        """Share of the training time outside the updates, from 0 to 1."""
        return 1.0 - self.seconds_inside / self.seconds

    def state_dict(self) -> dict[str, Any]:
        return self.explosions.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.explosions.load_state_dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._open_window(pl_module)

    def on_train_batch_start(self, *_: Any) -> None:
        self._entered = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        due = pl_module.updates % self.every == 0 or pl_module.updates == pl_module.total_updates
        # Reading the metrics waits for the device. It comes first, so that the device's work counts as inside.
        means = pl_module.pop_metrics() if due else {}
        metrics = {f"train/{name}": value for name, value in means.items()}
        self._inside += time.perf_counter() - self._entered
        if not due:
            return
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise DivergedError(
                f"diverged between updates {self._first} and {pl_module.updates}: {', '.join(bad)} not finite. "
                f"{_what_is_left(trainer)} {_remedies(pl_module.algorithm.settings)}."
            )
        settings = pl_module.algorithm.settings
        value_range = pl_module.spec.value_range(settings.discount) if isinstance(settings, Values) else None
        for sentence in self.explosions.check(pl_module.updates, means, value_range, _remedies(settings)):
            self.console.print(f"[bold red]warning[/] {escape(sentence)}", highlight=False, soft_wrap=True)
        seconds = time.perf_counter() - self._since - (pl_module.seconds_aside - self._aside)
        updates = pl_module.updates - self._first
        self.seconds += seconds
        self.seconds_inside += self._inside
        self.updates += updates
        metrics |= pl_module.pop_online()
        if pl_module.online is not None and pl_module.online.steps:
            metrics["perf/interaction_share"] = (pl_module.online.seconds - self._interacting) / seconds
        metrics["perf/updates_per_second"] = updates / seconds
        metrics["perf/loop_share"] = max(0.0, 1.0 - self._inside / seconds)
        assert pl_module.learner is not None
        metrics |= {f"train/{name}_lr": rate for name, rate in pl_module.learner.rates().items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=pl_module.updates)
        self._open_window(pl_module)

    def _open_window(self, pl_module: Training) -> None:
        self._first, self._since, self._inside = pl_module.updates, time.perf_counter(), 0.0
        self._aside = pl_module.seconds_aside
        self._interacting = 0.0 if pl_module.online is None else pl_module.online.seconds


def _remedies(settings: Settings) -> str:
    """Advice against diverging values. It names only settings that the algorithm has."""
    tries = ["a smaller learning rate"]
    if hasattr(settings, "alpha") and isinstance(settings, TD):  # alpha keeps the policy near the data
        tries.append("a larger algo.alpha")
    if hasattr(settings, "clip_targets"):
        tries.append("algo.clip_targets=true")
    *others, last = tries
    return f"Try {', '.join(others)} or {last}" if others else f"Try {last}"


def _what_is_left(trainer: L.Trainer) -> str:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # missing from Lightning's types
    last = next((callback.last for callback in callbacks if isinstance(callback, Checkpoint)), None)
    if last is not None and last.is_file():
        return f"The last good checkpoint is kept: {last}."
    return "No checkpoint had been written yet."
