"""One progress bar in updates, with the current success; a line per evaluation that stays."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mfrl.algorithms.base import OfflineAlgorithm


class Progress(L.Callback):
    """A bar over all updates; :class:`Evaluate` adds one of its own while it runs, and reports its result here."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=2,
            transient=not self.console.is_terminal,
        )
        self._note = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: OfflineAlgorithm) -> None:
        self._first = pl_module.updates
        self._task = self.bar.add_task(
            "train", total=pl_module.total_updates, completed=pl_module.updates, note=self._note
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: OfflineAlgorithm, *_: Any) -> None:
        speed = next(task.speed for task in self.bar.tasks if task.id == self._task)
        rate = f"{speed:,.1f} updates/s" if speed else ""
        note = f"{rate}  {self._note}" if self._note else rate
        self.bar.update(self._task, completed=pl_module.updates, note=note)

    def report(self, updates: int, summary: dict[str, float], seconds: float) -> None:
        """One line of an evaluation, above the bar, and its success on the bar."""
        success, length = summary["eval/success"], summary["eval/length"]
        self._note = f"success {success:.2f}"
        self.bar.console.print(
            f"update {updates:>9,}   success [bold]{success:.2f}[/]   return {summary['eval/return']:9.1f}   "
            f"length {length:6.1f}   ({seconds:.1f} s)",
            highlight=False,
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()
