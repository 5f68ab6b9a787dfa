"""The geometry of OGBench's mazes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class MazeLayout:
    """Where the walls, the start and the goal of a maze are, in the simulator's length unit.

    Attributes:
        walls: bool ``(rows, columns)``; the centre of cell (i, j) is at
            ``x = j unit - offset[0], y = i unit - offset[1]``.
        unit: side of a cell.
        offset: ``(x, y)``.
        init_xy, goal_xy: centres of the task's start and goal cells.
        goal_radius: distance from the goal that counts as success.
    """

    walls: np.ndarray
    unit: float
    offset: tuple[float, float]
    init_xy: tuple[float, float]
    goal_xy: tuple[float, float]
    goal_radius: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges: left, right, bottom, top."""
        rows, columns = self.walls.shape
        left, bottom = -self.offset[0] - self.unit / 2, -self.offset[1] - self.unit / 2
        return left, left + columns * self.unit, bottom, bottom + rows * self.unit

    def contains_wall(self, xy: np.ndarray) -> np.ndarray:
        """Whether points ``(..., 2)`` lie inside a wall cell."""
        cells = np.floor((xy + np.asarray(self.offset)) / self.unit + 0.5).astype(int)
        return self.walls[cells[..., 1], cells[..., 0]]

    def grid_points(self, resolution: int) -> np.ndarray:
        """Centres of a raster over the whole maze, ``(rows * resolution, columns * resolution, 2)``."""
        rows, columns = self.walls.shape
        left, _, bottom, _ = self.extent
        step = self.unit / resolution
        x = left + step * (np.arange(columns * resolution) + 0.5)
        y = bottom + step * (np.arange(rows * resolution) + 0.5)
        return np.stack(np.meshgrid(x, y), axis=-1)

    def free_points(self, resolution: int = 5) -> np.ndarray:
        """The raster's points in free cells, row by row, ``(points, 2)``: resolution^2 in each cell."""
        points = self.grid_points(resolution)
        return points[~self.contains_wall(points)]


def maze_layout(env: gymnasium.Env) -> MazeLayout | None:
    """The maze of a single-task environment; None where there is no maze or no fixed task."""
    core: Any = env.unwrapped
    task_id = getattr(core, "_reward_task_id", None)
    if not hasattr(core, "maze_map") or task_id is None:
        return None
    task = core.task_infos[task_id - 1]
    init_xy = task["init_xy"] if "init_xy" in task else task["agent_init_xy"]  # the latter with a ball
    return MazeLayout(
        walls=core.maze_map != 0,
        unit=core._maze_unit,
        offset=(core._offset_x, core._offset_y),
        init_xy=init_xy,
        goal_xy=task["goal_xy"],
        goal_radius=core._goal_tol,
    )
