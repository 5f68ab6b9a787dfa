"""Callbacks of a population: each member has the callbacks of a single run, which do not know of other members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from rich.progress import Progress as Bar

from mfrl.callbacks.checkpoint import Checkpoint, InPlace
from mfrl.callbacks.evaluation import Evaluate
from mfrl.callbacks.periodic import data_of
from mfrl.errors import MfrlError
from mfrl.runs.scores import format_score, score_name

if TYPE_CHECKING:
    from mfrl.callbacks.progress import Progress
    from mfrl.data.module import OfflineData
    from mfrl.learning.training import Member, Training

SHOWN = 3  #: number of scores on a line; an evaluation may have six


class Watched:
    """A member with its loggers and callbacks. For these it stands in for the trainer of a single run.

    Attributes:
        failed: the error that ended the member; None while it trains.
        trainer: Lightning's trainer of the whole population; None before training starts.
    """

    def __init__(self, member: Member, loggers: list[Logger], callbacks: Sequence[L.Callback]) -> None:
        self.member, self.loggers, self.callbacks = member, loggers, list(callbacks)
        self.failed: MfrlError | None = None
        self.trainer: L.Trainer | None = None

    @property
    def stand_ins(self) -> tuple[L.Trainer, Training]:
        """This object and its member, typed as the trainer and the module that callbacks expect.

        Callbacks of a run use only what these two have: loggers, datamodule, strategy and save_checkpoint here.
        """
        return cast(L.Trainer, self), cast("Training", self.member)

    @property
    def datamodule(self) -> OfflineData:
        assert self.trainer is not None
        return data_of(self.trainer)

    @property
    def strategy(self) -> Strategy:
        assert self.trainer is not None
        return self.trainer.strategy

    def attempt(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook of a callback. An error ends this member and no other."""
        try:
            hook(*self.stand_ins, *arguments)
        except MfrlError as error:
            self.fail(error)

    def fail(self, error: MfrlError) -> None:
        """End the member, and save it as a single run that ends in this error would be saved."""
        self.failed = error
        for callback in self.callbacks:
            if isinstance(callback, Checkpoint):
                callback.on_exception(*self.stand_ins, error)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the checkpoint that a single run would write."""
        checkpoint = self.member.checkpoint()
        for callback in self.callbacks:
            if state := callback.state_dict():
                checkpoint["callbacks"][callback.state_key] = state
            callback.on_save_checkpoint(*self.stand_ins, checkpoint)
        InPlace().save_checkpoint(checkpoint, path)


AnyCallback = TypeVar("AnyCallback", bound=L.Callback)


class Each(L.Callback, Generic[AnyCallback]):
    """Calls the same callback of every member. A member that fails does not stop the others.

    Args:
        population: the members.
        callbacks: one for each member, in the same order.

    Raises:
        MfrlError: all members have failed. This is the error of the last one in the list.
    """

    def __init__(self, population: Sequence[Watched], callbacks: Sequence[AnyCallback]) -> None:
        self.pairs = list(zip(population, callbacks, strict=True))

    def _each(self, hook: str, trainer: L.Trainer, *arguments: Any) -> None:
        for watched, callback in self.active:
            watched.trainer = trainer
            watched.attempt(getattr(callback, hook), *arguments)
        self._raise_if_all_failed()

    @property
    def active(self) -> list[tuple[Watched, AnyCallback]]:
        """The members that have not failed, each with its callback."""
        return [(watched, callback) for watched, callback in self.pairs if watched.failed is None]

    def _raise_if_all_failed(self) -> None:
        errors = [watched.failed for watched, _ in self.pairs if watched.failed is not None]
        if len(errors) == len(self.pairs):
            raise errors[-1]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._each("setup", trainer, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._each("on_train_start", trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self._each("on_train_batch_start", trainer, *arguments)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self._each("on_train_batch_end", trainer, *arguments)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for watched, callback in self.pairs:  # of failed members too: a callback may hold processes
            callback.teardown(*watched.stand_ins, stage)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for watched, callback in self.pairs:
            if watched.failed is None:
                callback.on_exception(*watched.stand_ins, exception)
            else:
                callback.teardown(*watched.stand_ins, "fit")


class EvaluateEach(Each[Evaluate]):
    """Evaluates all members side by side in the same environments.

    Each member gets the numbers and the files that an evaluation of its own would give.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._each("keep", trainer)
        with pl_module.aside():
            evaluator = self.active[0][1].start(len(self.active))
            for _, evaluate in self.active:
                evaluate.evaluator = evaluator
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        due = [(watched, evaluate) for watched, evaluate in self.active if evaluate.is_due(watched.member)]
        if due:
            with pl_module.aside():
                results = due[0][1].run([watched.member for watched, _ in due])
                for (watched, evaluate), result in zip(due, results, strict=True):
                    watched.attempt(evaluate.record, result)
            self._raise_if_all_failed()


class Spread(L.Callback):
    """Prints one line for the evaluations of all members: the range of each score, and its mean.

    The members' evaluations report to it as they would report to a :class:`Progress`.

    Args:
        progress: the progress bar above which the line is printed.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._reports: list[dict[str, float]] = []
        self._updates, self._seconds = 0, 0.0

    @property
    def bar(self) -> Bar:
        return self.progress.bar

    def report(self, updates: int, summary: dict[str, float], seconds: float) -> None:
        """Collect the result of one member, see :meth:`Progress.report`."""
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
        self.progress.print_scores(self._updates, scores, f"{members}, {self._seconds:.1f} s", self._seconds)
        self._reports, self._seconds = [], 0.0
