"""From prepared arrays to what training sees: the share of trajectories, the scale of rewards, the normalisation."""

from __future__ import annotations

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
    """Transitions of each part, in memory as far as they fit there, else mapped; observations as they are.

    Args:
        cache: that prepared them.
        parts: entries that together hold the fields of :class:`Transitions`.
        frames: how many images make an observation.
    """
    entries = iter(cache.in_memory([entry.arrays for part in parts for entry in part]))
    return [_transitions([next(entries) for _ in part], frames) for part in parts]


def _transitions(entries: Sequence[dict[str, np.ndarray]], frames: int) -> Transitions:
    arrays = {field: array for entry in entries for field, array in entry.items()}
    transitions = Transitions(**{field: as_tensor(array) for field, array in arrays.items()}, frames=frames)
    if mapped := [array for array in arrays.values() if isinstance(array, np.memmap)]:
        transitions.ships_to, transitions.pages = _CPU, Pages(mapped)
    return transitions


def keep_trajectories(starts: Tensor, fraction: float, seed: int) -> Tensor:
    """The transitions of a random share of the trajectories, at least one; in their order."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), starts[1:] != starts[:-1] + 1])
    number = first.cumsum(0) - 1
    count = int(number[-1]) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, round(fraction * count))]] = True
    return starts[kept[number]]


def check_normalize(normalize: Any) -> None:
    """Refuse what is no way to normalise states.

    Raises:
        ConfigError: naming those there are.
    """
    require("data.normalize", type(normalize) is bool or normalize == PADDED, normalize, f"true, false or {PADDED}")


def summarise(transitions: Transitions, normalize: Normalize, known: Statistics | None = None) -> DataSpec:
    """Sizes, reward range, and the mean and deviation that the states are normalised with.

    Args:
        normalize: True: with those of the states that transitions start from. False: mean 0 and deviation 1.
            "padded": with :func:`padded_statistics`.
        known: :func:`statistics` of these very transitions, computed earlier.
    """
    dim, image = transitions.observations.shape[1], None
    if transitions.observations.ndim > 2:
        dim, image = 0, (transitions.frames, *transitions.observations.shape[1:])
    mean, std = [0.0] * dim, [1.0] * dim
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
    """Mean and deviation of the states that transitions start from.

    Args:
        observations, starts: see :class:`Transitions`.
        pages: where observations are mapped from files.
        padded_to: so many rows are counted, of which those beyond the states are zeros; None: the states alone.
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
    """Mean and deviation as the official code of MeanFlowQL has them: over its replay buffer, filled or not.

    The states that transitions start from are its first rows, and zeros are the others, of which there is at least one.

    Args:
        observations, starts, pages: as for :func:`statistics`.
        buffer_rows: of the buffer, where the states do not need more.
    """
    return statistics(observations, starts, pages, padded_to=max(buffer_rows, len(starts) + 1))


def absurd_features(
    transitions: Transitions, known: Statistics | None = None, name: Callable[[int], str] = "feature {}".format
) -> list[str]:
    """A warning for each number of the states whose deviation a few absurd entries have made.

    The deviation then says nothing of the others: normalised with it they are all alike, and without it the absurd ones
    drown what a network sees. That is so where it is above 1000 and above 100 times what the entries span without the
    lowest and the highest hundredth of them, which is looked up in a sample.

    Args:
        transitions: observations as they are.
        known: mean and deviation of the states that they start from, computed earlier.
        name: of a number of an observation, for the message.
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
    """States to (x - mean) / std: now where they lie in memory, else as they are gathered.

    Args:
        parts: may share their rows.
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
