"""What all episodes share: their random numbers, and the arrays in which their rows are stored."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: The rows of a running episode: a list for each field, with an entry for each step.
Rows = defaultdict[str, list[Any]]

#: A finished episode, as it is written to the file. Every array is `(steps, ...)`.
Episode = dict[str, np.ndarray]

SPLITS = ("train", "val")
_DTYPES = {"terminals": np.bool_, "button_states": np.int64}


def episode_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Seed NumPy's global state, which OGBench uses, for an episode, and return the generator for mfrl's own draws.

    Both streams depend on the three arguments alone, so an episode does not depend on the worker that runs it or on the
    episodes before it.
    """
    own, simulator = np.random.SeedSequence([seed, SPLITS.index(split), index]).spawn(2)
    # OGBench's oracles, goal noise and teleports draw from NumPy's global state and take no generator.
    np.random.seed(simulator.generate_state(1)[0])  # noqa: NPY002
    return np.random.default_rng(own)


def environment_seed(rng: np.random.Generator) -> int:
    """A seed for `env.reset`."""
    return int(rng.integers(2**31))


def pack(rows: Mapping[str, Sequence[Any]]) -> Episode:
    """Stack an episode's rows into arrays with the dtypes of OGBench's files.

    These are float32, except for flags (bool), button states (int64) and images (uint8). The field `terminals` is
    added; it is True in the last row only.
    """
    steps = len(rows["observations"])
    fields = {**rows, "terminals": np.arange(steps) == steps - 1}
    order = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
    return {k: np.asarray(fields[k], dtype=_dtype(k, fields[k][0])) for k in order if k in fields}


def _dtype(field: str, entry: Any) -> type[np.generic]:
    if field == "observations" and entry.dtype == np.uint8:
        return np.uint8
    return _DTYPES.get(field, np.float32)
