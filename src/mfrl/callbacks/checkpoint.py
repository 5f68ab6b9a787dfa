"""Checkpoints that are whole, finite and plain data."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mfrl.algorithms.base import OfflineAlgorithm
from mfrl.errors import DivergedError
from mfrl.files import replacing
from mfrl.run import load_checkpoint


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint where it is asked to, and reads none that is damaged.

    Lightning's own writes to the system's folder for temporary files first, which may be full, small or missing while
    the run's disk has room.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch hides why a write failed; from here it is an OSError
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


class Checkpoint(L.Callback):
    """Every ``every`` updates and at the end: ``last.ckpt``, and ``update=<k>.ckpt`` too where ``keep_all``.

    A checkpoint is written under a temporary name and renamed, and never with a parameter that is not finite. It
    carries ``extra`` under the key "mfrl": the composed configuration and what else is needed to act again, as plain
    data that loads with ``weights_only=True``.

    Raises:
        DivergedError: where a parameter is not finite; ``last.ckpt`` stays as it was.
    """

    def __init__(self, folder: str | Path, every: int, keep_all: bool, extra: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.every, self.keep_all, self.extra = every, keep_all, extra

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = InPlace()

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["mfrl"] = self.extra

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: OfflineAlgorithm, *_: Any) -> None:
        k = pl_module.updates
        if k % self.every and k < pl_module.total_updates:
            return
        with pl_module.aside():
            self._refuse_nonfinite(pl_module)
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.last) as temporary:
                trainer.save_checkpoint(temporary)
            if self.keep_all:
                with replacing(self.folder / f"update={k}.ckpt") as temporary:
                    os.link(self.last, temporary)

    def _refuse_nonfinite(self, pl_module: OfflineAlgorithm) -> None:
        with torch.no_grad():
            finite = torch.stack([p.isfinite().all() for p in pl_module.parameters()])
        if not bool(finite.all()):
            names = [
                name for (name, _), ok in zip(pl_module.named_parameters(), finite.tolist(), strict=True) if not ok
            ]
            raise DivergedError(
                f"update {pl_module.updates}: parameters are not finite ({names[0]} and {len(names) - 1} more); "
                f"{self.last} stays at the last good update"
            )
