"""Loads an algorithm from a checkpoint, and the data and the environment that the checkpoint describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.algorithms.base import Algorithm
from mfrl.data.batch import DataSpec
from mfrl.envs.spec import EnvSpec
from mfrl.errors import CheckpointError
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.saved import Saved

if TYPE_CHECKING:
    from mfrl.data.module import OfflineData


def load_algorithm(path: str | Path, trusted: tuple[str, ...] = ()) -> tuple[Algorithm, dict[str, Any]]:
    """Load a trained algorithm from a checkpoint.

    Args:
        path: a checkpoint or a run folder.
        trusted: packages whose classes the checkpoint may name, besides mfrl.

    Returns:
        the algorithm in evaluation mode, without gradients, and the checkpoint's record (config, spec, env, provenance)
        as plain data. Only :class:`mfrl.runs.saved.Saved` may build what the configuration describes, never Hydra.

    Raises:
        CheckpointError: the file is missing, damaged or not written by mfrl, or names a class that is not trusted.
    """
    path = find_checkpoint(path)
    checkpoint = load_checkpoint(path)
    record = checkpoint["mfrl"]
    build = Saved(record["config"], trusted).check("algo")
    module = build(spec=recorded_data(record, path))
    if not isinstance(module, Algorithm):
        raise CheckpointError(f"{path} describes a {type(module).__name__} as algo, which is no algorithm")
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # torch raises several types of errors, e.g. for values that are no tensors
        raise CheckpointError(f"{path}: the weights do not fit the networks it describes: {error}") from error
    module.k = checkpoint["updates"]
    return module.eval().requires_grad_(False), record


def recorded_data(record: dict[str, Any], path: Path) -> DataSpec:
    """The sizes and statistics of the data that a checkpoint was trained on.

    Args:
        record: from :func:`load_algorithm`.
        path: the checkpoint, for the message.

    Raises:
        CheckpointError: a value is missing or impossible. The message names it.
    """

    def numbers(values: Any, count: int) -> bool:
        listed = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
        return listed and len(values) == count and bool(np.isfinite(values).all())

    try:
        spec = DataSpec(**record["spec"])
    except TypeError as error:
        raise CheckpointError(f"{path} does not describe its data as mfrl does: {error}") from error
    image, size = spec.image_shape, spec.observation_dim
    holds = {
        "observation_dim": type(size) is int and (size >= 1) == (image is None),
        "action_dim": type(spec.action_dim) is int and spec.action_dim >= 1,
        "image_shape": image is None or (numbers(image, 4) and all(type(x) is int and x >= 1 for x in image)),
        "observation_mean": numbers(spec.observation_mean, size),
        "observation_std": numbers(spec.observation_std, size),
        "reward_min": numbers([spec.reward_min], 1) or spec.reward_min == -np.inf,
        "reward_max": numbers([spec.reward_max], 1) or spec.reward_max == np.inf,
    }
    if wrong := [name for name, held in holds.items() if not held]:
        value = getattr(spec, wrong[0])
        raise CheckpointError(f"{path} does not describe its data as mfrl does: {wrong[0]}={value!r}")
    return spec


def load_data(record: dict[str, Any], trusted: tuple[str, ...] = ()) -> OfflineData:
    """The data that a run was trained on. Their ``setup`` reads the run's files and writes nothing beside them.

    Args:
        record: from :func:`load_algorithm`.
        trusted: packages whose classes the checkpoint may name, besides mfrl.

    Raises:
        CheckpointError: the record names a class that is not trusted.
    """
    data = Saved(record["config"], trusted).check("data")()
    data.writes_apart = True
    return data


def recorded_env(record: dict[str, Any], trusted: tuple[str, ...] = ()) -> EnvSpec:
    """The environment that a checkpoint names.

    Args:
        record: from :func:`load_algorithm`.
        trusted: packages whose environments may be built. The user names them; those in the record do not count.

    Raises:
        CheckpointError: a value is missing or of another type. The message names it.
    """
    try:
        spec = EnvSpec(**record["env"] | {"trust": trusted})
    except TypeError as error:
        raise CheckpointError(f"the checkpoint does not describe its environment as mfrl does: {error}") from error
    keys, returns = spec.observation_keys or (), spec.reference_returns
    holds = {
        "env_id": isinstance(spec.env_id, str),
        "suite": isinstance(spec.suite, str),
        "gym_spec": isinstance(spec.gym_spec, str | None),
        "frames": type(spec.frames) is int,
        "observation_keys": isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys),
        "reference_returns": returns is None or (isinstance(returns, list | tuple) and two_floats(returns)),
    }
    if wrong := [name for name, held in holds.items() if not held]:
        value = getattr(spec, wrong[0])
        raise CheckpointError(f"the checkpoint does not describe its environment as mfrl does: {wrong[0]}={value!r}")
    return spec


def two_floats(numbers: Sequence[Any]) -> bool:
    """Whether these are two different, finite numbers."""
    floats = [type(x) for x in numbers] == [float, float]
    return floats and bool(np.isfinite(numbers).all()) and bool(numbers[0] != numbers[1])
