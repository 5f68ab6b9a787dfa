"""Settings of algorithms: frozen dataclasses that inherit from one another. One table here says what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from mfrl.errors import ConfigError, as_typed, did_you_mean, require


class Range(NamedTuple):
    """The numbers that a setting allows, in words and as a test. NaN fails every test."""

    words: str
    holds: Callable[[float], bool]
    whole: bool = False
    optional: bool = False  #: null is allowed

    def require(self, key: str, value: object) -> None:
        """Refuse a setting that is none of these numbers.

        Raises:
            ConfigError: names the setting and says what is allowed.
        """
        number = type(value) is int or (type(value) is float and not self.whole)  # a bool is no number
        holds = self.holds(value) if isinstance(value, int | float) and number else self.optional and value is None
        require(key, holds, value, self.words)


POSITIVE = Range("positive and finite", lambda x: 0.0 < x < math.inf)
NOT_NEGATIVE = Range("at least 0 and finite", lambda x: 0.0 <= x < math.inf)
LIMIT = Range("positive", lambda x: x > 0.0)  # infinite: nothing is clipped
WHOLE = Range("a whole number of at least 0", lambda x: x >= 0, whole=True)
COUNT = Range("a whole number of at least 1", lambda x: x >= 1, whole=True)
COUNT_OR_NULL = Range("null or a whole number of at least 1", lambda x: x >= 1, whole=True, optional=True)
NOT_NEGATIVE_OR_NULL = NOT_NEGATIVE._replace(words="null, or at least 0 and finite", optional=True)

#: The range of every numeric setting, by its name, for all algorithms. A new setting needs a line here.
RANGES = {
    "updates": WHOLE,
    "seed": Range("at least 0, and a whole number", lambda x: x >= 0, whole=True),
    "discount": Range("in [0, 1)", lambda x: 0.0 <= x < 1.0),
    "tau": Range("in (0, 1]", lambda x: 0.0 < x <= 1.0),
    "alpha": NOT_NEGATIVE,
    "bound_weight": NOT_NEGATIVE,
    "gamma_adaptive": NOT_NEGATIVE,
    "c_adaptive": POSITIVE,
    "target_clip": LIMIT,
    "sigma": POSITIVE,
    "num_candidates": COUNT,
    "target_candidates": COUNT_OR_NULL,
    "time_steps": COUNT_OR_NULL,
    "flow_steps": COUNT,
    "num_generated": Range("a whole number of at least 2", lambda x: x >= 2, whole=True),
    "expectile": Range("between 0 and 1", lambda x: 0.0 < x < 1.0),
    "alpha_critic": NOT_NEGATIVE,
    "actor_noise": NOT_NEGATIVE,
    "actor_noise_clip": POSITIVE,
    "actor_every": COUNT,
    "flow_share": Range("between 0 and 1", lambda x: 0.0 < x < 1.0),
    "actor_lr": POSITIVE,
    "critic_lr": POSITIVE,
    "actor_warmup": Range("in [0, 1)", lambda x: 0.0 <= x < 1.0),
    "actor_average": Range("in (0, 1], or null", lambda x: 0.0 < x <= 1.0, optional=True),
    "actor_lr_floor": Range("in [0, 1]", lambda x: 0.0 <= x <= 1.0),
    "max_grad_norm": LIMIT,
    "rho": NOT_NEGATIVE,
    "temperature": POSITIVE,
    "target_entropy": Range("finite", math.isfinite),
}
#: The range of every number of a run that is none of its algorithm's, by its key.
OF_A_RUN = {
    "updates": WHOLE,
    "batch_size": COUNT,
    "chunk": COUNT,
    "pack": COUNT,
    "threads": COUNT_OR_NULL,
    "log.every": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.minutes": Range("null or a positive number", lambda x: x > 0.0, optional=True),
    "eval.every": COUNT,
    "eval.episodes": COUNT,
    "eval.interim_episodes": COUNT_OR_NULL,
    "eval.num_envs": COUNT,
    "eval.samples": COUNT,
}
#: The choices of every setting that is a name.
CHOICES = {
    "q_aggregation": ("mean", "min"),
    "normalize_q": ("none", "value", "gradient"),
    "extraction": ("awr", "ddpgbc"),
    "kernel": ("laplace", "gaussian"),
    "alpha_schedule": ("fixed", "cosine", "dynamic"),
    "target_aggregation": ("min", "mean", "mean_minus_std"),
    "policy_aggregation": ("min", "mean", "mean_minus_std"),
}


def check(name: str, value: Any) -> None:
    """Refuse a number out of the setting's range, NaN, or a name that is not among the setting's choices.

    Raises:
        ConfigError: names the setting and says what is allowed.
    """
    key = name if name in ("updates", "seed") else f"algo.{name}"
    if (known := CHOICES.get(name)) and value not in known:
        raise ConfigError(f"{key}={as_typed(value)} is not one of {', '.join(known)}{did_you_mean(str(value), known)}")
    if allowed := RANGES.get(name):
        allowed.require(key, value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: the constructor checks every value.

    Raises:
        ConfigError: :func:`check` refuses a value, or a field of type bool holds something else.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check(field.name, value)
            require(f"algo.{field.name}", field.type != "bool" or type(value) is bool, value, "true or false")


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """Settings of the online phase.

    Attributes:
        steps: transitions to make, in all environments together; 0: no online phase.
        num_envs: environments stepped side by side. Each makes a step before the next updates.
        updates_per_step: updates for each transition.
        start_after: transitions before the first update.
        random_steps: so many transitions begin with uniform actions.
        capacity: states in the ring that updates draw from. The data come first, and the oldest leave.
        balanced: half of every batch from the data, half from the interaction; else from both as one.
        alpha: the algorithm's alpha of the online phase; None: goes on as it is.
        workers: processes that step the environments; None: none for one environment, else one a core.
        overlap: step the environments while the device updates. The newest transition of each environment is then
            missing in a batch.

    Raises:
        ConfigError: a value is out of its range.
    """

    steps: int = 0
    num_envs: int = 1
    updates_per_step: int = 1
    start_after: int = 0
    random_steps: int = 0
    capacity: int = 2_000_000
    balanced: bool = False
    alpha: float | None = None
    workers: int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "steps": WHOLE,
            "num_envs": COUNT,
            "updates_per_step": COUNT,
            "start_after": WHOLE,
            "random_steps": WHOLE,
            "capacity": COUNT,
            "alpha": NOT_NEGATIVE_OR_NULL,
            "workers": WHOLE._replace(optional=True, words=f"null, or {WHOLE.words}"),
        }
        for field in fields(self):
            key, value = f"online.{field.name}", getattr(self, field.name)
            if field.name in ranges:
                ranges[field.name].require(key, value)
            else:
                require(key, type(value) is bool, value, "true or false")
        if self.steps:
            require("online.start_after", self.start_after < self.steps, self.start_after, "less than online.steps")
            fits = self.steps % self.num_envs == 0
            require("online.steps", fits, self.steps, f"a multiple of online.num_envs={self.num_envs}")
            room = self.capacity > self.num_envs  # else no state of the ring has its next one beside it
            require("online.capacity", room, self.capacity, f"more than online.num_envs={self.num_envs}")

    @property
    def updates(self) -> int:
        """Number of updates of the online phase."""
        return (self.steps - self.start_after) * self.updates_per_step if self.steps else 0

    def needed(self, update: int) -> int:
        """The number of transitions before an update of the online phase, counted from 0."""
        needed = self.start_after + update // self.updates_per_step + 1
        return min(math.ceil(needed / self.num_envs) * self.num_envs, self.steps)
