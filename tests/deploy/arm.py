"""An environment of somebody's own: dictionaries to observe, of which one entry is a matrix, and uneven bounds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([3.0, 1.0], np.float32)


class Arm(gymnasium.Env):
    """The action moves two joints; what is earned depends on the action, the joints and the goal."""

    observation_space = Dict(
        joints=Box(-np.inf, np.inf, (2, 2), np.float32),
        goal=Box(-np.inf, np.inf, (1,), np.float32),
        camera=Box(0, 255, (4, 4, 3), np.uint8),
    )
    action_space = Box(LOW, HIGH)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.joints, self.goal = self.np_random.normal(size=(2, 2)), self.np_random.normal(size=1)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.joints = 0.9 * self.joints + 0.1 * np.outer(action, [1.0, -2.0])
        reward = float(np.tanh(self.joints).sum() + action[1] * self.goal[0])
        return self._observation(), reward, False, False, {"success": bool(reward > 0)}

    def _observation(self) -> dict[str, np.ndarray]:
        camera = np.zeros((4, 4, 3), np.uint8)
        return {"joints": self.joints.astype(np.float32), "goal": self.goal.astype(np.float32), "camera": camera}


gymnasium.register("Arm-v0", "arm:Arm", max_episode_steps=12)
