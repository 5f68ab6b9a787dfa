"""Writes checkpoints: complete files of plain data, and only while all parameters are finite."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mfrl.callbacks.periodic import due
from mfrl.errors import DivergedError
from mfrl.learning.training import lightnings_part
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.system.files import replacing

if TYPE_CHECKING:
    from mfrl.learning.training import Training


class InPlace(TorchCheckpointIO):
    """Lightning's way to write and read checkpoints, with two changes.

    It writes directly to the given path. Lightning's class writes to the system's folder for temporary files first,
    which may be full or missing while the run's disk has room. It reads with :func:`load_checkpoint`, which refuses
    damaged files, and ignores Lightning's own part of the file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # where torch itself writes to a file, its error hides the reason
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path)) | lightnings_part()


class Checkpoint(L.Callback):
    """Writes ``last.ckpt`` every ``every`` updates, and at the end of the offline and of the online phase.

    At the end of an offline phase that an online one follows, it keeps ``update=<k>.ckpt`` in any case.

    It also writes ``last.ckpt`` when ``minutes`` have passed since the last time, and when training ends early between
    two updates, because of a signal or of an error outside of training, such as a simulator that dies.

    A checkpoint gets its name only when it is complete. It is plain data and loads with ``weights_only=True``.

    Args:
        folder: the folder of checkpoints.
        every: number of updates.
        keep_all: keep each checkpoint as ``update=<k>.ckpt`` too.
        extra: is stored under the key "mfrl": the configuration, and what else is needed to act again.
        minutes: None writes no checkpoints by the clock.

    Attributes:
        saved: the update of ``last.ckpt``; before the first checkpoint, the update at which training started; None
            before training.
        problem: why the state could not be saved when training ended early; empty if it was saved.

    Raises:
        DivergedError: a parameter is not finite. ``last.ckpt`` stays as it is.
    """

    def __init__(
        self, folder: str | Path, every: int, keep_all: bool, extra: dict[str, Any], minutes: float | None = 10.0
    ) -> None:
        self.folder = Path(folder)
        self.every, self.keep_all, self.extra, self.minutes = every, keep_all, extra, minutes
        self.saved: int | None = None
        self.problem = ""
        self._saved_at = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = InPlace()

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["mfrl"] = self.extra

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self.saved, self._saved_at = pl_module.updates, pl_module.stamp

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        k = pl_module.updates
        is_due = due(pl_module, self.every)
        if is_due or (self.minutes is not None and pl_module.stamp - self._saved_at >= 60.0 * self.minutes):
            self._save(trainer, pl_module)
        if (is_due and self.keep_all) or (pl_module.changes_phase and k > 0):  # the offline policy is kept
            with pl_module.aside(), replacing(self.folder / f"update={k}.ckpt") as temporary:
                self._copy(temporary)

    def on_exception(self, trainer: L.Trainer, pl_module: Training, exception: BaseException) -> None:
        """Write a checkpoint after an error or a signal, unless the state is not sound or Ctrl-C came a second time."""
        if isinstance(exception, KeyboardInterrupt | DivergedError) or not pl_module.between_updates:
            return
        if self.saved is None or self.saved == pl_module.updates:
            return
        try:
            self._save(trainer, pl_module)
        except Exception as error:  # the user is told the error that ended training, and this one beside it
            self.problem = getattr(error, "strerror", None) or str(error)

    def _save(self, trainer: L.Trainer, pl_module: Training) -> None:
        with pl_module.aside():
            self._refuse_nonfinite(pl_module)
            for logger in trainer.loggers:  # so that the logs on disk are never behind the checkpoint
                logger.save()
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.last) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved, self._saved_at = pl_module.updates, pl_module.stamp

    def _copy(self, path: Path) -> None:
        """Give ``last.ckpt`` a second name: a hard link, or a copy if the file system has no links."""
        try:
            os.link(self.last, path)
        except OSError:
            shutil.copyfile(self.last, path)

    def _refuse_nonfinite(self, pl_module: Training) -> None:
        if names := pl_module.nonfinite_parameters():
            left = f"{self.last} stays at the last good update" if self.last.is_file() else "no checkpoint is written"
            raise DivergedError(
                f"update {pl_module.updates}: parameters are not finite ({names[0]} and {len(names) - 1} more); {left}"
            )
