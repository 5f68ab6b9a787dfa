"""OGBench datasets as transitions: files in OGBench's format, single-task rewards and masks by OGBench itself."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfrl.collect.settings import DEFAULT_DATA_DIR, CollectError, plan
from mfrl.data import provenance
from mfrl.data.module import OfflineData
from mfrl.data.transitions import ACTION_CLIP, DataError, DataSpec, Transitions
from mfrl.envs.evaluation import EnvSpec
from mfrl.envs.ogbench import singletask_id

_SLICE = 1 << 14  # rows looked at together, so that checks and sums need no memory to speak of
_LABEL_SLICE = 1 << 17  # rows labelled together; each call resets the environment


class OGBenchData(OfflineData):
    """One single-task OGBench dataset, whole in memory, on the device of training.

    Args:
        dataset: e.g. ``cube-single-play-v0``.
        task: 1 to 5, or None for the dataset's default task.
        data_dir: folder of ``<dataset>.npz`` and ``<dataset>-val.npz``; None is OGBench's own default.
        reward_scale: factor of the rewards, positive.
        fraction: share of the training trajectories to keep, chosen by ``seed``.
        normalize: whether observations are normalised with the mean and deviation of the kept training data.
        batch_size, chunk, seed, updates, marks: of the sampling, see :class:`ChunkLoader`.

    Raises:
        DataError: on loading, for files that are missing, damaged or do not fit the environment.
    """

    def __init__(
        self,
        dataset: str,
        task: int | None = None,
        data_dir: str | None = None,
        reward_scale: float = 1.0,
        fraction: float = 1.0,
        normalize: bool = True,
        batch_size: int = 256,
        chunk: int = 8,
        seed: int = 0,
        updates: int = 1_000_000,
        marks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(batch_size, chunk, seed, updates, marks)
        self.dataset = dataset if dataset.endswith("-v0") else f"{dataset}-v0"
        if not 0.0 < fraction <= 1.0:
            raise DataError(f"data.fraction={fraction} must be in (0, 1]")
        if not 0.0 < reward_scale < float("inf"):
            raise DataError(f"data.reward_scale={reward_scale} must be positive and finite")
        self.env = EnvSpec(singletask_id(self.dataset, task))
        self.data_dir = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
        self.reward_scale = reward_scale
        self.fraction, self.normalize = fraction, normalize

    @property
    def paths(self) -> tuple[Path, Path]:
        return provenance.data_paths(self.data_dir, self.dataset)

    def provenance(self) -> dict[str, Any]:
        """Where the files come from, with checksums, and which part of them is used."""
        return provenance.describe(self.data_dir, self.dataset) | {"fraction": self.fraction}

    def collect(self, **settings: Any) -> None:
        from mfrl.collect import collect

        collect(self.dataset, self.data_dir, **settings)

    def setup(self, stage: str | None = None) -> None:
        """Read, check, label and normalise both files. Does nothing the second time."""
        if self.train is not None:
            return
        for path in self.paths:
            if not path.is_file():
                raise DataError(self._how_to_get(path))
        train_path, val_path = self.paths
        env = self.env.make()
        try:
            train = read_transitions(train_path, self.env.env_id, env)
            val = read_transitions(val_path, self.env.env_id, env)
        finally:
            env.close()
        if self.fraction < 1.0:
            train.starts = keep_trajectories(train.starts, self.fraction, self.seed)
        for part in (train, val):
            part.rewards *= self.reward_scale
        self.spec = summarise(train, self.normalize)
        for part in (train, val):
            normalize_(part.observations, self.spec)
        if not bool((train.masks[train.starts] == 0).any()):
            self.warnings.append(
                f"{train_path} holds no success at all for {self.env.env_id}: every reward says 'not yet', and "
                "Q-learning has nothing to find. Choose another task (env.task=...) or more data."
            )
        self.train, self.val = train, val

    def _how_to_get(self, path: Path) -> str:
        try:
            plan(self.dataset, self.data_dir)
            elsewhere = "" if self.data_dir == Path(DEFAULT_DATA_DIR).expanduser() else f" data_dir={self.data_dir}"
            name = self.dataset.removesuffix("-v0")
            remedy = f"collect it in the simulator:  mfrl collect env=ogbench/{name}{elsewhere}"
        except CollectError as error:
            remedy = str(error)
        return f"{path.name} is not in {path.parent} (data_dir= or the default {DEFAULT_DATA_DIR}); {remedy}"


def read_transitions(path: Path, env_id: str, env: Any) -> Transitions:
    """One OGBench file as transitions with the rewards and masks of a single task, observations as they are.

    Raises:
        DataError: naming the file and the field.
    """
    observation_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    with _opened(path) as file:
        for field in ("observations", "actions", "terminals", "qpos"):
            if field not in file:
                raise DataError(f"{path}: field '{field}' is missing (found {', '.join(sorted(file))})")
        terminals = _read(file, path, "terminals", np.float32)
        if terminals.ndim != 1:
            raise DataError(f"{path}: field 'terminals' has shape {terminals.shape}, expected (rows,)")
        rows = len(terminals)

        rewards, masks = _labels(file, path, env_id, env, rows)
        actions = _read(file, path, "actions", np.float32)
        _check(path, "actions", actions, rows, action_dim)
        if (out := _first_row(actions, lambda x: np.abs(x) > 1.0 + 1e-6)) is not None:
            raise DataError(f"{path}: field 'actions' leaves [-1, 1] at row {out}: {actions[out]}")
        observations = _read(file, path, "observations")
        if observations.dtype == np.uint8:
            raise DataError(f"{path}: field 'observations' holds pixels; only state observations can be read")
        observations = observations.astype(np.float32, copy=False)
        _check(path, "observations", observations, rows, observation_dim)

    starts = _starts(path, terminals)
    np.clip(actions, -1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP, out=actions)
    return Transitions(*(torch.from_numpy(x) for x in (observations, actions, rewards, masks, starts)))


def _labels(file: Any, path: Path, env_id: str, env: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masks ``(rows,)`` by OGBench's own rule, from the simulator's state, which is not kept."""
    from ogbench.relabel_utils import relabel_dataset

    env.reset()  # the manipulation scenes build their model at the first reset
    core = env.unwrapped
    widths = {"qpos": core.model.nq}
    if hasattr(core, "_cur_button_states"):
        widths["button_states"] = len(core._cur_button_states)
    state = {}
    for name, width in widths.items():
        if name not in file:
            raise DataError(f"{path}: field '{name}' is missing, which rewards are computed from")
        state[name] = _read(file, path, name)
        _check(path, name, state[name], rows, width)
    rewards, masks = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for part in (slice(k, k + _LABEL_SLICE) for k in range(0, rows, _LABEL_SLICE)):
        labels = {name: array[part] for name, array in state.items()}
        relabel_dataset(env_id, env, labels)
        rewards[part], masks[part] = labels["rewards"], labels["masks"]
    return rewards, masks


def keep_trajectories(starts: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """The transitions of a random share of the trajectories, at least one; in their order."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), starts[1:] != starts[:-1] + 1])
    number = first.cumsum(0) - 1
    count = int(number[-1]) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, round(fraction * count))]] = True
    return starts[kept[number]]


def summarise(transitions: Transitions, normalize: bool) -> DataSpec:
    """Sizes, reward range, and the mean and deviation of the observations that transitions start from."""
    dim = transitions.observations.shape[1]
    mean, std = torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    if normalize:
        total, square = torch.zeros_like(mean), torch.zeros_like(mean)
        offset = transitions.observations[transitions.starts[0]].double()  # keeps the squares small
        for rows in transitions.starts.split(_SLICE):
            x = transitions.observations[rows].double() - offset
            total += x.sum(0)
            square += x.square().sum(0)
        n = len(transitions)
        mean = offset + total / n
        std = (square / n - (total / n).square()).clamp_min(0.0).sqrt()
        std[std < 1e-6] = 1.0  # a coordinate that never varies is only centred
    rewards = transitions.rewards[transitions.starts]
    return DataSpec(
        observation_dim=dim,
        action_dim=transitions.actions.shape[1],
        observation_mean=tuple(mean.tolist()),
        observation_std=tuple(std.tolist()),
        reward_min=float(rewards.min()),
        reward_max=float(rewards.max()),
    )


def normalize_(observations: torch.Tensor, spec: DataSpec) -> None:
    """(x - mean) / std in place."""
    observations.sub_(torch.tensor(spec.observation_mean)).div_(torch.tensor(spec.observation_std))


def _starts(path: Path, terminals: np.ndarray) -> np.ndarray:
    """Rows that have a successor in their trajectory."""
    if len(terminals) < 2:
        raise DataError(f"{path}: field 'terminals' has {len(terminals)} rows, expected at least 2")
    if not np.isin(terminals, (0.0, 1.0)).all():
        raise DataError(f"{path}: field 'terminals' holds values other than 0 and 1")
    if terminals[-1] != 1.0:
        raise DataError(f"{path}: field 'terminals' does not end its last trajectory: the file is cut off")
    starts = np.flatnonzero(terminals == 0.0)
    if len(starts) == 0:
        raise DataError(f"{path}: no trajectory has two states, so there is no transition")
    return starts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise DataError(f"{path}: a single array, not an .npz archive of fields")
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged or truncated ({error}); collect or download it again") from error
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as an .npz file ({error})") from error


def _read(file: Any, path: Path, field: str, dtype: Any = None) -> np.ndarray:
    try:
        array = file[field]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DataError(f"{path}: field '{field}' is damaged or refused ({error})") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: field '{field}' holds {array.dtype}, expected numbers")
    return array if dtype is None else array.astype(dtype, copy=False)


def _check(path: Path, field: str, array: np.ndarray, rows: int, dim: int | None = None) -> None:
    expected = f"({rows}, {'n' if dim is None else dim})"
    if array.ndim != 2 or len(array) != rows or (dim is not None and array.shape[1] != dim):
        raise DataError(f"{path}: field '{field}' has shape {array.shape}, expected {expected}")
    if array.dtype.kind == "f" and (bad := _first_row(array, lambda x: ~np.isfinite(x))) is not None:
        raise DataError(f"{path}: field '{field}' holds NaN or infinity at row {bad}")


def _first_row(array: np.ndarray, wrong: Any) -> int | None:
    """The first row with an element that is wrong, looked for slice by slice."""
    for start in range(0, len(array), _SLICE):
        rows = wrong(array[start : start + _SLICE]).any(axis=1)
        if rows.any():
            return start + int(rows.argmax())
    return None
