"""The recipe of an environment, small enough to send to a worker process.

Apart from :mod:`mfrl.envs.evaluation` so that workers do not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfrl.envs import ogbench
from mfrl.envs.ogbench import EnvError

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class EnvSpec:
    """Names an environment and builds it.

    Args:
        env_id: its name in the suite.
        suite: the package it comes from.
        reference_returns: returns that score 0 and 100 where the benchmark normalises scores (D4RL).
    """

    env_id: str
    suite: str = "ogbench"
    reference_returns: tuple[float, float] | None = None

    @property
    def observes_pixels(self) -> bool:
        """Whether stepping it needs a rendering back end."""
        return ogbench.observes_pixels(self.env_id)

    def make(self, *, render: bool = False) -> gymnasium.Env:
        """Build it; ``render`` prepares it for ``env.render()``."""
        if self.suite != "ogbench":
            raise EnvError(f"unknown suite {self.suite!r} for {self.env_id!r}: known are ogbench")
        return ogbench.make(self.env_id, render=render)
