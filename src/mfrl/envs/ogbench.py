"""OGBench's environments: their names, their construction and the geometry of their mazes."""

from __future__ import annotations

import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.errors import MfrlError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
NUM_TASKS = 5
FRAME_SIZE = 256


class EnvError(MfrlError, ValueError):
    """An environment that cannot be built, or rendered, as asked."""


def singletask_id(dataset: str, task: int | None = None) -> str:
    """The environment whose task a dataset is relabelled for.

    Args:
        dataset: for example ``pointmaze-medium-navigate-v0``; the version may be left out.
        task: 1 to 5, or None for the task OGBench holds to be the environment's default.

    Returns:
        for example ``pointmaze-medium-singletask-v0`` or ``pointmaze-medium-singletask-task2-v0``.

    Raises:
        EnvError: the name does not end in a dataset type, or there is no such task.
    """
    if task is not None and task not in range(1, NUM_TASKS + 1):
        raise EnvError(f"env.task={task} must be a whole number from 1 to {NUM_TASKS}, or null for the default task")
    if dataset.startswith("powderworld"):
        raise EnvError(f"{dataset} has discrete actions and no rewards; mfrl's policies are for continuous actions")
    if "-singletask" in dataset:
        raise EnvError(f"{dataset!r} is an environment: name its dataset, as in cube-single-play, and env.task=2")
    match = re.fullmatch(rf"(?P<env>.+)-({'|'.join(DATASET_TYPES)})(-100m)?(?P<version>-v\d+)?", dataset)
    if match is None:
        types = ", ".join(DATASET_TYPES)
        raise EnvError(f"{dataset!r} is not an OGBench dataset: it should end in one of {types}")
    return f"{match['env']}-singletask{'' if task is None else f'-task{task}'}{match['version'] or '-v0'}"


def make(env_id: str, *, render: bool = False, frames: int = 1, **kwargs: Any) -> gymnasium.Env:
    """Build an environment by its gymnasium name.

    Args:
        render: prepare it for ``env.render()``: 256 pixels square and without shadows, which take four
            fifths of the time in software. Pixel observations are left as the benchmark defines them.
            ``MUJOCO_GL`` must be set before ``mujoco`` is first imported, for instance by
            :func:`mfrl.envs.rendering.choose_backend`.
        frames: of pixel observations: the last so many make one, uint8 ``(frames, height, width, channels)``, the
            oldest first; before an episode's first image, that one is repeated.
        kwargs: passed to ``gymnasium.make``.

    Raises:
        EnvError: no such environment; the message suggests near names.
    """
    import gymnasium
    import ogbench  # noqa: F401 - registers the environments

    if env_id not in gymnasium.registry:
        raise EnvError(f"there is no environment {env_id!r}{did_you_mean(env_id, gymnasium.registry)}")
    for_video = render and not observes_pixels(env_id)
    if for_video:
        kwargs = {"width": FRAME_SIZE, "height": FRAME_SIZE} | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered")  # OGBench's float64 bounds of +-1
        # dm_control looks for a display when imported; nothing here draws on one.
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable")
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        remove_description(env)
        _keep_one_action_space(env.unwrapped)
    if for_video:
        env.reset()  # the manipulation scenes compile their model at the first reset
        env.unwrapped.model.light_castshadow[:] = False
    if observes_pixels(env_id):
        # The stacking asks for the space at every step, and the manipulation environments render whenever asked.
        env.observation_space = env.observation_space
        env = gymnasium.wrappers.FrameStackObservation(env, frames, padding_type="reset")
    return env


def remove_description(env: gymnasium.Env) -> None:
    """Delete the XML that a maze is described in, loaded by now: each one that is built leaves a file in /tmp."""
    path = getattr(env.unwrapped, "fullpath", None)
    if hasattr(env.unwrapped, "maze_map") and path is not None and Path(path).parent == Path(tempfile.gettempdir()):
        Path(path).unlink(missing_ok=True)


def observes_pixels(env_id: str) -> bool:
    """Whether observations are images, so that every step renders."""
    return env_id.startswith("visual-")


def _keep_one_action_space(core: gymnasium.Env) -> None:
    # The manipulation environments build a new action space at every access, seeded by the operating system,
    # and their reset takes random steps with it, which leave traces in the solver's warm start and in the
    # controls: no seed would fix an episode. With one lasting space, env.action_space.seed does.
    if core.action_space is not core.action_space:
        core.__class__ = type(type(core).__name__, (type(core),), {"action_space": core.action_space})


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
    core = env.unwrapped
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
