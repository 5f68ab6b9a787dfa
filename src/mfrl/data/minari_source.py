"""Read the episodes of a Minari dataset through Minari and check every number. Reading executes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.data.batch import ACTION_CLIP
from mfrl.data.cache import Store
from mfrl.envs import minari as envs
from mfrl.errors import DataError, EnvError

_ACTION_SLACK = 1e-5  # in units of [-1, 1]
#: What reading a damaged or invented file raises in json, h5py, minari and gymnasium.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RuntimeError)
#: What HDF5 says of a file that another process has open for writing, or left so when it was killed.
_BEING_WRITTEN = ("unable to lock file", "already open for write")


@dataclass(frozen=True)
class Episode:
    """An episode of T steps.

    Attributes:
        observations: ``(T + 1, observation_dim)`` float32.
        actions: ``(T, action_dim)`` float32 in [-1, 1].
        rewards: ``(T,)``.
        terminated: bool ``(T,)``: the task ended with this step.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray


def write_rows(store: Store, episodes: Sequence[Episode]) -> None:
    """Write the steps of all episodes as rows: the fields of :class:`Transitions`, with rewards in float64.

    No transition starts from an episode's last row. Its action and reward are 0 and its mask is 1; nothing reads them.
    """
    lengths = [len(episode.observations) for episode in episodes]
    firsts = np.cumsum(lengths) - lengths

    def write(field: str, width: tuple[int, ...], dtype: Any, rows_of: Callable[[Episode], np.ndarray]) -> None:
        store.write(field, (sum(lengths), *width), dtype, map(rows_of, episodes))

    write("observations", episodes[0].observations.shape[1:], np.float32, lambda e: e.observations)
    write("actions", episodes[0].actions.shape[1:], np.float32, lambda e: _clipped(np.pad(e.actions, ((0, 1), (0, 0)))))
    write("rewards", (), np.float64, lambda e: np.append(e.rewards, 0.0))
    write("masks", (), np.float32, lambda e: np.append(~e.terminated, True))
    starts = (first + np.arange(length - 1) for first, length in zip(firsts, lengths, strict=True))
    store.write("starts", (sum(lengths) - len(lengths),), np.int64, starts)


def _clipped(actions: np.ndarray) -> np.ndarray:
    return np.clip(actions, -1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP)


@dataclass(frozen=True)
class Description:
    """A dataset's description of itself, as plain data that is kept beside prepared transitions.

    Attributes:
        metadata: the content of ``metadata.json``.
        keys: entries of the observation, see :func:`mfrl.envs.minari.vector_keys`.
        shapes: of these entries, or of the one vector.
        low, high: bounds of the actions ``(action_dim,)``.
    """

    metadata: dict[str, Any]
    keys: Sequence[str] | None
    shapes: Sequence[Sequence[int]]
    low: Sequence[float]
    high: Sequence[float]

    def name_of(self, number: int) -> str:
        """The name of a dimension of the observation vector, after the entry from which it comes."""
        for key, shape in zip(self.keys or (None,), self.shapes, strict=True):
            if number < (size := math.prod(shape)):
                return f"feature {number}" if key is None else f"feature {number} of the entry {key!r}"
            number -= size
        raise IndexError(number)


@dataclass(frozen=True)
class Source:
    """A dataset on disk. :meth:`open` has checked its description."""

    folder: Path
    dataset: str
    description: Description
    data: Any  #: minari.MinariDataset

    @classmethod
    def open(cls, folder: Path, dataset: str, observation_keys: Sequence[str] | None) -> Source:
        """Check ``metadata.json`` and open the dataset.

        Minari would build the environment to fill in missing fields, so the check comes before Minari reads the file.

        Args:
            folder: of the dataset.
            dataset: its id.
            observation_keys: see :func:`mfrl.envs.minari.vector_keys`.

        Raises:
            DataError: the message names the file and the field.
        """
        path = folder / "data" / "metadata.json"
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{dataset}: {path} is missing; the dataset is incomplete: get it again") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{dataset}: {path} cannot be read ({error}); get it again") from error
        _check_metadata(path, dataset, metadata)
        with _reading(dataset, path):
            from minari import MinariDataset
            from minari.serialization import deserialize_space

            observations, actions = (deserialize_space(metadata[f"{name}_space"]) for name in ("observation", "action"))
            data = MinariDataset(folder / "data")
        try:
            low, high = envs.action_bounds(actions)
            keys = envs.vector_keys(observations, observation_keys)
        except EnvError as error:
            raise DataError(f"{dataset}: {error}") from error
        shapes = [part.shape for part in envs.vector_parts(observations, keys)]
        return cls(folder, dataset, Description(metadata, keys, shapes, low.tolist(), high.tolist()), data)

    def episodes(self) -> Iterator[Episode]:
        """Read and check one episode after another, with actions scaled to [-1, 1].

        Raises:
            DataError: the message names the dataset, the episode and the field.
        """
        reader, where = None, f"{self.dataset}: episode"
        for number in range(self.description.metadata["total_episodes"]):
            with _reading(f"{where} {number}", self.folder / "data"):
                reader = reader or iter(self.data.iterate_episodes())
                raw = next(reader)
            yield self._checked(raw, f"{where} {number}")

    def _checked(self, raw: Any, where: str) -> Episode:
        steps = len(raw.rewards)
        if steps == 0:
            raise DataError(f"{where} is empty: it has no step")
        low, high = np.array(self.description.low), np.array(self.description.high)
        actions = _array(raw.actions, (steps, len(low)), f"{where}, field 'actions'")
        actions = 2.0 * (actions - low) / (high - low) - 1.0
        if (outside := np.abs(actions) > 1.0 + _ACTION_SLACK).any():
            step = int(outside.any(axis=1).argmax())
            raise DataError(f"{where}, field 'actions' leaves its bounds {low} to {high} at step {step}")
        terminated, truncated = (
            _array(getattr(raw, name), (steps,), f"{where}, field '{name}'").astype(bool)
            for name in ("terminations", "truncations")
        )
        # The one observation after an end inside is the last of what ended or the first of what follows, and nothing
        # tells which: one of the two transitions it takes part in never happened.
        for name, ends in (("terminations", terminated), ("truncations", truncated)):
            if ends[:-1].any():
                raise DataError(
                    f"{where}, field '{name}' is true at step {int(ends.argmax())} of {steps}, where an episode ends: "
                    "make an episode of each part, with the observation after its last action (docs/your_data.md). A "
                    "task that went on was not terminated: then it is false there"
                )
        return Episode(
            observations=self._observations(raw.observations, steps + 1, where),
            actions=actions.astype(np.float32),
            rewards=_array(raw.rewards, (steps,), f"{where}, field 'rewards'"),
            terminated=terminated,
        )

    def _observations(self, raw: Any, rows: int, where: str) -> np.ndarray:
        keys = self.description.keys
        names = ["observations"] if keys is None else [f"observations/{key}" for key in keys]
        for key, name in zip(keys or (), names, strict=False):
            if not isinstance(raw, Mapping) or key not in raw:
                raise DataError(f"{where}, field '{name}' is missing")
        for name, part, shape in zip(names, envs.vector_parts(raw, keys), self.description.shapes, strict=True):
            _array(part, (rows, *shape), f"{where}, field '{name}'")
        return envs.to_vector(raw, keys, rows)


def _array(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where} holds {array.dtype}, expected numbers")
    if array.shape != shape:
        raise DataError(f"{where} has shape {array.shape}, expected {shape}")
    finite = np.isfinite(array) & (np.abs(array) <= np.finfo(np.float32).max)
    if not finite.all():
        raise DataError(f"{where} holds NaN, infinity or more than float32 can at step {np.argwhere(~finite)[0][0]}")
    return array


def _check_metadata(path: Path, dataset: str, metadata: Any) -> None:
    expected = {
        "dataset_id": str,
        "minari_version": str,
        "data_format": str,
        "observation_space": str,
        "action_space": str,
        "total_episodes": int,
    }
    if not isinstance(metadata, dict):
        raise DataError(f"{dataset}: {path} is no description of a dataset")
    for field, kind in expected.items():
        if type(metadata.get(field)) is not kind:
            raise DataError(f"{dataset}: {path}: field '{field}' is missing, or no {kind.__name__}")
    for field in ("env_spec", "eval_env_spec"):
        if not isinstance(metadata.get(field), str | None):
            raise DataError(f"{dataset}: {path}: field '{field}' is no text")
    if metadata["dataset_id"] != dataset:
        raise DataError(f"{dataset}: {path} describes {metadata['dataset_id']!r}")
    if metadata["total_episodes"] < 1:
        raise DataError(f"{dataset}: {path}: the dataset has no episode")
    import minari
    from minari.dataset._storages import get_storage_keys

    if metadata["minari_version"] not in minari.supported_dataset_versions:
        known = ", ".join(sorted(minari.supported_dataset_versions))
        raise DataError(
            f"{dataset} was made by Minari {metadata['minari_version']}, and the installed {minari.__version__} reads "
            f"{known}: install a newer minari, or take another version of the dataset"
        )
    if metadata["data_format"] not in get_storage_keys():
        known = ", ".join(get_storage_keys())
        raise DataError(f"{dataset}: {path}: data_format {metadata['data_format']!r} is none of {known}")


@contextmanager
def _reading(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{what}: {error}") from error
    except StopIteration as error:
        raise DataError(f"{what} is missing in {path}; get the dataset again") from error
    except _UNREADABLE as error:
        if any(words in str(error) for words in _BEING_WRITTEN):
            raise DataError(
                f"{what}: a file in {path} is open in a process that writes to it. Wait until that is done, or close "
                "it there (a notebook may have it open still); there is no reason to get it again"
            ) from error
        raise DataError(f"{what} cannot be read from {path}: damaged or truncated ({error}); get it again") from error
