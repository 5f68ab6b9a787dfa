"""A progress bar over the updates, and one printed line for each evaluation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from mfrl.runs.jobs import COLUMNS, JobConsole
from mfrl.runs.scores import format_score, format_seconds, score_name

if TYPE_CHECKING:
    from mfrl.learning.training import Training

_FIRST_ESTIMATE_SECONDS = 2.0  # seconds of training before an estimate of the time left is printed


class Progress(L.Callback):
    """A bar over all updates. :class:`Evaluate` adds its own bar while it runs, and reports its result here.

    The rate leaves out the time of evaluations and checkpoints. The time left includes the evaluations that are still
    due, each as long as the latest one. Before the first evaluation the bar shows their number instead.

    Args:
        every: number of updates between evaluations.
        final_share: duration of the last evaluation, relative to the others: it may have more episodes.
        console: where to print; None prints on stderr.
    """

    def __init__(self, every: int, final_share: float = 1.0, console: Console | None = None) -> None:
        self.every, self.final_share = every, final_share
        self.console = console or Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=2,
            transient=not self.console.is_terminal,
        )
        self._score = ""
        self._evaluation_seconds: float | None = None  # duration of the latest evaluation
        self._window: deque[tuple[int, float]] = deque(maxlen=200)  # updates and seconds at the end of each chunk
        self._estimated = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._task = self.bar.add_task(
            "train", total=pl_module.total_updates, completed=pl_module.updates, note=self._score
        )
        self._total = pl_module.total_updates

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        k = pl_module.updates
        # The window starts at the end of the first chunk, so that the rate leaves out the time of compiling.
        self._window.append((k, time.perf_counter() - pl_module.seconds_aside))
        rate = self.rate
        if rate is None:
            return
        left = self.time_left(k)
        note = f"{rate:,.1f} updates/s  left {left}"
        self.bar.update(self._task, completed=k, note=f"{note}  {self._score}" if self._score else note)
        if not self._estimated and self._window[-1][1] - self._window[0][1] >= _FIRST_ESTIMATE_SECONDS:
            self._estimated = True
            self.bar.console.print(f"{rate:,.1f} updates/s, left about {left}", highlight=False, soft_wrap=True)

    @property
    def rate(self) -> float | None:
        """Updates per second over the latest chunks; None before the second chunk."""
        (first, since), (last, now) = self._window[0], self._window[-1]
        return (last - first) / (now - since) if now > since else None

    def time_left(self, k: int) -> str:
        """The time left after update ``k``: training at the present rate, and the evaluations that are due."""
        rate = self.rate
        assert rate is not None, "there is no rate before the second chunk"
        training = (self._total - k) / rate
        interim = (self._total - 1) // self.every - k // self.every
        due = max(interim, 0) + (k < self._total)
        if self._evaluation_seconds is None and due:
            return f"{format_seconds(training)} and {due} evaluation{'s' * (due > 1)}"
        evaluations = (due - 1 + self.final_share) * (self._evaluation_seconds or 0.0) if due else 0.0
        return format_seconds(training + evaluations)

    def report(self, updates: int, summary: dict[str, float], seconds: float) -> None:
        """Print an evaluation's scores in a line above the bar, and show the first score on the bar.

        Args:
            updates: number of updates.
            summary: the scores by their logged names, the main score first.
            seconds: duration of the evaluation.
        """
        scores = [f"{score_name(key)} [bold]{format_score(key, value)}[/]" for key, value in summary.items()]
        self.print_scores(updates, scores, f"{seconds:.1f} s", seconds)

    def print_scores(self, updates: int, scores: Sequence[str], note: str, seconds: float) -> None:
        """The line of :meth:`report`, with scores in words.

        Args:
            note: is printed in brackets at the end.
        """
        self._score, self._evaluation_seconds = scores[0], seconds
        room = self.console.room if isinstance(self.console, JobConsole) else COLUMNS
        # The line has as many scores as fit; eval.jsonl has all of them.
        for gap, shown in [("   ", len(scores)), *(("  ", k) for k in range(len(scores), 0, -1))]:
            line = Text.from_markup(gap.join([f"update {updates:>9,}", *scores[:shown], f"({note})"]))
            if line.cell_len <= room:
                break
        self.console.print(line, highlight=False, soft_wrap=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()
