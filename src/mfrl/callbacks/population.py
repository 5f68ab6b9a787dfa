"""Callbacks of a population: each member has the callbacks of a single run, which do not know of other members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import Logger
from rich.progress import Progress as Bar

from mfrl.callbacks.checkpoint import Checkpoint, InPlace
from mfrl.callbacks.evaluation import Evaluate
from mfrl.errors import MfrlError
from mfrl.runs.scores import format_score, score_name

if TYPE_CHECKING:
    from mfrl.callbacks.progress import Progress
    from mfrl.learning.training import Member, Training

SHOWN = 3  #: scores on a line, of which there may be six


class Watched:
    """A member and its callbacks. To them it looks like the trainer of a single run.

    Attributes:
        failed: the error that ended the member; None while it trains.
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

    def attempt(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook of a callback. An error ends this member and no other."""
        try:
            hook(self, self.member, *arguments)
        except MfrlError as error:
            self.fail(error)

    def fail(self, error: MfrlError) -> None:
        """End the member, and save it as a single run that ends in this error would be saved."""
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
        for watched, callback in self.left:
            watched.trainer = trainer
            watched.attempt(getattr(callback, hook), *arguments)
        self._refuse_nobody()

    @property
    def left(self) -> list[tuple[Watched, L.Callback]]:
        """The members that are still trained, each with its callback."""
        return [(watched, callback) for watched, callback in self.pairs if watched.failed is None]

    def _refuse_nobody(self) -> None:
        if not self.left:
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


class EvaluateEach(Each):
    """The evaluations of all members, side by side in the same environments.

    What each leaves behind, and each of its numbers, is what an evaluation of its own would leave.
    """

    pairs: list[tuple[Watched, Evaluate]]

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._each("keep", trainer)
        with pl_module.aside():
            evaluator = self.left[0][1].start(len(self.left))
            for _, evaluate in self.left:
                evaluate.evaluator = evaluator
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        due = [(watched, evaluate) for watched, evaluate in self.left if evaluate.is_due(watched.member)]
        if due:
            with pl_module.aside():
                results = due[0][1].run([watched.member for watched, _ in due])
                for (watched, evaluate), result in zip(due, results, strict=True):
                    watched.attempt(evaluate.record, result)
            self._refuse_nobody()


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
