"""What every datamodule shares with Lightning: transitions on the device of training, handed out in chunks."""

from __future__ import annotations

import lightning as L
import torch

from mfrl.data.transitions import ChunkLoader, Transitions


class OfflineData(L.LightningDataModule):
    """A LightningDataModule whose ``setup`` fills ``train``, ``val`` and ``spec``.

    Args:
        batch_size, chunk, seed, updates, marks: of the sampling, see :class:`ChunkLoader`.
    """

    def __init__(self, batch_size: int, chunk: int, seed: int, updates: int, marks: tuple[int, ...]) -> None:
        super().__init__()
        self.batch_size, self.chunk, self.seed, self.updates, self.marks = (
            batch_size,
            chunk,
            seed,
            updates,
            tuple(marks),
        )
        self.train: Transitions | None = None
        self.val: Transitions | None = None
        self.warnings: list[str] = []

    def on_device(self, device: torch.device) -> Transitions:
        """The training transitions, moved to ``device`` once and kept there."""
        assert self.train is not None, "call setup() first"
        self.train = self.train.to(device)
        return self.train

    def train_dataloader(self) -> ChunkLoader:
        assert self.trainer is not None
        first = self.trainer.lightning_module.updates
        transitions = self.on_device(self.trainer.strategy.root_device)
        return ChunkLoader(transitions, self.batch_size, self.seed, first, self.updates, self.chunk, self.marks)
