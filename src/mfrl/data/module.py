"""What every datamodule shares with Lightning: transitions on the device of training, handed out in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from mfrl.data.augment import RandomCrop
from mfrl.data.batch import DataSpec
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError


class OfflineData(L.LightningDataModule):
    """A LightningDataModule whose ``setup`` fills ``train``, ``val`` and ``spec``.

    A subclass sets ``dataset``, ``env``, ``data_dir`` and ``paths`` when it is made, and defines ``setup`` and
    ``provenance``.

    Attributes:
        train, val: transitions to train on and to hold out; ``val`` stays None where nothing is held out.
        dataset: name of the data set.
        env: the environment its policies are evaluated in.
        data_dir: the folder the files lie in; None where nothing is read.
        paths: the files that must be there before ``setup``.
        warnings: what ``setup`` found that a user should know before training.
        augment: changes each batch before it is trained on; None leaves them as they are.
        action_bounds: after ``setup``, lowest and highest actions in the files, each ``(action_dim,)``, which became -1
            and 1; None where they are of no environment.
        writes_apart: nothing is written beside the files or into ``cache``: a checkpoint named them, and not the user.

    Args:
        batch_size, chunk, seed, updates, marks: of the sampling, see :class:`ChunkLoader`.
    """

    dataset: str
    env: EnvSpec
    spec: DataSpec
    data_dir: Path | None
    paths: tuple[Path, ...]
    action_bounds: tuple[list[float], list[float]] | None = None
    writes_apart: bool = False

    def __init__(
        self,
        batch_size: int = 256,
        chunk: int = 8,
        seed: int = 0,
        updates: int = 1_000_000,
        marks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.batch_size, self.chunk, self.seed, self.updates = batch_size, chunk, seed, updates
        self.marks = tuple(marks)
        self.train: Transitions | None = None
        self.val: Transitions | None = None
        self.warnings: list[str] = []
        self.augment: RandomCrop | None = None

    def provenance(self) -> dict[str, Any]:
        """Where the data come from, with checksums, and which part of them is used; after ``setup``."""
        raise NotImplementedError

    def download(self, **settings: Any) -> None:
        """Fetch the files from the server that offers them.

        Raises:
            DataError: where none does, or none can be reached.
        """
        raise DataError(f"{self.dataset} cannot be downloaded: no server offers it")

    def on_device(self, device: torch.device) -> Transitions:
        """The training transitions, moved to ``device`` once and kept there."""
        assert self.train is not None, "call setup() first"
        self.train = self.train.to(device)
        return self.train

    def train_dataloader(self) -> ChunkLoader:
        assert self.trainer is not None
        training: Any = self.trainer.lightning_module
        seeds = [algorithm.seed for algorithm in (training.algorithm, *training.beside)]
        augment, alone = self.augment, len(seeds) == 1
        return ChunkLoader(
            self.on_device(self.trainer.strategy.root_device),
            self.batch_size,
            self.seed if alone else seeds,
            training.updates,
            self.updates,
            self.chunk,
            self.marks,
            training.algorithm.discount,
            augment if alone or augment is None else [augment.of(seed) for seed in seeds],
            training.algorithm.next_actions,
        )
