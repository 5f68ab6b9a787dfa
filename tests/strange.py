"""Environments that nobody would want, apart from the tests so that worker processes need not import those."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from mfrl.envs.spec import EnvSpec

MEDIUM = EnvSpec("pointmaze-medium-singletask-v0")


class Maze:
    """The medium point maze, as others may change it."""

    env_id = MEDIUM.env_id
    observes_pixels = False
    reference_returns = None

    def make(self, *, render: bool = False) -> gymnasium.Env:
        return MEDIUM.make(render=render)


@dataclass(frozen=True)
class Short(Maze):
    """Of fewer steps than the 1000 it is registered with."""

    steps: int

    def make(self, *, render: bool = False) -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(super().make(render=render), self.steps)


@dataclass(frozen=True)
class Fragile(Maze):
    """On the action (0.5, ...), it raises the error or kills its process."""

    error: str | None = None

    def make(self, *, render: bool = False) -> gymnasium.Env:
        env = super().make(render=render)
        step = env.unwrapped.step

        def fragile(action: np.ndarray) -> tuple:
            if action[0] == np.float32(0.5):
                if self.error is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ArithmeticError(self.error)
            return step(action)

        env.unwrapped.step = fragile
        return env


class Explosive(Maze):
    """On the action (0.5, ...), it shows what is no number."""

    def make(self, *, render: bool = False) -> gymnasium.Env:
        env = super().make(render=render)
        step = env.unwrapped.step

        def explode(action: np.ndarray) -> tuple:
            observation, *rest = step(action)
            return observation * np.nan if action[0] == np.float32(0.5) else observation, *rest

        env.unwrapped.step = explode
        return env


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
