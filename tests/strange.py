"""Environments that nobody would want, apart from the tests so that worker processes need not import those."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Endless(gymnasium.Env):
    """No end, no time limit, and nothing to be seen."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it
    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self) -> None:
        return None


class Silent(Endless):
    """Cannot be built, and does not say why."""

    def __init__(self, render_mode: str | None = None) -> None:
        assert render_mode == "whatever"


gymnasium.register("Endless-v0", "strange:Endless")
gymnasium.register("Blind-v0", "strange:Endless", max_episode_steps=5)
gymnasium.register("Silent-v0", "strange:Silent", max_episode_steps=5)
