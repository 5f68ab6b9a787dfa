"""Several members trained as one: each has the callbacks of a run of its own, which do not know of the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import Logger
from rich.progress import Progress as Bar

from mfrl.callbacks.checkpoint import Checkpoint, InPlace
from mfrl.errors import MfrlError
from mfrl.runs.scores import format_score, score_name

if TYPE_CHECKING:
    from mfrl.callbacks.progress import Progress
    from mfrl.learning.training import Member

SHOWN = 3  #: scores on a line, of which there may be six


class Watched:
    """A member with what watches it: to its callbacks, the trainer of a run of its own.

    Attributes:
        failed: what ended it; None while it is trained.
    """

    def __init__(self, member: Member, loggers: list[Logger], callbacks: Sequence[L.Callback]) -> None:
        self.member, self.loggers, self.callbacks = member, loggers, list(callbacks)
        self.failed: MfrlError | None = None
        self.trainer: L.Trainer | None = None

    @property
    def datamodule(self) -> Any:
        return self.trainer.datamodule

    @property
    def strategy(self) -> Any:
        return self.trainer.strategy

    def fail(self, error: MfrlError) -> None:
        """The member ends here, saved as a run of its own that ends in this error would be."""
        self.failed = error
        for callback in self.callbacks:
            if isinstance(callback, Checkpoint):
                callback.on_exception(self, self.member, error)

    def save_checkpoint(self, path: str | Path) -> None:
        checkpoint = self.member.checkpoint()
        for callback in self.callbacks:
            if state := callback.state_dict():
                checkpoint["callbacks"][callback.state_key] = state
            callback.on_save_checkpoint(self, self.member, checkpoint)
        InPlace().save_checkpoint(checkpoint, path)


class Each(L.Callback):
    """One callback of every member. A member that fails leaves the others to go on without it.

    Args:
        population: the members.
        callbacks: one for each, in their order.

    Raises:
        MfrlError: of the last member, once all have failed.
    """

    def __init__(self, population: Sequence[Watched], callbacks: Sequence[L.Callback]) -> None:
        self.pairs = list(zip(population, callbacks, strict=True))

    def _each(self, hook: str, trainer: L.Trainer, *arguments: Any) -> None:
        for watched, callback in self.pairs:
            if watched.failed is None:
                watched.trainer = trainer
                try:
                    getattr(callback, hook)(watched, watched.member, *arguments)
                except MfrlError as error:
                    watched.fail(error)
        if all(watched.failed for watched, _ in self.pairs):
            raise self.pairs[-1][0].failed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._each("setup", trainer, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._each("on_train_start", trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self._each("on_train_batch_start", trainer, *arguments)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self._each("on_train_batch_end", trainer, *arguments)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for watched, callback in self.pairs:  # what a callback holds is let go of, whatever became of its member
            callback.teardown(watched, watched.member, stage)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for watched, callback in self.pairs:
            if watched.failed is None:
                callback.on_exception(watched, watched.member, exception)
            else:
                callback.teardown(watched, watched.member, "fit")


class Spread(L.Callback):
    """In place of a line an evaluation, one for the evaluations of all members: the range of scores, and their mean.

    Args:
        progress: where the line goes.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._reports: list[dict[str, float]] = []
        self._updates, self._seconds = 0, 0.0

    @property
    def bar(self) -> Bar:
        return self.progress.bar

    def report(self, updates: int, summary: dict[str, float], seconds: float) -> None:
        """What :meth:`Progress.report` is told of a run of its own."""
        self._reports.append(summary)
        self._updates, self._seconds = updates, self._seconds + seconds

    def on_train_start(self, *_: Any) -> None:
        self._print()

    def on_train_batch_end(self, *_: Any) -> None:
        self._print()

    def _print(self) -> None:
        if not self._reports:
            return
        scores = []
        for key in list(self._reports[0])[:SHOWN]:
            values = [summary[key] for summary in self._reports if key in summary]
            low, mean, high = min(values), sum(values) / len(values), max(values)
            shown = [format_score(key, value) for value in (low, high, mean)]
            scores.append(f"{score_name(key)} {shown[0]} to {shown[1]}, mean [bold]{shown[2]}[/]")
        members = f"{len(self._reports)} member{'s' * (len(self._reports) > 1)}"
        self.progress.say(self._updates, scores, f"{members}, {self._seconds:.1f} s", self._seconds)
        self._reports, self._seconds = [], 0.0
