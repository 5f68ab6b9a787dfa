"""OGBench datasets as transitions: files in OGBench's format, single-task rewards and masks by OGBench itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.catalogue import DEFAULT_DATA_DIR, in_many_files, singletask_id
from mfrl.data import assembly, ogbench_files, records
from mfrl.data.augment import RandomCrop
from mfrl.data.cache import Cache, Prepared, Store
from mfrl.data.getting import how_to_get
from mfrl.data.module import OfflineData
from mfrl.data.ogbench_source import PREPARATION, Simulator, labelled_by, write_labels, write_rows
from mfrl.envs import ogbench
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError


class OGBenchData(OfflineData):
    """One single-task OGBench dataset: prepared once, then opened, in memory if it fits there.

    Args:
        dataset: e.g. ``cube-single-play-v0``, ``visual-scene-play-v0`` or ``cube-triple-play-100m-v0``.
        task: 1 to 5, or None for the dataset's default task.
        data_dir: folder of ``<dataset>.npz`` and ``<dataset>-val.npz``, or of a folder ``<dataset>`` of numbered files;
            None is OGBench's own default.
        reward_scale: factor of the rewards, positive.
        sparse: rewards are 0 where the whole task is complete and -1 elsewhere, -(r != 0). OGBench counts what is still
            to be done in manipulation; of locomotion nothing changes.
        fraction: share of the training trajectories to keep, chosen by ``seed``.
        normalize: whether states are normalised with the mean and deviation of the kept training data; ``padded``: with
            those of the buffer of zeros that the official code of MeanFlowQL puts them into.
        frames: of images, how many make an observation.
        crop_probability: of images, that a batch is shifted at random, see :class:`RandomCrop`.
        cache, memory_gib: where prepared data are kept, and how much of them in memory, see :class:`Cache`.
        sampling: batch_size, chunk, seed, updates and marks, see :class:`OfflineData`.

    Raises:
        ConfigError: at once for a setting that cannot be used.
        DataError: on loading, for files that are missing, damaged or do not fit the environment.
    """

    data_dir: Path

    def __init__(
        self,
        dataset: str,
        task: int | None = None,
        data_dir: str | None = None,
        reward_scale: float = 1.0,
        sparse: bool = False,
        fraction: float = 1.0,
        normalize: assembly.Normalize = True,
        frames: int = 1,
        crop_probability: float = 0.0,
        cache: bool | str | None = None,
        memory_gib: float = 4.0,
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        self.dataset = dataset if dataset.endswith("-v0") else f"{dataset}-v0"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.dataset):  # it becomes part of paths
            raise DataError(f"{dataset!r} is no name of an OGBench dataset, such as cube-single-play-v0")
        assembly.check_settings(fraction, reward_scale, normalize)
        env_id = singletask_id(self.dataset, task)
        if not ogbench.observes_pixels(env_id) and (frames != 1 or crop_probability):
            raise DataError(f"{dataset} holds no images to stack or crop: env.frames is 1, env.crop_probability 0")
        if ogbench.observes_pixels(env_id) and normalize == assembly.PADDED:
            raise DataError(
                f"data.normalize={normalize} is for states, and {dataset} holds images, which are not normalised: set "
                "data.normalize=false"
            )
        if frames < 1:
            raise DataError(f"env.frames={frames} must be at least 1")
        self.env = EnvSpec(env_id, frames=frames)
        self.data_dir = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
        self.reward_scale, self.sparse = reward_scale, sparse
        self.fraction, self.normalize = fraction, normalize
        self.cache, self.memory_gib = cache, memory_gib
        if crop_probability:
            self.augment = RandomCrop(crop_probability, self.seed)
        self._fingerprint: records.Fingerprint = records.fingerprint

    @property
    def paths(self) -> tuple[Path, ...]:  # type: ignore[override]  # to be read alone
        train, val = ogbench_files.data_files(self.data_dir, self.dataset)
        return (*train, *val)

    def provenance(self) -> dict[str, Any]:
        """Where the files come from, with checksums, and which part of them is used."""
        return ogbench_files.describe(self.data_dir, self.dataset, self._fingerprint) | {"fraction": self.fraction}

    def download(self, **settings: Any) -> None:
        from mfrl.data.ogbench_download import download

        download(self.dataset, self.data_dir, **settings)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared data, or read, check and label the files first. Does nothing the second time."""
        if self.train is not None:
            return
        train_paths, val_paths = ogbench_files.data_files(self.data_dir, self.dataset)
        for path in (*train_paths, *val_paths):
            if not path.is_file():
                name = self.dataset if in_many_files(self.dataset) else path.name
                ways = how_to_get(self.dataset, self.data_dir)
                raise DataError(f"{name} is not in {path.parent} (data_dir= or the default {DEFAULT_DATA_DIR}); {ways}")
        cache = Cache(self.data_dir, self.cache, self.memory_gib, self.writes_apart)
        self._fingerprint = cache.checksums.of
        simulator = Simulator(self.env.env_id)
        try:
            train = self._prepared(cache, self.dataset, train_paths, simulator)
            val = self._prepared(cache, f"{self.dataset}-val", val_paths, simulator)
        finally:
            simulator.close()
        self.train, self.val = assembly.loaded(cache, train, val, frames=self.env.frames)
        for part in (self.train, self.val):
            part.rewards = self._scaled(part.rewards)
        known = train[0].facts.get("statistics")
        if self.fraction < 1.0:
            self.train.starts, known = assembly.keep_trajectories(self.train.starts, self.fraction, self.seed), None
        self.spec = assembly.summarise(self.train, self.normalize, known)
        self.warnings += [f"{self.dataset}: {text}" for text in assembly.absurd_features(self.train, known)]
        assembly.normalize_states(self.spec, self.train, self.val)
        self.action_bounds = self.spec.action_dim * [-1.0], self.spec.action_dim * [1.0]  # of every OGBench environment
        self.warnings += cache.warnings
        if not bool((self.train.masks[self.train.starts] == 0).any()):
            self.warnings.append(
                f"{train_paths[0]} holds no success at all for {self.env.env_id}: every reward says 'not yet', and "
                "Q-learning has nothing to find. Choose another task (env.task=...) or more data."
            )

    def labels(
        self, next_observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The environment's own: like the data's, they judge the state that the action was taken in."""
        return self._scaled(rewards), terminated

    def _scaled(self, rewards: Any) -> Any:
        rewards = -1.0 * (rewards != 0.0) if self.sparse else rewards
        return rewards * self.reward_scale if self.reward_scale != 1.0 else rewards

    def _prepared(self, cache: Cache, name: str, paths: Sequence[Path], simulator: Simulator) -> list[Prepared]:
        """What the files hold, which all tasks share, and the labels of this one."""
        sources = {path.name: self._fingerprint(path) for path in paths}
        key = {"sources": sources, "preparation": PREPARATION}

        def refuse_changed() -> None:
            for path in paths:
                if self._fingerprint(path) != sources[path.name]:
                    raise DataError(f"{path} changed while it was read; start again when it is complete")

        def rows(store: Store) -> dict[str, Any]:
            facts = write_rows(store, paths, simulator)
            refuse_changed()
            return facts | {"provenance": self.provenance()}

        def labels(store: Store) -> dict[str, Any]:
            write_labels(store, paths, simulator)
            refuse_changed()
            return {}

        return [
            cache.prepared(name, key, rows),
            cache.prepared(f"{name}.{self.env.env_id}", key | labelled_by(), labels),
        ]
