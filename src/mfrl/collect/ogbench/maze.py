"""Policies in OGBench's mazes: a point that a script steers, and an ant that a trained expert walks.

Both move towards the environment's own sub-goal (the next cell of a shortest path) or in a random direction d, with
Gaussian noise on the action:

    a = clip(mu + noise * eps, -1, 1),   |d| = 1,   eps ~ N(0, I)

    mu = d of a point,   mu = expert(o without x and y, d) of an ant

`navigate` draws a new goal whenever one is reached. `stitch` goes to a cell four cells away and stays there. `explore`
draws a new direction d every ten steps.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import Episode, Rows, environment_seed, pack
from mfrl.collect.ogbench.expert import Expert
from mfrl.envs.ogbench import remove_description
from mfrl.errors import CollectError

STITCH_CELLS = 4
EXPLORE_STEPS = 10

Cell = tuple[int, int]


class MazeCollector:
    """Runs whole episodes of one maze dataset in one simulator.

    Args:
        settings: the settings of a maze dataset.
        expert: the policy that walks; None if the action is the direction itself, as of a point.

    Raises:
        CollectError: the expert's observations or actions have other sizes than the environment's.
    """

    def __init__(self, settings: GenerationSettings, expert: Expert | None = None) -> None:
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments

        self._settings, self._expert = settings, expert
        self._env = gymnasium.make(
            settings.env_id,
            terminate_at_goal=False,
            max_episode_steps=settings.episode_steps,
            disable_env_checker=True,
        )
        maze: Any = self._env.unwrapped
        self._maze = maze
        remove_description(self._env)
        self._refuse_other_walkers()
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
            mean = self._towards(direction)
            action = np.clip(mean + rng.normal(0.0, noise, mean.shape), -1.0, 1.0)
            next_observation, _, _, _, info = env.step(action)
            if info["success"] and policy == "navigate":
                self._set_goal(_pick(rng, self._goal_cells))

            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            observation = next_observation
        return pack(rows)

    def _towards(self, direction: np.ndarray) -> np.ndarray:
        """The action without noise that moves in a direction `(2,)`."""
        if self._expert is None:
            return direction
        return self._expert.act(np.concatenate([self._maze.get_ob(ob_type="states")[2:], direction]))

    def _refuse_other_walkers(self) -> None:
        if self._expert is None:
            return
        actions = self._env.action_space.shape
        sizes = (len(self._maze.get_ob(ob_type="states")), *(actions or ()))  # a direction in the place of x and y
        if sizes != (self._expert.observation_dim, self._expert.action_dim):
            raise CollectError(
                f"the expert sees {self._expert.observation_dim} numbers and gives {self._expert.action_dim}, but who "
                f"walks in {self._settings.env_id} shows {sizes[0]} and takes {sizes[1]}"
            )

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
