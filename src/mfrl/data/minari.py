"""Minari datasets as transitions: any with a vector of numbers to observe and a vector of continuous actions.

Files are read through Minari, and nothing in them is executed: what a dataset says of its environment is checked in
:mod:`mfrl.envs.minari` before it is built.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mfrl.config import CONFIG_DIR
from mfrl.data import provenance
from mfrl.data.assembly import keep_trajectories, normalize_, summarise
from mfrl.data.module import OfflineData
from mfrl.data.transitions import ACTION_CLIP, DataError, Transitions
from mfrl.envs import minari as envs
from mfrl.envs.spec import EnvError, EnvSpec
from mfrl.errors import did_you_mean, require

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Space

#: Namespace of the sets collected here, never presented as anybody else's.
OWN_NAMESPACE = "mfrl"
DEFAULT_ROOT = "~/.minari/datasets"
RECORD = "provenance.json"
ADROIT_LABELS = "mfrl.envs.d4rl:AdroitLabels"
_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+", re.ASCII)
_HELD_OUT_SEED = 0  # the same episodes for every training seed
_ACTION_SLACK = 1e-5  # in units of [-1, 1]
_CONNECT_SECONDS = 10.0
#: What reading a damaged or invented file raises in json, h5py, minari and gymnasium.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RuntimeError)


class MinariData(OfflineData):
    """One Minari dataset, whole in memory, on the device of training.

    Observations: a dictionary becomes one vector, ``observation_keys`` in their order or every entry in alphabetical
    order. Nested dictionaries, tuples and images are refused.

    Transitions: an episode of T steps is T + 1 rows, the last of which starts none. A termination is a mask of 0: no
    bootstrap. A truncation, or an episode that just stops, only ends the trajectory: the mask stays 1. So a continuing
    task, which never terminates and whose episodes are pieces cut out of one stream, has masks of 1 throughout; its
    reward alone tells of a success.

    Actions: from the bounds of the action space, which must be finite, to [-1, 1]; the environment maps them back.

    Rewards: ``(reward + reward_shift) * reward_scale``, after ``rule`` and ``goal``, the labels of the original D4RL
    benchmark (:mod:`mfrl.envs.d4rl`).

    Evaluation: in ``gym_id`` if given, else the dataset's own evaluation environment, else the one it was recorded in.
    Scores are normalised with ``reference_returns`` if given, else with what the dataset records.

    Args:
        dataset: its id, e.g. ``D4RL/pen/human-v2``.
        data_dir: Minari's root folder; None: ``MINARI_DATASETS_PATH`` or Minari's own default.
        observation_keys: entries of a dictionary observation, in order.
        reward_scale: factor of the rewards, positive.
        reward_shift: added to the rewards first.
        rule: for Adroit, one of ``mfrl.envs.d4rl.RULES``; None leaves rewards and terminations as recorded.
        goal: for antmaze, the one place ``(x, y)`` that is labelled a success, wherever an episode's own goal was;
            the first two numbers of an observation are the position.
        gym_id, gym_kwargs, max_episode_steps: an environment registered with gymnasium, and what to change of it.
        reference_returns: returns that score 0 and 100.
        fraction: share of the training trajectories to keep, chosen by ``seed``.
        val_fraction: share of the episodes to hold out, the same for every seed; 0: none, and the validation losses are
            of training transitions.
        normalize: whether observations are normalised with the mean and deviation of the kept training data.
        trust: packages whose environments may be built, besides those of ``mfrl.envs.minari.KNOWN_PACKAGES``.
        batch_size, chunk, seed, updates, marks: of the sampling, see :class:`ChunkLoader`.

    Raises:
        DataError: at once for a malformed id; on loading, for files that are missing, damaged or unusable, naming the
            dataset, the episode and the field.
        EnvError: on loading, for an environment that is refused, cannot be built or has other spaces.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str | None = None,
        observation_keys: Sequence[str] | None = None,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        rule: str | None = None,
        goal: Sequence[float] | None = None,
        gym_id: str | None = None,
        gym_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        reference_returns: Sequence[float] | None = None,
        fraction: float = 1.0,
        val_fraction: float = 0.05,
        normalize: bool = True,
        trust: Sequence[str] = (),
        batch_size: int = 256,
        chunk: int = 8,
        seed: int = 0,
        updates: int = 1_000_000,
        marks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(batch_size, chunk, seed, updates, marks)
        self.dataset = checked_id(dataset)
        self.data_dir = Path(data_dir or os.environ.get("MINARI_DATASETS_PATH") or DEFAULT_ROOT).expanduser()
        require("data.fraction", 0.0 < fraction <= 1.0, fraction, "in (0, 1]")
        require("data.val_fraction", 0.0 <= val_fraction < 1.0, val_fraction, "in [0, 1)")
        require("data.reward_scale", 0.0 < reward_scale < math.inf, reward_scale, "positive and finite")
        require("data.reward_shift", math.isfinite(reward_shift), reward_shift, "finite")
        self.rule, self.goal = rule, None if goal is None else (float(goal[0]), float(goal[1]))
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        self.fraction, self.val_fraction, self.normalize = fraction, val_fraction, normalize
        wrappers = [{"name": "AdroitLabels", "entry_point": ADROIT_LABELS, "kwargs": {"rule": rule}}] if rule else []
        kwargs = {name: _plain(value) for name, value in (gym_kwargs or {}).items()}
        self.env = EnvSpec(
            env_id=self.dataset if gym_id is None else gym_id,
            suite="minari",
            reference_returns=None if reference_returns is None else tuple(float(x) for x in reference_returns),
            gym_spec=None if gym_id is None else envs.write_spec(gym_id, kwargs, max_episode_steps, wrappers),
            observation_keys=tuple(observation_keys) if observation_keys else None,
            trust=tuple(trust),
        )

    @property
    def folder(self) -> Path:
        """Where the dataset lies."""
        return self.data_dir / self.dataset

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.folder / "data" / "metadata.json",)

    def provenance(self) -> dict[str, Any]:
        """Where the files come from, with checksums, and which part of them is used."""
        return describe(self.data_dir, self.dataset) | {"fraction": self.fraction, "val_fraction": self.val_fraction}

    def setup(self, stage: str | None = None) -> None:
        """Read, check, label, split and normalise. Does nothing the second time."""
        if self.train is not None:
            return
        source = self.open()
        self.env = self._environment(source)
        self.warnings += unmet_requirements(source.metadata)
        everything = self.read(source)
        train, val = split(everything, self.val_fraction)
        if self.fraction < 1.0:
            train = replace(train, starts=keep_trajectories(train.starts, self.fraction, self.seed))
        self.spec = summarise(train, self.normalize)
        normalize_(self.spec, train, val)  # which share their rows
        if self.spec.reward_min == self.spec.reward_max:
            self.warnings.append(
                f"every reward in {self.dataset} is {self.spec.reward_min:g}: Q-learning has nothing to find. "
                + ("No episode comes near the goal it is labelled with." if self.goal else "Choose other data.")
            )
        if self.val_fraction and val is train:
            self.warnings.append(f"{self.dataset} has one episode: none is held out, val/ is of training transitions")
        self.train, self.val = train, val

    def open(self) -> Source:
        """The dataset's description and the episodes' reader; errors as the class has them."""
        if not self.folder.is_dir():
            raise DataError(self._how_to_get())
        return Source.open(self.folder, self.dataset, self.env.observation_keys)

    def read(self, source: Source) -> Transitions:
        """Every episode as transitions with final rewards and masks, observations as they are."""
        return join([self._labelled(episode) for episode in self._with_rule(list(source.episodes()), source.metadata)])

    def _with_rule(self, episodes: list[Episode], metadata: Mapping[str, Any]) -> list[Episode]:
        """Rewards and terminations of the original D4RL benchmark, where they are asked for."""
        if self.rule is None and self.goal is None:
            return episodes
        from mfrl.envs import d4rl

        labels = [(e.observations[1:], e.rewards, e.terminated) for e in episodes]
        if self.rule is not None and ADROIT_LABELS not in (metadata.get("env_spec") or ""):
            evidence = sum(d4rl.evidence_of_sign(self.rule, after, rewards) for after, rewards, _ in labels)
            if evidence >= 0.0:  # else, and where they were recorded with that wrapper, they are D4RL's already
                labels = [(after, *d4rl.adroit_labels(self.rule, after, *given)) for after, *given in labels]
        if self.goal is not None:
            labels = [(after, *d4rl.goal_labels(after[:, :2], self.goal)) for after, *_ in labels]
        return [replace(e, rewards=r, terminated=t) for e, (_, r, t) in zip(episodes, labels, strict=True)]

    def _labelled(self, episode: Episode) -> Episode:
        return replace(episode, rewards=(episode.rewards + self.reward_shift) * self.reward_scale)

    def _environment(self, source: Source) -> EnvSpec:
        """Where policies are evaluated, checked against the dataset's spaces."""
        env = replace(self.env, observation_keys=source.keys)
        if env.reference_returns is None:
            env = replace(env, reference_returns=reference_returns(source.metadata))
        recorded = source.metadata.get("eval_env_spec") or source.metadata.get("env_spec")
        if env.gym_spec is None and recorded is not None:
            env = replace(env, env_id=envs.read_spec(recorded, env.trust).id, gym_spec=recorded)
        if env.gym_spec is not None:
            built = envs.make_as_recorded(env.gym_spec, env.trust)
            try:
                envs.refuse_other_spaces(built, source.observation_space, source.action_space, source.keys)
            finally:
                built.close()
        return env

    def download(self, **settings: Any) -> None:
        """Fetch the dataset with Minari's own client, from the server it chooses (``MINARI_REMOTE``).

        Raises:
            DataError: it is ours, lies there half, or could not be fetched; nothing is left behind.
        """
        if settings:
            raise DataError(f"{', '.join(settings)}: Minari datasets come from one server, MINARI_REMOTE=hf://NAME")
        download(self.data_dir, self.dataset)

    def collect(self, **settings: Any) -> None:
        from mfrl.collect.minari import collect

        collect(self.dataset, self.data_dir, **settings)

    def _how_to_get(self) -> str:
        known = present(self.data_dir)
        name = re.sub(r"-v\d+$", "", self.dataset.lower()).removeprefix("d4rl/").removeprefix(f"{OWN_NAMESPACE}/")
        own = self.dataset.startswith(f"{OWN_NAMESPACE}/")
        name = f"{'minari' if own else 'd4rl'}/{name.replace('/', '-')}"
        if not (CONFIG_DIR / "env" / f"{name}.yaml").is_file():
            name = f"minari/dataset env.dataset={self.dataset}"
        verb = "collect" if own else "download"
        elsewhere = f" data_dir={self.data_dir}" if self.data_dir != Path(DEFAULT_ROOT).expanduser() else ""
        return (
            f"Minari dataset {self.dataset} is not in {self.data_dir} (data_dir=, MINARI_DATASETS_PATH or the default "
            f"{DEFAULT_ROOT}), which holds {', '.join(known) or 'none'}{did_you_mean(self.dataset, known)}; "
            f"{verb} it:  mfrl {verb} env={name}{elsewhere}"
        )


@dataclass(frozen=True)
class Episode:
    """T steps.

    Attributes:
        observations: ``(T + 1, observation_dim)`` float32.
        actions: ``(T, action_dim)`` float32 in [-1, 1].
        rewards: ``(T,)``.
        terminated: bool ``(T,)``: the task ended with that step.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray


def join(episodes: Iterable[Episode]) -> Transitions:
    """Episodes of at least one step, one after another as rows; the last of each starts no transition.

    That row's action and reward are 0 and its mask is 1; nothing reads them.
    """
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    first = 0
    for episode in episodes:
        steps = len(episode.actions)
        rows = (
            episode.observations,
            np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])]),
            np.append(episode.rewards, 0.0).astype(np.float32),
            np.append(~episode.terminated, True).astype(np.float32),
            np.arange(first, first + steps, dtype=np.int64),
        )
        for column, part in zip(columns, rows, strict=True):
            column.append(part)
        first += steps + 1
    observations, actions, *rest = (np.concatenate(column) for column in columns)
    np.clip(actions, -1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP, out=actions)
    return Transitions(*(torch.from_numpy(x) for x in (observations, actions, *rest)))


def split(everything: Transitions, val_fraction: float) -> tuple[Transitions, Transitions]:
    """Training and validation transitions over the same rows, whole episodes each; one alone is both."""
    starts = everything.starts
    held = keep_trajectories(starts, val_fraction, _HELD_OUT_SEED) if val_fraction else starts[:0]
    kept = starts[~torch.isin(starts, held)]
    if len(held) == 0 or len(kept) == 0:
        return everything, everything
    return replace(everything, starts=kept), replace(everything, starts=held)


@dataclass(frozen=True)
class Source:
    """A dataset on disk whose description has been checked.

    Attributes:
        metadata: what ``metadata.json`` holds.
        keys: entries of the observation, see :func:`mfrl.envs.minari.vector_keys`.
    """

    folder: Path
    dataset: str
    metadata: dict[str, Any]
    observation_space: Space
    action_space: Box
    keys: tuple[str, ...] | None
    data: Any  #: minari.MinariDataset

    @classmethod
    def open(cls, folder: Path, dataset: str, observation_keys: Sequence[str] | None) -> Source:
        """Check ``metadata.json`` before Minari sees it, which would build the environment to fill in what is missing.

        Raises:
            DataError: naming the file and the field.
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

            spaces = [deserialize_space(metadata[name]) for name in ("observation_space", "action_space")]
            data = MinariDataset(folder / "data")
        try:
            envs.action_bounds(spaces[1])
            keys = envs.vector_keys(spaces[0], observation_keys)
        except EnvError as error:
            raise DataError(f"{dataset}: {error}") from error
        return cls(folder, dataset, metadata, spaces[0], spaces[1], keys, data)

    def episodes(self) -> Iterator[Episode]:
        """Read and check one episode after another; actions scaled to [-1, 1].

        Raises:
            DataError: naming the dataset, the episode and the field.
        """
        reader, where = None, f"{self.dataset}: episode"
        for number in range(self.metadata["total_episodes"]):
            with _reading(f"{where} {number}", self.folder / "data"):
                reader = reader or iter(self.data.iterate_episodes())
                raw = next(reader)
            yield self._checked(raw, f"{where} {number}")

    def _checked(self, raw: Any, where: str) -> Episode:
        steps = len(raw.rewards)
        if steps == 0:
            raise DataError(f"{where} is empty: it has no step")
        low, high = envs.action_bounds(self.action_space)
        actions = _array(raw.actions, (steps, *self.action_space.shape), f"{where}, field 'actions'")
        actions = 2.0 * (actions - low) / (high - low) - 1.0
        if (outside := np.abs(actions) > 1.0 + _ACTION_SLACK).any():
            step = int(outside.any(axis=1).argmax())
            raise DataError(f"{where}, field 'actions' leaves its bounds {low} to {high} at step {step}")
        terminated, _ = (
            _array(getattr(raw, name), (steps,), f"{where}, field '{name}'").astype(bool)
            for name in ("terminations", "truncations")
        )
        return Episode(
            observations=self._observations(raw.observations, steps + 1, where),
            actions=actions.astype(np.float32),
            rewards=_array(raw.rewards, (steps,), f"{where}, field 'rewards'"),
            terminated=terminated,
        )

    def _observations(self, raw: Any, rows: int, where: str) -> np.ndarray:
        if self.keys is None:
            parts = {"observations": (raw, self.observation_space)}
        else:
            parts = {}
            for key in self.keys:
                if not isinstance(raw, Mapping) or key not in raw:
                    raise DataError(f"{where}, field 'observations/{key}' is missing")
                parts[f"observations/{key}"] = (raw[key], self.observation_space[key])
        for name, (array, space) in parts.items():
            _array(array, (rows, *space.shape), f"{where}, field '{name}'")
        return envs.to_vector(raw, self.keys, rows)


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
        raise DataError(f"{what} cannot be read from {path}: damaged or truncated ({error}); get it again") from error


def reference_returns(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """The returns that score 0 and 100, where a dataset records them; most do not."""
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (low, high)) or low == high:
        return None
    return float(low), float(high)


def unmet_requirements(metadata: Mapping[str, Any]) -> list[str]:
    """A warning for each package the dataset asks for in another version than the installed one."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for text in metadata.get("requirements") or ():
        try:
            wanted = Requirement(str(text))
            installed = version(wanted.name)
        except (InvalidRequirement, PackageNotFoundError):
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            found.append(f"recorded with {wanted}, and {installed} is installed: the simulator may move differently")
    return found


def checked_id(dataset: str) -> str:
    """A Minari id with its version; what could lead out of the root folder is none.

    Raises:
        DataError: for anything else.
    """
    if not isinstance(dataset, str) or not _ID.fullmatch(dataset):
        raise DataError(
            f"{dataset!r} is no Minari dataset: an id is name-v0 or namespace/name-v0, of letters, digits, - and _"
        )
    return dataset


def present(root: Path) -> list[str]:
    """The ids of the datasets in a root folder."""
    found = []
    for folder, subfolders, _ in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            subfolders.clear()
    return sorted(found)


def download(root: Path, dataset: str) -> None:
    """Fetch a dataset into a temporary folder beside it, check it, write its record, and move it into place.

    Raises:
        DataError: in one sentence; ``root`` is left as it was.
    """
    target = root / checked_id(dataset)
    if dataset.startswith(f"{OWN_NAMESPACE}/"):
        raise DataError(f"{dataset} is offered by no server; it is collected in the simulator (mfrl collect)")
    if target.exists():
        raise DataError(f"{target} exists already; move it away to download {dataset} again")
    remote = os.environ.get("MINARI_REMOTE", "")
    _refuse_offline(dataset, remote)
    import minari

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder, root_of_minari(folder):
        try:
            minari.download_dataset(dataset)
        except (Exception, SystemExit) as error:  # of any of the servers' clients
            raise DataError(f"{dataset} could not be downloaded: {_first_line(error)}") from error
        new = Path(folder)
        Source.open(new / dataset, dataset, None)
        for part in present(new):  # a combination brings its parts along
            write_record(new, part, "official", remote=remote or "the default of minari")
            if not (root / part).exists():
                (root / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(new / part, root / part)


def _refuse_offline(dataset: str, remote: str) -> None:
    """One short attempt, for the clients of the servers try for minutes."""
    if remote.startswith("gcp://"):
        return
    try:
        from huggingface_hub import HfApi, get_session
    except ImportError as error:
        raise DataError(f'downloading {dataset} needs huggingface_hub: pip install "minari[hf]"') from error
    server = HfApi().endpoint
    try:
        get_session().head(server, timeout=_CONNECT_SECONDS)
    except Exception as error:
        raise DataError(
            f"{dataset} could not be downloaded: {server} cannot be reached from here ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def root_of_minari(folder: str) -> Iterator[None]:
    """Minari takes its root folder from an environment variable only."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def write_record(root: Path, dataset: str, source: str, **details: Any) -> Path:
    """Say where a dataset came from, in ``provenance.json`` beside its ``data`` folder.

    Args:
        root: Minari's root folder.
        source: ``official`` or ``collected``.
        details: what else is known, as JSON.

    Returns:
        the file.
    """
    path = root / dataset / RECORD
    files = _fingerprints(root / dataset)
    versions = provenance.versions(("minari", "gymnasium", "gymnasium-robotics", "mujoco", "numpy"))
    record = {"dataset": dataset, "source": source, "files": files, "versions": versions}
    provenance.write(path, record | {"created": datetime.now(UTC).isoformat(timespec="seconds")} | details)
    return path


def describe(root: Path, dataset: str) -> dict[str, Any]:
    """The record of a dataset if it speaks of exactly these files, else the source ``unrecorded``.

    Raises:
        ProvenanceError: the record cannot be understood.
    """
    path, files = root / dataset / RECORD, _fingerprints(root / dataset)
    unrecorded = {"dataset": dataset, "source": "unrecorded", "files": files}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return unrecorded
    except ValueError as error:
        raise provenance.ProvenanceError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or record.get("dataset") != dataset or record.get("files") != files:
        return unrecorded | {"note": f"{RECORD} does not match these files"}
    return record


def _fingerprints(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): provenance.fingerprint(path) for path in files}


def _plain(value: Any) -> Any:
    """Lists and dictionaries out of a configuration's own types, for JSON."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
