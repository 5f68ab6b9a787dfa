"""What every episode has in common: where its randomness comes from and how its rows are stored."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = defaultdict[str, list[Any]]
"""One list per field while an episode runs, one entry per environment step."""

Episode = dict[str, np.ndarray]
"""A finished episode as it goes into the file: every array is `(steps, ...)`."""

SPLITS = ("train", "val")
_DTYPES = {"terminals": np.bool_, "button_states": np.int64}


def episode_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Seed all that episode `index` of `split` may draw from; returns the generator for our own draws.

    The streams depend on the three arguments only, so an episode is the same whichever worker runs it and
    whatever ran there before.
    """
    own, simulator = np.random.SeedSequence([seed, SPLITS.index(split), index]).spawn(2)
    # OGBench's oracles, goal noise and teleports draw from NumPy's global state; nothing else reaches them.
    np.random.seed(simulator.generate_state(1)[0])  # noqa: NPY002
    return np.random.default_rng(own)


def environment_seed(rng: np.random.Generator) -> int:
    """A seed for `env.reset`."""
    return int(rng.integers(2**31))


def pack(rows: Mapping[str, Sequence[Any]]) -> Episode:
    """Stack an episode's rows with the dtypes of OGBench's files: float32 but for flags, button states and images.

    `terminals` is added here: True on the episode's last row only.
    """
    steps = len(rows["observations"])
    fields = {**rows, "terminals": np.arange(steps) == steps - 1}
    order = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
    return {k: np.asarray(fields[k], dtype=_dtype(k, fields[k][0])) for k in order if k in fields}


def _dtype(field: str, entry: Any) -> type[np.generic]:
    if field == "observations" and entry.dtype == np.uint8:
        return np.uint8
    return _DTYPES.get(field, np.float32)
