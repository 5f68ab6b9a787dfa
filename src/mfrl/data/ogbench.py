"""OGBench datasets as transitions: files in OGBench's format, single-task rewards and masks by OGBench itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.catalogue import DEFAULT_DATA_DIR, singletask_id
from mfrl.data import assembly, ogbench_files, records
from mfrl.data.augment import RandomCrop
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.cache import Cache, Prepared, Store
from mfrl.data.getting import how_to_get
from mfrl.data.module import OfflineData
from mfrl.data.npz import Npz
from mfrl.data.storage import Pages, as_tensor
from mfrl.envs import ogbench
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError, EnvError

PREPARATION = 2  #: of the code below that makes arrays of files; entries made by another are made again
#: Fields that mark the last row of a trajectory: OGBench's, and what other tools write beside it.
_ENDS = ("terminals", "timeouts", "truncations", "terminations")
_LABEL_SLICE = 1 << 17  # rows labelled together; each call resets the environment


class OGBenchData(OfflineData):
    """One single-task OGBench dataset: prepared once, then opened, in memory if it fits there.

    Args:
        dataset: e.g. ``cube-single-play-v0``, ``visual-scene-play-v0`` or ``cube-triple-play-100m-v0``.
        task: 1 to 5, or None for the dataset's default task.
        data_dir: folder of ``<dataset>.npz`` and ``<dataset>-val.npz``, or of a folder ``<dataset>`` of numbered files;
            None is OGBench's own default.
        reward_scale: factor of the rewards, positive.
        fraction: share of the training trajectories to keep, chosen by ``seed``.
        normalize: whether states are normalised with the mean and deviation of the kept training data; ``padded``: with
            those of the buffer of zeros that the official code of MeanFlowQL puts them into.
        frames: of images, how many make an observation.
        crop_probability: of images, that a batch is shifted at random, see :class:`RandomCrop`.
        cache, memory_gib: where prepared data are kept, and how much of them in memory, see :class:`Cache`.
        sampling: batch_size, chunk, seed, updates and marks, see :class:`OfflineData`.

    Raises:
        ConfigError: for a ``normalize`` that is none of these.
        DataError: on loading, for files that are missing, damaged or do not fit the environment.
    """

    def __init__(
        self,
        dataset: str,
        task: int | None = None,
        data_dir: str | None = None,
        reward_scale: float = 1.0,
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
        if not 0.0 < fraction <= 1.0:
            raise DataError(f"data.fraction={fraction} must be in (0, 1]")
        if not 0.0 < reward_scale < float("inf"):
            raise DataError(f"data.reward_scale={reward_scale} must be positive and finite")
        # A dataset of 100 million transitions, in a folder of files, is a larger one of the same environment.
        usual = re.sub(r"-100m(?=-v0$)", "", self.dataset)
        self.in_many_files = usual != self.dataset
        env_id = singletask_id(usual, task)
        if not ogbench.observes_pixels(env_id) and (frames != 1 or crop_probability):
            raise DataError(f"{dataset} holds no images to stack or crop: env.frames is 1, env.crop_probability 0")
        assembly.check_normalize(normalize)
        if ogbench.observes_pixels(env_id) and normalize == assembly.PADDED:
            raise DataError(
                f"data.normalize={normalize} is for states, and {dataset} holds images, which are not normalised: set "
                "data.normalize=false"
            )
        if frames < 1:
            raise DataError(f"env.frames={frames} must be at least 1")
        self.env = EnvSpec(env_id, frames=frames)
        self.data_dir = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
        self.reward_scale = reward_scale
        self.fraction, self.normalize = fraction, normalize
        self.cache, self.memory_gib = cache, memory_gib
        if crop_probability:
            self.augment = RandomCrop(crop_probability, self.seed)
        self._fingerprint: records.Fingerprint = records.fingerprint

    @property
    def paths(self) -> tuple[Path, ...]:
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
                name = self.dataset if self.in_many_files else path.name
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
            if self.reward_scale != 1.0:
                part.rewards = part.rewards * self.reward_scale
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
            cache.prepared(f"{name}.{self.env.env_id}", key | _labelled_by(), labels),
        ]


class Simulator:
    """What the files must fit and what labels them, built only when something is to be prepared.

    Images are labelled by the same scene without a camera, so that nothing is rendered.
    """

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id
        self.pixels = ogbench.observes_pixels(env_id)

    @cached_property
    def env(self) -> Any:
        return ogbench.make(self.env_id.removeprefix("visual-"))  # which registers those with a camera as well

    @property
    def action_dim(self) -> int:
        return self.env.action_space.shape[0]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        if not self.pixels:
            return self.env.observation_space.shape
        import gymnasium

        if self.env_id not in gymnasium.registry:  # there is a scene of this name, but not with a camera
            raise EnvError(f"there is no environment {self.env_id!r}")
        camera = gymnasium.spec(self.env_id).kwargs
        return camera["height"], camera["width"], 3

    @cached_property
    def state_widths(self) -> dict[str, int]:
        """The fields that rewards are computed from, and how many numbers each has."""
        self.env.reset()  # the manipulation scenes build their model at the first reset
        core = self.env.unwrapped
        widths = {"qpos": core.model.nq}
        if hasattr(core, "_cur_button_states"):
            widths["button_states"] = len(core._cur_button_states)
        return widths

    def label(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and masks ``(rows,)`` by OGBench's own rule."""
        from ogbench.relabel_utils import relabel_dataset

        relabel_dataset(self.env_id, self.env, state)
        return state["rewards"], state["masks"]

    def close(self) -> None:
        if "env" in vars(self):
            self.env.close()


def write_rows(store: Store, paths: Sequence[Path], simulator: Simulator) -> dict[str, Any]:
    """Observations, actions and where transitions start, of OGBench files read as one: what no task changes.

    Returns:
        of states, their ``statistics``.

    Raises:
        DataError: naming the file and the field.
    """
    files = [_opened(path) for path in paths]
    rows, action_dim = sum(_rows(file) for file in files), simulator.action_dim
    shape, pixels = simulator.observation_shape, simulator.pixels
    for file in files:
        _check_shape(file, "actions", action_dim)
        stored = file.dtype("observations")
        if pixels != (stored == np.uint8):
            holds, needs = ("pixels", "states") if stored == np.uint8 else (stored, "pixels, uint8")
            raise DataError(f"{file.path}: field 'observations' holds {holds}, but {simulator.env_id} observes {needs}")
        _check_shape(file, "observations", *shape)
    count = sum(len(_starts(file)) for file in files)
    starts = store.write("starts", (count,), np.int64, _shifted(files, _starts))
    if pixels:
        store.write("firsts", (rows,), np.int64, _shifted(files, _firsts))
    store.write("actions", (rows, action_dim), np.float32, _each(files, _actions))
    observations = store.write(
        "observations", (rows, *shape), np.uint8 if pixels else np.float32, _each(files, _observations)
    )
    if pixels:
        return {}
    pages = Pages([observations]) if isinstance(observations, np.memmap) else None
    return {"statistics": assembly.statistics(as_tensor(observations), as_tensor(starts), pages)}


def write_labels(store: Store, paths: Sequence[Path], simulator: Simulator) -> None:
    """Rewards and masks of the simulator's task, from the states in the files, which are not kept.

    Raises:
        DataError: naming the file and the field.
    """
    files = [_opened(path) for path in paths]
    rows, widths = sum(_rows(file) for file in files), simulator.state_widths
    for file in files:
        for field, width in widths.items():
            if field not in file:
                raise DataError(f"{file.path}: field '{field}' is missing, which rewards are computed from")
            _check_shape(file, field, width)
    masks: list[np.ndarray] = []  # a byte a row

    def rewards() -> Iterator[np.ndarray]:
        for file in files:
            states = [_finite(file, field, file.blocks(field, _LABEL_SLICE)) for field in widths]
            for state in zip(*states, strict=True):
                reward, mask = simulator.label(dict(zip(widths, state, strict=True)))
                masks.append(mask.astype(bool))
                yield reward

    store.write("rewards", (rows,), np.float32, rewards())
    store.write("masks", (rows,), np.float32, masks)


def _labelled_by() -> dict[str, str]:
    """The package that labels; nothing where it is not installed, so that labels made elsewhere will do."""
    try:
        return {"ogbench": metadata.version("ogbench")}
    except metadata.PackageNotFoundError:
        return {}


def _opened(path: Path) -> Npz:
    file = Npz(path)
    for field in ("observations", "actions", "terminals", "qpos"):
        if field not in file:
            raise DataError(f"{path}: field '{field}' is missing (found {', '.join(sorted(file.fields))})")
    rows = file.shape("terminals")
    for field in _ENDS:
        if field in file and (len(rows) != 1 or file.shape(field) != rows):
            raise DataError(f"{path}: field '{field}' has shape {file.shape(field)}, expected (rows,)")
    return file


def _rows(file: Npz) -> int:
    return file.shape("terminals")[0]


def _terminals(file: Npz) -> np.ndarray:
    """Bool ``(rows,)``: the last state of each trajectory, whichever field says so."""
    rows = _rows(file)
    if rows < 2:
        raise DataError(f"{file.path}: field 'terminals' has {rows} rows, expected at least 2")
    ends = np.zeros(rows, bool)
    for field in _ENDS:
        if field in file:
            flags = file.read(field)
            if not np.isin(flags, (0, 1)).all():
                raise DataError(f"{file.path}: field '{field}' holds values other than 0 and 1")
            ends |= flags.astype(bool)
    if not ends[-1]:
        raise DataError(f"{file.path}: field 'terminals' does not end its last trajectory: the file is cut off")
    return ends


def _starts(file: Npz) -> np.ndarray:
    """Rows that have a successor in their trajectory."""
    starts = np.flatnonzero(~_terminals(file))
    if len(starts) == 0:
        raise DataError(f"{file.path}: no trajectory has two states, so there is no transition")
    return starts


def _firsts(file: Npz) -> np.ndarray:
    """For each row the first one of its trajectory."""
    terminals = _terminals(file)
    begins = np.concatenate([[True], terminals[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(terminals)), 0))


def _actions(file: Npz) -> Iterator[np.ndarray]:
    at = 0
    for block in _finite(file, "actions", file.blocks("actions")):
        block = block.astype(np.float32)
        if (out := np.abs(block).max(axis=1) > 1.0 + 1e-6).any():
            k = int(out.argmax())
            raise DataError(f"{file.path}: field 'actions' leaves [-1, 1] at row {at + k}: {block[k]}")
        yield np.clip(block, -1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP)
        at += len(block)


def _observations(file: Npz) -> Iterator[np.ndarray]:
    blocks = file.blocks("observations")
    return blocks if file.dtype("observations") == np.uint8 else _finite(file, "observations", map(_single, blocks))


def _single(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        return block.astype(np.float32, copy=False)


def _each(files: Sequence[Npz], read: Callable[[Npz], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    for file in files:
        yield from read(file)


def _shifted(files: Sequence[Npz], rows_of: Callable[[Npz], np.ndarray]) -> Iterator[np.ndarray]:
    """Numbers of rows, as they count in all files together."""
    before = 0
    for file in files:
        yield rows_of(file) + before
        before += _rows(file)


def _check_shape(file: Npz, field: str, *row: int) -> None:
    expected = (_rows(file), *row)
    if file.shape(field) != expected:
        raise DataError(f"{file.path}: field '{field}' has shape {file.shape(field)}, expected {expected}")


def _finite(file: Npz, field: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    at = 0
    for block in blocks:
        if block.dtype.kind == "f" and not (good := np.isfinite(block).reshape(len(block), -1).all(axis=1)).all():
            raise DataError(f"{file.path}: field '{field}' holds NaN or infinity at row {at + int(good.argmin())}")
        yield block
        at += len(block)
