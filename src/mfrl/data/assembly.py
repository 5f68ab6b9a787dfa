"""From prepared arrays to transitions: choose a share of the trajectories, scale rewards, normalise states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import DataSpec, normalize_
from mfrl.data.cache import Cache, Prepared
from mfrl.data.storage import Pages, Transitions, as_tensor
from mfrl.errors import require

Statistics = tuple[Sequence[float], Sequence[float]]  #: mean and deviation, each (observation_dim,)
Normalize = bool | Literal["padded"]  #: whether states are normalised; "padded": see :func:`padded_statistics`
PADDED: Literal["padded"] = "padded"
BUFFER_ROWS = 2_000_000  # that the official code of MeanFlowQL makes room for, main_meanflowql.py (buffer_size)

_SLICE = 1 << 14  # rows looked at together, so that sums need no memory to speak of
_CPU = torch.device("cpu")


def loaded(cache: Cache, *parts: Sequence[Prepared], frames: int = 1) -> list[Transitions]:
    """The transitions of each part, in memory as far as they fit, otherwise mapped; states are not normalised yet.

    Args:
        cache: which prepared the entries.
        parts: entries that together hold the fields of :class:`Transitions`.
        frames: number of images in an observation.
    """
    entries = iter(cache.in_memory([entry.arrays for part in parts for entry in part]))
    return [_transitions([next(entries) for _ in part], frames) for part in parts]


def _transitions(entries: Sequence[dict[str, np.ndarray]], frames: int) -> Transitions:
    arrays = {field: array for entry in entries for field, array in entry.items()}
    tensors: dict[str, Any] = {field: as_tensor(array) for field, array in arrays.items()}
    transitions = Transitions(**tensors, frames=frames)
    if mapped := [array for array in arrays.values() if isinstance(array, np.memmap)]:
        transitions.ships_to, transitions.pages = _CPU, Pages(mapped)
    return transitions


def keep_trajectories(starts: Tensor, fraction: float, seed: int) -> Tensor:
    """The transitions of a random share of the trajectories, in their order; at least one trajectory."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), starts[1:] != starts[:-1] + 1])
    number = first.cumsum(0) - 1
    count = int(number[-1]) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, round(fraction * count))]] = True
    return starts[kept[number]]


def check_settings(fraction: float, reward_scale: float, normalize: Any) -> None:
    """Refuse an impossible share of trajectories, factor of rewards or way to normalise states.

    Raises:
        ConfigError: naming the setting, and what it may be.
    """
    require("data.fraction", 0.0 < fraction <= 1.0, fraction, "in (0, 1]")
    require("data.reward_scale", 0.0 < reward_scale < math.inf, reward_scale, "positive and finite")
    require("data.normalize", type(normalize) is bool or normalize == PADDED, normalize, f"true, false or {PADDED}")


def summarise(transitions: Transitions, normalize: Normalize, known: Statistics | None = None) -> DataSpec:
    """The data's sizes, reward range, and the mean and deviation that normalise states.

    Args:
        normalize: True: statistics of the states from which transitions start. False: mean 0 and deviation 1.
            "padded": :func:`padded_statistics`.
        known: :func:`statistics` of the same transitions, if they were computed earlier.
    """
    dim, image = transitions.observations.shape[1], None
    if transitions.observations.ndim > 2:
        dim, image = 0, (transitions.frames, *transitions.observations.shape[1:])
    mean: Sequence[float] = [0.0] * dim
    std: Sequence[float] = [1.0] * dim
    if normalize and image is None:
        states = transitions.observations, transitions.starts, transitions.pages
        # What is known has deviation 1 where nothing varies, and so does not say what zeros among it make of it.
        mean, std = padded_statistics(*states) if normalize == PADDED else known or statistics(*states)
    rewards = transitions.rewards[transitions.starts]
    return DataSpec(
        observation_dim=dim,
        action_dim=transitions.actions.shape[-1],
        observation_mean=tuple(mean),
        observation_std=tuple(std),
        reward_min=float(rewards.min()),
        reward_max=float(rewards.max()),
        image_shape=image,
    )


def statistics(
    observations: Tensor, starts: Tensor, pages: Pages | None = None, padded_to: int | None = None
) -> Statistics:
    """Mean and deviation of the states from which transitions start.

    Args:
        observations, starts: see :class:`Transitions`.
        pages: where observations are mapped from files.
        padded_to: count so many rows, of which those beyond the states are zeros; None counts the states alone.
    """
    total, square = torch.zeros(2, observations.shape[1], dtype=torch.float64)
    offset = observations[starts[0]].double()  # keeps the squares small
    for rows in starts.split(_SLICE):
        if pages is not None:
            pages.give_back()
        x = observations[rows].double() - offset
        total += x.sum(0)
        square += x.square().sum(0)
    n = len(starts)
    mean, variance = offset + total / n, (square / n - (total / n).square()).clamp_min(0.0)
    if padded_to is not None:
        share = n / padded_to  # of the states: the variance among them, and that of either them or zeros
        mean, variance = share * mean, share * variance + share * (1.0 - share) * mean.square()
    std = variance.sqrt()
    std[std < 1e-6] = 1.0  # a coordinate that never varies is only centred
    return mean.tolist(), std.tolist()


def padded_statistics(
    observations: Tensor, starts: Tensor, pages: Pages | None = None, buffer_rows: int = BUFFER_ROWS
) -> Statistics:
    """Mean and deviation as MeanFlowQL's official code computes them: over its whole replay buffer.

    The states from which transitions start fill the first rows of the buffer; the other rows, at least one, are zeros.

    Args:
        observations, starts, pages: as for :func:`statistics`.
        buffer_rows: least number of rows of the buffer.
    """
    return statistics(observations, starts, pages, padded_to=max(buffer_rows, len(starts) + 1))


def absurd_features(
    transitions: Transitions, known: Statistics | None = None, name: Callable[[int], str] = "feature {}".format
) -> list[str]:
    """A warning for each dimension of the states whose deviation comes from a few absurd entries.

    Normalised with such a deviation, all other entries look alike; without it, the absurd ones drown what a network
    sees. A dimension gets a warning if its deviation is above 1000 and above 100 times the range of its entries without
    the lowest and the highest hundredth, which a sample estimates.

    Args:
        transitions: with observations that are not normalised.
        known: mean and deviation of the states from which they start.
        name: gives the name of a dimension, for the message.
    """
    observations, starts = transitions.observations, transitions.starts
    if observations.ndim > 2 or observations.shape[1] == 0:
        return []
    _, std = known or statistics(observations, starts, transitions.pages)
    found = []
    for k in (k for k, deviation in enumerate(std) if deviation > 1e3):
        if transitions.pages is not None:
            transitions.pages.give_back()
        column = observations[:, k].index_select(0, starts)
        sample = column[:: max(1, len(column) // _SLICE)].double().sort().values
        cut = min(max(1, len(sample) // 100), (len(sample) - 1) // 2)
        span = float(sample[len(sample) - 1 - cut] - sample[cut])
        if std[k] > 100.0 * span:
            found.append(
                f"{name(k)} of the observations has deviation {std[k]:.3g}, though nearly all of its entries lie "
                f"within {span:.3g} of each other: one is {float(column[column.abs().argmax()]):.3g}. To a network all "
                "others will look alike. Take such entries out of the data"
            )
    return found


def normalize_states(spec: DataSpec, *parts: Transitions) -> None:
    """Normalise states to (x - mean) / std: at once if they lie in memory, otherwise when they are gathered.


    Args:
        spec: has mean and deviation.
        parts: may share rows.
    """
    if spec.image_shape is not None:
        return
    statistics, done = torch.tensor([spec.observation_mean, spec.observation_std]), set()
    for part in parts:
        if part.ships_to is not None:
            part.statistics = statistics
        elif part.observations.data_ptr() not in done:
            done.add(part.observations.data_ptr())
            normalize_(part.observations, *statistics)
