"""The base of all datamodules: transitions on the training device, which Lightning gets in chunks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from mfrl.data.augment import RandomCrop
from mfrl.data.batch import DataSpec
from mfrl.data.sampling import ChunkLoader, InTurn
from mfrl.data.storage import Transitions
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError


class OfflineData(L.LightningDataModule):
    """A LightningDataModule whose ``setup`` fills ``train``, ``val`` and ``spec``.

    A subclass sets ``dataset``, ``env``, ``data_dir`` and ``paths`` in its constructor, and defines ``setup`` and
    ``provenance``.

    Attributes:
        train, val: transitions for training and held-out ones; ``val`` is None if nothing is held out.
        dataset: name of the dataset.
        env: the environment that evaluates policies.
        data_dir: the folder of the files; None if nothing is read.
        paths: the files that must exist before ``setup``.
        warnings: sentences of ``setup`` that a user should read before training.
        augment: changes each batch before training; None changes nothing.
        action_bounds: after ``setup``, the lowest and the highest actions in the units of the files, each
            ``(action_dim,)``, which became -1 and 1; None without an environment.
        observation_shapes: after ``setup``, the shapes of what an observation's vector is made of: of the entries
            ``env.observation_keys``, or of the one array; None where observations are vectors or images as they come.
        writes_apart: write nothing beside the files or into ``cache``, because a checkpoint named them and not the
            user.

    Args:
        batch_size, chunk, seed, updates, marks: see :class:`ChunkLoader`.
    """

    dataset: str
    env: EnvSpec
    spec: DataSpec
    data_dir: Path | None
    paths: tuple[Path, ...]
    action_bounds: tuple[list[float], list[float]] | None = None
    observation_shapes: list[list[int]] | None = None
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
        """The origin of the data with checksums, and the part of them that is used. Call :meth:`setup` first."""
        raise NotImplementedError

    def download(self, **settings: Any) -> None:
        """Fetch the files from the server that offers them.

        Raises:
            DataError: no server offers them, or it cannot be reached.
        """
        raise DataError(f"{self.dataset} cannot be downloaded: no server offers it")

    def labels(
        self, next_observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and terminations of steps in the environment, as the data have them for the same steps.

        Args:
            next_observations: of the states in which the steps end, raw: ``(steps, ...)``.
            rewards: what the environment gave, ``(steps,)``.
            terminated: bool ``(steps,)``, where the environment says that the episode is over for good.
        """
        return rewards, terminated

    def on_device(self, device: torch.device) -> Transitions:
        """The training transitions, moved to ``device`` once and kept there."""
        assert self.train is not None, "call setup() first"
        self.train = self.train.to(device)
        return self.train

    def train_dataloader(self) -> Iterable[Any]:
        """The chunks of the updates that are left: offline ones, and then those of the online phase."""
        assert self.trainer is not None
        training: Any = self.trainer.lightning_module
        loaders: list[Any] = []
        if training.updates < self.updates:
            loaders.append(self._offline(training))
        if training.online is not None:
            loaders.append(training.online.chunks(training.updates, training.total_updates, self.chunk, self.marks))
        return InTurn(loaders)

    def _offline(self, training: Any) -> ChunkLoader:
        assert self.trainer is not None
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
