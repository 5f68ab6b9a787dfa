"""Scripted policies in OGBench's point mazes.

The point steers towards the environment's own sub-goal (the next cell of a shortest path) or in a random direction d,
with Gaussian noise on the action:

    a = clip(d + noise * eps, -1, 1),   |d| = 1,   eps ~ N(0, I)

`navigate` draws a new goal whenever one is reached. `stitch` goes to a cell four cells away and stays there. `explore`
draws a new direction d every ten steps.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import Episode, Rows, environment_seed, pack
from mfrl.envs.ogbench import remove_description

STITCH_CELLS = 4
EXPLORE_STEPS = 10

Cell = tuple[int, int]


class MazeCollector:
    """Runs whole episodes of one maze dataset in one simulator.

    Args:
        settings: the settings of a maze dataset.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments

        self._settings = settings
        self._env = gymnasium.make(
            settings.env_id,
            terminate_at_goal=False,
            max_episode_steps=settings.episode_steps,
            disable_env_checker=True,
        )
        maze: Any = self._env.unwrapped
        self._maze = maze
        remove_description(self._env)
        self._free_cells = _cells(self._maze.maze_map == 0)
        self._goal_cells = [cell for cell in self._free_cells if not self._is_corridor(cell)]
        self._subgoals: dict[tuple[Cell, Cell], np.ndarray] = {}

    def episode(self, rng: np.random.Generator) -> Episode:
        """Run one episode of `settings.episode_steps` rows. :func:`episode_rng` must have been called for it."""
        env, maze, noise, policy = self._env, self._maze, self._settings.noise, self._settings.policy
        start = _pick(rng, self._free_cells)
        goal = self._nearby(rng, start) if policy == "stitch" else _pick(rng, self._goal_cells)
        # To make the goal's observation, reset takes a few random steps with the action space's generator.
        env.action_space.seed(environment_seed(rng))
        task = {"task_info": {"init_ij": start, "goal_ij": goal}}
        observation, _ = env.reset(seed=environment_seed(rng), options=task)

        rows: Rows = defaultdict(list)
        for step in range(self._settings.episode_steps):
            if policy != "explore":
                direction = _unit(self._subgoal() - maze.get_xy())
            elif step % EXPLORE_STEPS == 0:
                direction = _unit(rng.standard_normal(2))
            action = np.clip(direction + rng.normal(0.0, noise, 2), -1.0, 1.0)
            next_observation, _, _, _, info = env.step(action)
            if info["success"] and policy == "navigate":
                self._set_goal(_pick(rng, self._goal_cells))

            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            observation = next_observation
        return pack(rows)

    def _is_corridor(self, cell: Cell) -> bool:
        """Whether a cell has walls on two opposite sides only. OGBench puts no goals there."""
        i, j = cell
        walls = self._maze.maze_map == 1
        vertical, horizontal = (walls[i - 1, j], walls[i + 1, j]), (walls[i, j - 1], walls[i, j + 1])
        return (not any(vertical) and all(horizontal)) or (not any(horizontal) and all(vertical))

    def _nearby(self, rng: np.random.Generator, start: Cell) -> Cell:
        """A random cell whose shortest path to `start` has four cells; `start` itself if there is none."""
        xy = self._maze.ij_to_xy(start)
        _, distances = self._maze.get_oracle_subgoal(xy, xy)
        cells = _cells(distances == STITCH_CELLS)
        return _pick(rng, cells) if cells else start

    def _subgoal(self) -> np.ndarray:
        """The next sub-goal `(2,)` on the way to the current goal, from the environment's oracle, in the maze's units.

        The oracle searches the whole maze, but its answer depends on two cells only, so answers are kept.
        """
        xy, goal_xy = self._maze.get_xy(), self._maze.cur_goal_xy
        cells = self._maze.xy_to_ij(xy), self._maze.xy_to_ij(goal_xy)
        if cells not in self._subgoals:
            self._subgoals[cells] = self._maze.get_oracle_subgoal(xy, goal_xy)[0]
        return self._subgoals[cells]

    def _set_goal(self, cell: Cell) -> None:
        # `set_goal(cell)` would set the same goal but leave the visual marker at NaN.
        self._maze.set_goal(goal_xy=self._maze.add_noise(self._maze.ij_to_xy(cell)))


def _cells(where: np.ndarray) -> list[Cell]:
    return [(i, j) for i, j in np.argwhere(where).tolist()]


def _pick(rng: np.random.Generator, cells: list[Cell]) -> Cell:
    return cells[rng.integers(len(cells))]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-6)
