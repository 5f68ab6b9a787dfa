"""Checkpoints that are whole, finite and plain data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L

from mfrl.algorithms.base import OfflineAlgorithm
from mfrl.errors import DivergedError
from mfrl.files import replacing


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
        if names := pl_module.nonfinite_parameters():
            left = f"{self.last} stays at the last good update" if self.last.is_file() else "no checkpoint is written"
            raise DivergedError(
                f"update {pl_module.updates}: parameters are not finite ({names[0]} and {len(names) - 1} more); {left}"
            )
