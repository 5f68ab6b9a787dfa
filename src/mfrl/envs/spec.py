"""The recipe of an environment, small enough to send to a worker process.

Apart from :mod:`mfrl.envs.evaluation` so that workers do not import torch.
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
    """Names an environment and builds it.

    Plain data only: it goes to worker processes and into checkpoints.

    Args:
        env_id: its name in the suite.
        suite: where it comes from: ``ogbench``, or ``minari`` for what a Minari dataset was recorded in.
        reference_returns: returns that score 0 and 100 where the benchmark normalises scores (D4RL).
        gym_spec: of the suite ``minari``: the JSON of a gymnasium ``EnvSpec``, kwargs, wrappers and all.
        observation_keys: of the suite ``minari``: the entries of a dictionary observation, in the order in which they
            are joined to one vector; None where observations are a vector already.
        frames: how many images make an observation, stacked in front: ``(frames, height, width, channels)``.
        trust: of the suite ``minari``: packages whose classes ``gym_spec`` may name besides the known ones. Said by the
            user; what a checkpoint says of it is not taken over.
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
        """Whether stepping it needs a rendering back end."""
        return self.suite == "ogbench" and ogbench.observes_pixels(self.env_id)

    def check(self) -> None:
        """Refuse what cannot be built, without building it.

        Raises:
            EnvError: the suite has no environments, the dataset does not say which it was recorded in, nothing ends
                its episodes, or each of them has a goal that no observation shows.
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
        """Build it; ``render`` prepares it for ``env.render()``. Errors as of :meth:`check`."""
        self.check()
        if self.suite == "ogbench":
            return ogbench.make(self.env_id, render=render, frames=self.frames)
        assert self.gym_spec is not None
        return minari.make(self.gym_spec, self.observation_keys, tuple(self.trust), render=render)
