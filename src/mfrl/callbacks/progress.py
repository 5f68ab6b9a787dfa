"""One progress bar in updates, with the current success; a line per evaluation that stays."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mfrl.algorithms.base import OfflineAlgorithm

SCORE_FORMATS = {
    "eval/return": ".1f",
    "eval/length": ".1f",
    "eval/w2": ".3f",
    "eval/mmd": ".3f",
    "eval/w2_floor": ".3f",
}


def score_name(key: str) -> str:
    """How a score is called on the screen: ``eval/mode_coverage`` is "mode coverage"."""
    return key.removeprefix("eval/").replace("_", " ")


def format_score(key: str, value: float) -> str:
    """A score with as many digits as say something."""
    return format(value, SCORE_FORMATS.get(key, ".2f"))


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
        """One line of an evaluation, above the bar, and its first score on the bar."""
        scores = [f"{score_name(key)} [bold]{format_score(key, value)}[/]" for key, value in summary.items()]
        self._note = scores[0]
        self.bar.console.print(
            f"update {updates:>9,}   {'   '.join(scores)}   ({seconds:.1f} s)", highlight=False, soft_wrap=True
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()
