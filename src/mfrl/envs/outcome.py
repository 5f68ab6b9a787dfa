"""Read an environment's reward, its flags and its success, and refuse values with more than one meaning.

Environments wrap a number in different ways: a Python float, a NumPy scalar, an array of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.errors import EnvError

if TYPE_CHECKING:
    import gymnasium

#: Keys of ``info`` that may hold a success; the first one present counts. gymnasium-robotics uses both.
SUCCESS_KEYS = ("success", "is_success")


def name_of(env: gymnasium.Env) -> str:
    """An environment's registered name, for messages."""
    return env.spec.id if env.spec is not None else str(env)


def number(value: Any, what: str) -> float:
    """Read a single number, which may be infinite or NaN.

    Raises:
        EnvError: it is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size != 1:
        raise EnvError(f"{what} is {value!r}, but must be one number")
    return float(array.item())


def truth(value: Any, what: str) -> bool:
    """Read a single truth value: a bool, 0 or 1.

    Raises:
        EnvError: it is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size != 1 or array.item() not in (0, 1):
        raise EnvError(f"{what} is {value!r}, but must be a truth value: true or false, 0 or 1")
    return bool(array.item())


def success(info: Mapping[str, Any], env: str) -> bool | None:
    """Read a step's success from its ``info``; None if ``info`` has no success.

    Raises:
        EnvError: the success is no truth value.
    """
    for key in SUCCESS_KEYS:
        if info.get(key) is not None:
            return truth(info[key], f"info[{key!r}] of {env}")
    return None


def not_finite(env: str, what: str, where: str) -> EnvError:
    """The error of an environment that gave NaN or infinity.

    Args:
        env: its name.
        what: it gave.
        where: it gave it, e.g. "in evaluation episode 3".
    """
    return EnvError(
        f"{env} gave {what} that is not finite, {where}. The policy's actions were finite until then: look for the "
        "fault in the environment, e.g. in a simulation that blew up"
    )
