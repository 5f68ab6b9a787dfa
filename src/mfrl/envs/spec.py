"""The recipe of an environment, as plain data that worker processes and checkpoints hold.

This module does not import torch, so that workers start fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfrl.envs import minari, ogbench
from mfrl.errors import EnvError

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class EnvSpec:
    """The name and the settings of an environment; :meth:`make` builds it.

    Args:
        env_id: its name in the suite.
        suite: ``ogbench``, or ``minari`` for an environment in which a Minari dataset was recorded.
        reference_returns: returns that score 0 and 100, where the benchmark normalises scores (D4RL).
        gym_spec: for ``minari``: the JSON of a gymnasium ``EnvSpec`` with arguments and wrappers.
        observation_keys: for ``minari``: the entries of a dictionary observation, in the order in which they form one
            vector; None where observations are vectors.
        frames: number of images in an observation ``(frames, height, width, channels)``.
        trust: for ``minari``: packages, besides the known ones, whose classes ``gym_spec`` may name. Only the user sets
            it; a checkpoint's value is ignored.
    """

    env_id: str
    suite: str = "ogbench"
    reference_returns: tuple[float, float] | None = None
    gym_spec: str | None = None
    observation_keys: tuple[str, ...] | None = None
    frames: int = 1
    trust: tuple[str, ...] = ()

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
        if self.suite not in ("ogbench", "minari"):
            raise EnvError(f"unknown suite {self.suite!r} for {self.env_id!r}: known are ogbench and minari")
        name, _, version = self.env_id.rpartition("-")
        if self.suite == "ogbench" and name and "-singletask" not in name:
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
            raise EnvError(
                f"{self.env_id} has no time limit, so that an episode might never end: set one, e.g. "
                "env.max_episode_steps=1000, or do without the environment (evaluation=held_out)"
            )

    def make(self, *, render: bool = False) -> gymnasium.Env:
        """Build the environment; ``render`` prepares it for ``env.render()``. Raises as :meth:`check` does."""
        self.check()
        if self.suite == "ogbench":
            return ogbench.make(self.env_id, render=render, frames=self.frames)
        assert self.gym_spec is not None
        return minari.make(self.gym_spec, self.observation_keys, tuple(self.trust), render=render)
