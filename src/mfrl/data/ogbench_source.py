"""What files in OGBench's format hold, read in blocks, checked row by row, and labelled by OGBench itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.data.assembly import statistics
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.cache import Store
from mfrl.data.npz import Npz
from mfrl.data.storage import Pages, as_tensor
from mfrl.envs import ogbench
from mfrl.errors import DataError, EnvError

PREPARATION = 2  #: of the code that makes arrays of files; entries made by another are made again
#: Fields that mark the last row of a trajectory: OGBench's, and what other tools write beside it.
_ENDS = ("terminals", "timeouts", "truncations", "terminations")
_LABEL_SLICE = 1 << 17  # rows labelled together; each call resets the environment


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
    return {"statistics": statistics(as_tensor(observations), as_tensor(starts), pages)}


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


def labelled_by() -> dict[str, str]:
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
