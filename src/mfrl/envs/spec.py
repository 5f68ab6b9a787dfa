"""The recipe of an environment, as plain data that worker processes and checkpoints hold.

This module does not import torch, so that workers start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfrl.envs import minari, ogbench
from mfrl.errors import ConfigError, EnvError, require

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class EnvSpec:
    """The name and the settings of an environment; :meth:`make` builds it.

    Args:
        env_id: its name in the suite.
        suite: ``ogbench``; ``minari`` for an environment in which a Minari dataset was recorded; ``gym`` for one of
            gymnasium's registry without a dataset, which is built in the same way.
        reference_returns: returns that score 0 and 100, where the benchmark normalises scores (D4RL).
        gym_spec: but for ``ogbench``: the JSON of a gymnasium ``EnvSpec`` with arguments and wrappers.
        observation_keys: but for ``ogbench``: the entries of a dictionary observation, in the order in which they form
            one vector; None where observations are vectors.
        frames: number of images in an observation ``(frames, height, width, channels)``.
        trust: but for ``ogbench``: packages, besides the known ones, whose classes ``gym_spec`` may name. Only the user
            sets it; a checkpoint's value is ignored.
    """

    env_id: str
    suite: str = "ogbench"
    reference_returns: tuple[float, float] | None = None
    gym_spec: str | None = None
    observation_keys: tuple[str, ...] | None = None
    frames: int = 1
    trust: tuple[str, ...] = ()

    @classmethod
    def without_data(
        cls,
        gym_id: str,
        gym_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        observation_keys: Sequence[str] | None = None,
        trust: Sequence[str] = (),
    ) -> EnvSpec:
        """The environment of that name in gymnasium's registry or in OGBench. Nothing is built yet.

        Args:
            gym_id: e.g. ``Pendulum-v1``; ``package:Name-v0`` imports the package first, if ``trust`` has it.
            gym_kwargs: arguments of the environment, which replace the registered ones.
            max_episode_steps: None: as registered.
            observation_keys, trust: as of the class.

        Raises:
            ConfigError: a setting out of its range, or one of an environment that OGBench defines.
        """
        holds = max_episode_steps is None or (type(max_episode_steps) is int and max_episode_steps >= 1)
        require("env.max_episode_steps", holds, max_episode_steps, "a whole number of at least 1")
        if not ogbench.registers(gym_id):
            keys = tuple(observation_keys) if observation_keys else None
            gym_spec = minari.write_spec(gym_id, gym_kwargs, max_episode_steps)
            return cls(gym_id, "gym", gym_spec=gym_spec, observation_keys=keys, trust=tuple(trust))
        changes = {
            "gym_kwargs": gym_kwargs,
            "max_episode_steps": max_episode_steps,
            "observation_keys": observation_keys,
        }
        if given := [f"env.{name}" for name, value in changes.items() if value]:
            raise ConfigError(f"{given[0]} is no setting of {gym_id}, which OGBench defines")
        return cls(gym_id.removeprefix("ogbench:"))

    @property
    def observes_pixels(self) -> bool:
        """Whether observations are images, so that a step needs a rendering back end."""
        return self.suite == "ogbench" and ogbench.observes_pixels(self.env_id)

    def check(self) -> None:
        """Refuse an environment that cannot be built or evaluated in, without building it.

        Raises:
            EnvError: the suite is unknown; the dataset does not name its environment; there is no time limit; or
                every episode has its own goal, which observations do not contain.
        """
        if self.suite not in ("ogbench", "minari", "gym"):
            raise EnvError(f"unknown suite {self.suite!r} for {self.env_id!r}: known are ogbench, minari and gym")
        name, _, version = self.env_id.rpartition("-")
        of_one_task = "-singletask" in name or name.startswith(ogbench.ONLINE)
        if self.suite == "ogbench" and name and not of_one_task:
            raise EnvError(
                f"{self.env_id} has another goal in every episode, which policies here do not see: name an environment "
                f"with one task, e.g. {name}-singletask-{version} or {name}-singletask-task2-{version}"
            )
        if self.suite == "ogbench":
            return
        if self.gym_spec is None:
            raise EnvError(
                f"{self.env_id} does not say which environment it was recorded in, so there is none to evaluate in: "
                "train with one that gymnasium knows (env.gym_id=NAME-v0), or do without (evaluation=held_out)"
            )
        if minari.read_spec(self.gym_spec, tuple(self.trust)).max_episode_steps is None:
            instead = "" if self.suite == "gym" else ", or do without the environment (evaluation=held_out)"
            raise EnvError(
                f"{self.env_id} has no time limit, so that an episode might never end: set one, e.g. "
                f"env.max_episode_steps=1000{instead}"
            )

    def make(self, *, render: bool = False) -> gymnasium.Env:
        """Build the environment; ``render`` prepares it for ``env.render()``. Raises as :meth:`check` does."""
        self.check()
        if self.suite == "ogbench":
            return ogbench.make(self.env_id, render=render, frames=self.frames)
        assert self.gym_spec is not None
        return minari.make(self.gym_spec, self.observation_keys, tuple(self.trust), render=render)
