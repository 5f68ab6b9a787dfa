"""A controller for gymnasium-robotics' point mazes. It follows a shortest path of cells, from centre to centre.

The mazes and the feedback law are those of the published point-maze sets: a proportional and a derivative term towards
the next way-point, ``clip(10 (w - x) - v, -1, 1)`` (D4RL, d4rl/pointmaze/waypoint_controller.py, p_gain and d_gain).
D4RL's controller follows a list of way-points. This one looks the way-point up in a table of shortest paths at every
step, so that it finds another way when noise pushes the ball into another cell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

P_GAIN, D_GAIN = 10.0, 1.0
WALL = 1

Cell = tuple[int, int]


class WaypointController:
    """Steers a ball through a maze.

    Args:
        maze_map: rows of cells, in which 1 is a wall, as in gymnasium-robotics.
        cell_size: side of a cell. The maze's centre is the origin, and y falls from row to row.
    """

    def __init__(self, maze_map: Sequence[Sequence[int | str]], cell_size: float = 1.0) -> None:
        self._free = {(i, j) for i, row in enumerate(maze_map) for j, cell in enumerate(row) if cell != WALL}
        self._shape = np.array([len(maze_map), len(maze_map[0])])
        self._size = cell_size
        self._next: dict[Cell, dict[Cell, Cell]] = {}

    def action(self, position: np.ndarray, velocity: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The force in [-1, 1] towards the centre of the next cell, or towards the goal in the goal's own cell.

        Args:
            position, velocity, goal: ``(2,)`` each.

        Returns:
            ``(2,)``.
        """
        cell, goal_cell = self.cell(position), self.cell(goal)
        # The ball's centre may touch a wall, from where no path leads: it then goes straight to the goal.
        following = self._towards(goal_cell).get(cell, goal_cell)
        waypoint = goal if following == goal_cell else self.centre(following)
        return np.clip(P_GAIN * (waypoint - position) - D_GAIN * velocity, -1.0, 1.0)

    def cell(self, xy: np.ndarray) -> Cell:
        """Row and column of the cell that a point ``(2,)`` lies in."""
        from_corner = np.array([-xy[1], xy[0]]) / self._size + self._shape / 2
        i, j = np.floor(from_corner).astype(int)
        return int(i), int(j)

    def centre(self, cell: Cell) -> np.ndarray:
        """The centre of a cell, ``(2,)``."""
        row, column = (np.array(cell) + 0.5 - self._shape / 2) * self._size
        return np.array([column, -row])

    def _towards(self, goal: Cell) -> dict[Cell, Cell]:
        """For every cell from which the goal can be reached, the next cell of a shortest path; found breadth first."""
        if goal not in self._next:
            following, queue = {goal: goal}, deque([goal])
            while queue:
                i, j = cell = queue.popleft()
                for neighbour in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if neighbour in self._free and neighbour not in following:
                        following[neighbour] = cell
                        queue.append(neighbour)
            self._next[goal] = following
        return self._next[goal]
