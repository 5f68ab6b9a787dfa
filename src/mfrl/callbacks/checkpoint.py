"""Checkpoints that are whole, finite and plain data."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mfrl.errors import DivergedError
from mfrl.learning.training import lightnings_part
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.system.files import replacing

if TYPE_CHECKING:
    from mfrl.learning.training import Training


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint where it is asked to; reads none that is damaged, and nothing of Lightning's own part of one.

    Lightning's own writes to the system's folder for temporary files first, which may be full, small or missing while
    the run's disk has room.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch hides why a write failed; from here it is an OSError
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path)) | lightnings_part()


class Checkpoint(L.Callback):
    """Every ``every`` updates and at the end of a phase: ``last.ckpt``, and ``update=<k>.ckpt`` too where ``keep_all``.

    At the end of the offline phase before an online one, ``update=<k>.ckpt`` is written in any case.

    ``last.ckpt`` is also written ``minutes`` after the last time, and where training ends early between two updates: by
    a signal, or by an error that is none of the training's, such as a simulator that dies.

    A checkpoint is written under a temporary name and renamed, and never with a parameter that is not finite. It
    carries ``extra`` under the key "mfrl": the composed configuration and what else is needed to act again, as plain
    data that loads with ``weights_only=True``.

    Attributes:
        saved: the update that ``last.ckpt`` holds, as far as this training knows; before the first one where it began.
        problem: why the training that ended early could not be saved; empty: nothing was in the way.

    Raises:
        DivergedError: where a parameter is not finite; ``last.ckpt`` stays as it was.
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
        due = k % self.every == 0 or k == pl_module.total_updates or pl_module.changes_phase
        if due or (self.minutes is not None and pl_module.stamp - self._saved_at >= 60.0 * self.minutes):
            self._save(trainer, pl_module)
        if (due and self.keep_all) or (pl_module.changes_phase and k > 0):  # the offline policy stays at hand
            with pl_module.aside(), replacing(self.folder / f"update={k}.ckpt") as temporary:
                self._copy(temporary)

    def on_exception(self, trainer: L.Trainer, pl_module: Training, exception: BaseException) -> None:
        """Keep what was trained since the last checkpoint, unless it is not sound or a second Ctrl-C will not wait."""
        if isinstance(exception, KeyboardInterrupt | DivergedError) or not pl_module.between_updates:
            return
        if self.saved is None or self.saved == pl_module.updates:
            return
        try:
            self._save(trainer, pl_module)
        except Exception as error:  # what ended the training is to be told, and not what came of it
            self.problem = getattr(error, "strerror", None) or str(error)

    def _save(self, trainer: L.Trainer, pl_module: Training) -> None:
        with pl_module.aside():
            self._refuse_nonfinite(pl_module)
            for logger in trainer.loggers:  # what a run goes on from has been logged for good
                logger.save()
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.last) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved, self._saved_at = pl_module.updates, pl_module.stamp

    def _copy(self, path: Path) -> None:
        """A second name for ``last.ckpt``, or a copy where the file system has none."""
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
