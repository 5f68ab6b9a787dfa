"""What a policy observes and does in the terms of its environment, as its checkpoint says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import DataSpec
from mfrl.errors import CheckpointError, DataError, did_you_mean
from mfrl.runs.load import recorded_env

_IN_UNIT_BOUNDS = ("ogbench", "toy")  #: suites whose actions are in [-1, 1]


@dataclass(frozen=True)
class Interface:
    """Sizes, order and bounds.

    Attributes:
        spec: what the policy was trained on.
        env_id: the environment.
        low, high: bounds of the actions ``(action_dim,)``, in the environment's units.
        keys: the entries of a dictionary observation, in the order in which they become one vector; None where
            observations are no dictionaries.
        shapes: of these entries, or of the one array; None where the checkpoint does not say: then they are vectors.
    """

    spec: DataSpec
    env_id: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    keys: tuple[str, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(cls, spec: DataSpec, record: dict[str, Any], path: Path) -> Interface:
        """Out of the record of a checkpoint.

        Args:
            spec, record: from :func:`mfrl.runs.load.load_algorithm`.
            path: of the checkpoint, for the message.

        Raises:
            CheckpointError: it does not say what the environment's actions are, or not as mfrl does.
        """
        env = recorded_env(record)
        bounds = record.get("action_bounds")
        if bounds is None and env.suite in _IN_UNIT_BOUNDS:
            bounds = spec.action_dim * [-1.0], spec.action_dim * [1.0]
        if bounds is None:
            raise CheckpointError(
                f"{path} is of an earlier version, which did not say in which bounds the environment's actions are: go "
                "on from it for one update (mfrl train resume=RUN updates=...), and it will"
            )
        low, high = checked_bounds(bounds, spec.action_dim, path)
        keys, shapes = env.observation_keys, record.get("observation_shapes")
        if shapes is not None and not _are_shapes(shapes, len(keys or (None,)), spec.observation_dim):
            raise CheckpointError(f"{path} does not describe its observations as mfrl does: shapes {shapes!r}")
        return cls(
            spec,
            env.env_id,
            low,
            high,
            None if keys is None else tuple(keys),
            None if shapes is None else tuple(map(tuple, shapes)),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation as the policy takes it: one vector, or ``(frames, height, width, channels)``."""
        return self.spec.image_shape or (self.spec.observation_dim,)

    @property
    def dtype(self) -> torch.dtype:
        """Of an observation as the policy takes it."""
        return torch.float32 if self.spec.image_shape is None else torch.uint8

    def batch(self, observation: Any) -> tuple[Tensor, bool]:
        """Raw observations as the policy takes them, ``(n, *shape)``, and whether it was a single one.

        Args:
            observation: one observation or a batch, as the environment gives it: an array, a tensor, or a dictionary
                of them. One that has been made a vector already is taken too.

        Raises:
            DataError: it has another shape, lacks an entry, or is not finite.
        """
        if self.spec.image_shape is not None:
            x = _tensor(observation)
            if x.dtype != torch.uint8:
                raise DataError(f"observations are images of bytes (uint8), and not {x.dtype}: {_shape(x)}")
            return self._with_rows(x)
        x = self._vector(observation)
        if not x.isfinite().all():
            raise DataError("the observation holds NaN or infinity")
        return self._with_rows(x)

    def _with_rows(self, x: Tensor) -> tuple[Tensor, bool]:
        if x.shape == self.shape:
            return x[None], True
        if x.shape[1:] == self.shape:
            return x, False
        raise DataError(
            f"the observation has shape {_shape(x)}; this policy takes one of shape {self.shape}, or a batch "
            f"{('n', *self.shape)}"
        )

    def _vector(self, observation: Any) -> Tensor:
        """One vector ``(observation_dim,)`` or several ``(n, observation_dim)``, if the shapes are right."""
        if isinstance(observation, Mapping):
            parts = [_tensor(part).float() for part in self._entries(observation)]
        else:
            x = _tensor(observation).float()
            if self.keys is not None or (x.shape[-1:] == self.shape and x.ndim <= 2):
                return x  # a vector as it comes, or one already
            parts = [x]
        shapes = self.shapes if self.shapes is not None else [part.shape[-1:] for part in parts]
        # What precedes an entry's own shape: nothing, or the size of the batch.
        leads = {part.shape[: part.ndim - len(shape)] for part, shape in zip(parts, shapes, strict=True)}
        fits = all(part.shape[part.ndim - len(shape) :] == shape for part, shape in zip(parts, shapes, strict=True))
        if not fits or len(leads) != 1 or len(lead := leads.pop()) > 1:
            given = ", ".join(str(_shape(part)) for part in parts)
            wanted = "" if self.shapes is None else f"; this policy takes {', '.join(map(str, self.shapes))}"
            named = "" if self.keys is None else f" of {', '.join(self.keys)}"
            raise DataError(f"the observation{named} has shape {given}{wanted}, or a batch of such")
        return torch.cat([part.reshape(*lead, -1) for part in parts], -1)

    def _entries(self, observation: Mapping[str, Any]) -> list[Any]:
        if self.keys is None:
            raise DataError(f"the observation is a dictionary, and this policy takes arrays of shape {self.shape}")
        for key in self.keys:
            if key not in observation:
                raise DataError(
                    f"the observation has no entry {key!r}{did_you_mean(key, observation)}; this policy takes "
                    f"{', '.join(self.keys)}"
                )
        return [observation[key] for key in self.keys]


def checked_bounds(bounds: Any, action_dim: int, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest actions out of a checkpoint.

    Raises:
        CheckpointError: they are none.
    """
    try:
        low, high = np.asarray(bounds, np.float64)
        holds = np.shape(low) == (action_dim,) and bool((low < high).all() and np.isfinite([low, high]).all())
    except (TypeError, ValueError):
        holds = False
    if not holds:
        raise CheckpointError(f"{path} does not describe its actions as mfrl does: bounds {bounds!r}")
    return tuple(low.tolist()), tuple(high.tolist())


def _are_shapes(shapes: Any, entries: int, size: int) -> bool:
    """Whether these are the shapes of so many arrays that make a vector of ``size`` numbers."""
    listed = isinstance(shapes, list | tuple) and all(isinstance(shape, list | tuple) for shape in shapes)
    whole = listed and all(type(x) is int and x >= 0 for shape in shapes for x in shape)
    return whole and len(shapes) == entries and sum(map(math.prod, shapes)) == size


def _tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach()
    try:
        array = np.asarray(x)
    except ValueError as error:  # lists of several lengths
        raise DataError(f"the observation is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"the observation is {type(x).__name__} of {array.dtype}, and no array of numbers")
    return torch.tensor(array)  # a copy: arrays may be read-only


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
