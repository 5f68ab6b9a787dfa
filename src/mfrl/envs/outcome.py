"""What an environment gives for a step, read strictly: one number, a truth, and whether it tells of a success.

Environments differ in what they wrap a number in (a Python float, a NumPy scalar, an array of one). What cannot be read
in one way only is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.errors import EnvError

if TYPE_CHECKING:
    import gymnasium

#: Where an ``info`` may tell of a success; the first that is there counts. gymnasium-robotics has both in use.
SUCCESS_KEYS = ("success", "is_success")


def name_of(env: gymnasium.Env) -> str:
    """An environment's registered name, for messages."""
    return env.spec.id if env.spec is not None else str(env)


def number(value: Any, what: str) -> float:
    """A single number, perhaps not finite.

    Raises:
        EnvError: it is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size != 1:
        raise EnvError(f"{what} is {value!r}, but must be one number")
    return float(array.item())


def truth(value: Any, what: str) -> bool:
    """A single truth value: a bool, 0 or 1.

    Raises:
        EnvError: it is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size != 1 or array.item() not in (0, 1):
        raise EnvError(f"{what} is {value!r}, but must be a truth value: true or false, 0 or 1")
    return bool(array.item())


def success(info: Mapping[str, Any], env: str) -> bool | None:
    """Whether a step's ``info`` tells of a success; None where it tells nothing.

    Raises:
        EnvError: what it tells is no truth value.
    """
    for key in SUCCESS_KEYS:
        if info.get(key) is not None:
            return truth(info[key], f"info[{key!r}] of {env}")
    return None
