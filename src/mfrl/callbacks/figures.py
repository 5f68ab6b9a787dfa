"""Figures of a policy's actions and paths, and of a critic's values. Pure functions from arrays to a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from mfrl.envs.maze import MazeLayout
from mfrl.system.drawing import BLUE, ORANGE, YELLOW, new_figure

WALL, FLOOR = "#3A3A3A", "#FFFFFF"


def action_samples(
    samples: np.ndarray, dataset_actions: Sequence[np.ndarray], names: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw the policy's one-step samples and the dataset's actions, in a panel for each state.

    Two action dimensions are drawn as a plane. Other numbers of dimensions are drawn as strips, one for each dimension,
    with the dataset on the left and the policy on the right.

    Args:
        samples: ``(states, samples, action_dim)`` in [-1, 1].
        dataset_actions: for each state, the dataset's actions ``(n, action_dim)`` near it.
        names: titles of the panels.

    Raises:
        ValueError: the arguments have different numbers of states, or none.
    """
    if len(samples) != len(dataset_actions) or len(samples) == 0:
        raise ValueError(f"samples for {len(samples)} states, dataset actions for {len(dataset_actions)}")
    states, _, action_dim = samples.shape
    columns = min(states, 2)
    rows = -(-states // columns)
    width = 2.7 if action_dim <= 2 else max(2.7, 0.42 * action_dim + 0.7)
    figure = new_figure(width * columns + 0.5, 2.8 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    plane = action_dim == 2
    draw = _draw_plane if plane else _draw_strips
    horizontal, vertical = ("action 1", "action 2") if plane else ("action dimension", "action")
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < states)
        if i < states:
            draw(axes, np.asarray(dataset_actions[i]), samples[i])
            axes.set_title(names[i] if names else f"state {i + 1}", fontsize=9)
            if i % columns == 0:
                axes.set_ylabel(vertical)
            if i + columns >= states:
                axes.set_xlabel(horizontal)
                axes.tick_params(labelbottom=True)
    figure.suptitle(title)
    dots: dict[str, Any] = {"marker": "o", "linestyle": "none"}
    dataset = Line2D([], [], color=BLUE, label="dataset", **dots)
    policy = Line2D([], [], color=ORANGE, label="policy, one step", **dots)
    _legend(figure, [dataset, policy])
    return figure


def maze_paths(maze: MazeLayout, paths: Sequence[np.ndarray], successes: Sequence[bool]) -> Figure:
    """Draw paths ``(steps, 2)`` of evaluation episodes: blue if the episode reached the goal, otherwise orange."""
    figure, axes = _new_maze(maze)
    axes.imshow(maze.walls, cmap=ListedColormap([FLOOR, WALL]), extent=maze.extent, origin="lower")
    for path, success in zip(paths, successes, strict=True):
        xy = _broken_at_jumps(np.asarray(path, float), maze.unit)
        axes.plot(*xy.T, color=BLUE if success else ORANGE, linewidth=1.1, alpha=0.65, solid_capstyle="round")
    reached = int(np.sum(successes))
    lines = [
        Line2D([], [], color=BLUE, label=f"reached the goal ({reached})"),
        Line2D([], [], color=ORANGE, label=f"did not ({len(successes) - reached})"),
    ]
    _legend(figure, lines + _mark_task(axes, maze, ink="black"))
    return figure


def value_map(maze: MazeLayout, points: np.ndarray, values: np.ndarray) -> Figure:
    """Draw values in the free cells as a heat map.

    Args:
        points: ``(points, 2)``, the result of ``maze.free_points(resolution)`` for some resolution.
        values: ``(points,)``.

    Raises:
        ValueError: ``points`` is no such raster, or there is not one value for each point.
    """
    resolution = max(1, round((len(points) / np.count_nonzero(~maze.walls)) ** 0.5))
    if not np.array_equal(maze.free_points(resolution), points) or len(values) != len(points):
        raise ValueError(f"{len(points)} points, {len(values)} values: not a raster of the maze's free cells")
    raster = maze.grid_points(resolution)
    image = np.full(raster.shape[:2], np.nan)
    image[~maze.contains_wall(raster)] = values
    figure, axes = _new_maze(maze)
    axes.set_facecolor(WALL)
    heat = axes.imshow(image, cmap="viridis", extent=maze.extent, origin="lower", interpolation="nearest")
    figure.colorbar(heat, cax=axes.inset_axes((1.03, 0.0, 0.04, 1.0)), label="value")
    _legend(figure, _mark_task(axes, maze, ink="white"))
    return figure


def _new_maze(maze: MazeLayout) -> tuple[Figure, Axes]:
    rows, columns = maze.walls.shape
    figure = new_figure(5.6, 4.8 * rows / columns + 1.1)
    axes = figure.subplots()
    axes.set(xlabel="x", ylabel="y", aspect="equal")
    return figure, axes


def _draw_plane(axes: Axes, dataset: np.ndarray, policy: np.ndarray) -> None:
    axes.scatter(dataset[:, 0], dataset[:, 1], s=14, color=BLUE, alpha=0.45, linewidth=0)
    axes.scatter(policy[:, 0], policy[:, 1], s=14, color=ORANGE, alpha=0.45, linewidth=0)
    axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), box_aspect=1, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_strips(axes: Axes, dataset: np.ndarray, policy: np.ndarray) -> None:
    rng = np.random.default_rng(0)  # spreads the points sideways, nothing else
    for actions, color, shift in ((dataset, BLUE, -0.2), (policy, ORANGE, 0.2)):
        place = np.arange(1, actions.shape[1] + 1) + shift + rng.uniform(-0.13, 0.13, actions.shape)
        axes.scatter(place, actions, s=7, color=color, alpha=0.45, linewidth=0)
    dims = np.arange(1, policy.shape[1] + 1)
    axes.set(xlim=(0.4, len(dims) + 0.6), ylim=(-1.08, 1.08), yticks=(-1, 0, 1))
    axes.set_xticks(dims if len(dims) <= 10 else dims[::5])
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _broken_at_jumps(path: np.ndarray, unit: float) -> np.ndarray:
    """The path with a gap at every step longer than half a cell, so that a teleport is not drawn as a line."""
    jumps = np.flatnonzero(np.linalg.norm(np.diff(path, axis=0), axis=1) > unit / 2)
    return np.insert(path, jumps + 1, np.nan, axis=0)


def _mark_task(axes: Axes, maze: MazeLayout, ink: str) -> list[Line2D]:
    """Draw start and goal, crop the outer wall to a rim, and return the legend's entries."""
    axes.add_patch(Circle(maze.goal_xy, maze.goal_radius, fill=False, edgecolor=ink, linewidth=1.2, zorder=3))
    left, right, bottom, top = maze.extent
    rim = 0.7 * maze.unit
    axes.set(xlim=(left + rim, right - rim), ylim=(bottom + rim, top - rim))
    marks = []
    for xy, label, marker, size in ((maze.init_xy, "start", "s", 7), (maze.goal_xy, "goal", "*", 14)):
        look: dict[str, Any] = {"marker": marker, "color": YELLOW, "markeredgecolor": "black", "linestyle": "none"}
        axes.plot(*xy, markersize=size, zorder=4, **look)
        marks.append(Line2D([], [], label=label, markersize=min(size, 11), **look))
    return marks


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
