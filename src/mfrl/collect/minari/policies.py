"""What acts while a Minari dataset is collected: random actions, a controller, or a trained policy.

Each maps an environment's observations to actions in its bounds. Random numbers depend on (seed, episode) alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mfrl.collect.minari.waypoint import WaypointController
from mfrl.envs.minari import to_bounds, to_vector
from mfrl.randomness import derived_seed, generator

if TYPE_CHECKING:
    import gymnasium

    from mfrl.algorithms.policy import Policy


class Behaviour(Protocol):
    """Chooses the actions of an episode."""

    def begin(self, episode: int) -> None:
        """Start an episode, with the random numbers of this episode."""
        ...

    def action(self, observation: Any) -> np.ndarray:
        """An action ``(action_dim,)`` in the bounds of the environment."""
        ...


class Uniform:
    """Uniformly random actions.

    Args:
        space: the action space, which is bounded.
        seed: seed of the dataset.
    """

    def __init__(self, space: gymnasium.spaces.Box, seed: int) -> None:
        self._low, self._high, self._seed = space.low.astype(np.float64), space.high.astype(np.float64), seed

    def begin(self, episode: int) -> None:
        self._rng = action_rng(self._seed, episode)

    def action(self, observation: Any) -> np.ndarray:
        return self._rng.uniform(self._low, self._high)


class Waypoints:
    """The controller of a point maze, with Gaussian noise on its action, clipped to [-1, 1].

    Args:
        env: a point maze of gymnasium-robotics.
        noise: standard deviation of the noise.
        seed: seed of the dataset.
    """

    def __init__(self, env: gymnasium.Env, noise: float, seed: int) -> None:
        core: Any = env.unwrapped
        self._core = core
        self._controller = WaypointController(self._core.maze.maze_map, self._core.maze.maze_size_scaling)
        self._noise, self._seed = noise, seed

    def begin(self, episode: int) -> None:
        self._rng = action_rng(self._seed, episode)

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        state = observation["observation"]
        # The observation's goal is one step old after a goal was reached, so the environment's own goal is used.
        force = self._controller.action(state[:2], state[2:], self._core.goal)
        return np.clip(force + self._noise * self._rng.standard_normal(2), -1.0, 1.0)


class Trained:
    """A trained policy that acts as in an evaluation, with its own noise and best of N, plus Gaussian noise.

    Args:
        policy: its actions in [-1, 1] are mapped to the bounds of ``space``.
        space: the environment's action space, which is bounded.
        observation_keys: see :class:`mfrl.envs.spec.EnvSpec`.
        noise: standard deviation of the Gaussian noise. It is added to the actions, which are then clipped to [-1, 1].
        seed: seed of the dataset.
    """

    def __init__(
        self,
        policy: Policy,
        space: gymnasium.spaces.Box,
        observation_keys: tuple[str, ...] | None,
        noise: float,
        seed: int,
    ) -> None:
        self._policy, self._keys, self._noise, self._seed = policy, observation_keys, noise, seed
        self._space = space

    def begin(self, episode: int) -> None:
        self._rng = action_rng(self._seed, episode)
        self._generator = generator(self._seed, "collection policy", episode)

    @torch.no_grad()
    def action(self, observation: Any) -> np.ndarray:
        policy = self._policy
        e = policy.sample_noise((policy.num_candidates, 1, policy.action_dim), self._generator)
        action = policy.act(torch.from_numpy(to_vector(observation, self._keys))[None], e)[0].double().cpu().numpy()
        if self._noise:
            action += self._noise * self._rng.standard_normal(action.shape)
        return to_bounds(np.clip(action, -1.0, 1.0), self._space)


def action_rng(seed: int, episode: int) -> np.random.Generator:
    """The generator of the noise on the actions of an episode."""
    return np.random.default_rng(derived_seed(seed, "collection action", episode))
