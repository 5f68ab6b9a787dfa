"""What the ants of a collected dataset did: falls, speed, coverage of the maze, and a figure of where they were.

    python benchmarks/ant_data.py antmaze-medium-navigate [antmaze-...] [--data-dir DATA] [--out FOLDER]

Writes FOLDER/NAME.json and FOLDER/NAME.png for each dataset (FOLDER defaults to benchmarks/results/ant_data). A row is
a tenth of a second, and a unit of the simulator's length is a metre.

fallen at the end   share of episodes whose last row has the torso upside down (its up axis points down)
fallen ever         share of episodes with such a row
out of range ever   share of episodes whose torso left the heights of 0.2 to 1.0 m, which ends an episode of the
                    expert's training
speed               metres a second: from row to row, and over whole seconds, which leaves out the swaying; steps of
                    more than a metre, which only a teleport makes, are left out
cells               share of the maze's free cells in which some row is; and how many an episode enters
clipped             share of the numbers in actions that are -1 or 1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm

from mfrl.catalogue import DEFAULT_DATA_DIR, singletask_id
from mfrl.data.ogbench_files import data_paths, describe
from mfrl.envs import ogbench
from mfrl.envs.maze import MazeLayout, maze_layout
from mfrl.system.drawing import new_figure
from mfrl.system.files import write_json

SECONDS = 0.1  # of a row: five steps of the simulator of 0.02
ROWS_A_SECOND = 10
HEALTHY = (0.2, 1.0)  # ogbench.online_locomotion.ant, healthy_z_range
ROW_OF_A_TELEPORT = 1.0
RESOLUTION = 8  # pixels of the figure along a cell


def statistics(data: dict[str, np.ndarray], maze: MazeLayout) -> dict[str, Any]:
    """Of the fields of a file whose episodes are all equally long."""
    ends = np.flatnonzero(data["terminals"])
    length = int(ends[0]) + 1
    lengths = np.diff(ends, prepend=-1)
    qpos = data["qpos"].reshape(len(ends), length, -1).astype(np.float64)
    down, height, xy = ~upright(qpos[..., 3:7]), qpos[..., 2], qpos[..., :2]
    outside = (height < HEALTHY[0]) | (height > HEALTHY[1])
    step = np.linalg.norm(np.diff(xy, axis=1), axis=-1)
    step[step > ROW_OF_A_TELEPORT] = np.nan
    second = np.linalg.norm(xy[:, ROWS_A_SECOND:] - xy[:, :-ROWS_A_SECOND], axis=-1)
    within = np.lib.stride_tricks.sliding_window_view(step, ROWS_A_SECOND, axis=1)
    second[np.isnan(within).any(-1)] = np.nan
    cell = np.floor((xy + np.asarray(maze.offset)) / maze.unit + 0.5).astype(int)
    number = cell[..., 1] * maze.walls.shape[1] + cell[..., 0]
    entered = np.array([len(np.unique(own)) for own in number])
    free = np.flatnonzero(~maze.walls.ravel())
    return {
        "episodes": len(ends),
        "rows": sorted(set(lengths.tolist())),
        "fallen_at_the_end": float(down[:, -1].mean()),
        "fallen_ever": float(down.any(1).mean()),
        "out_of_range_ever": float(outside.any(1).mean()),
        "speed_of_a_row": spread(step / SECONDS),
        "speed_over_a_second": spread(second),
        "cells_covered": float(np.isin(free, number).mean()),
        "cells_entered_by_an_episode": spread(entered),
        "clipped": float((np.abs(data["actions"]) == 1.0).mean()),
        "action_std": float(data["actions"].std()),
    }


def upright(quaternion: np.ndarray) -> np.ndarray:
    """Whether the up axis of a body ``(..., 4)`` (w, x, y, z) points up."""
    return 1.0 - 2.0 * (quaternion[..., 1] ** 2 + quaternion[..., 2] ** 2) > 0.0


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean and quartiles, NaN left out."""
    low, middle, high = np.nanpercentile(values, (25, 50, 75))
    return {"mean": float(np.nanmean(values)), "p25": float(low), "median": float(middle), "p75": float(high)}


def draw(xy: np.ndarray, maze: MazeLayout, title: str, path: Path) -> None:
    """Where the rows are, in a logarithmic scale; walls are grey."""
    rows, columns = maze.walls.shape
    left, right, bottom, top = maze.extent
    bins = [np.linspace(bottom, top, rows * RESOLUTION + 1), np.linspace(left, right, columns * RESOLUTION + 1)]
    counts, *_ = np.histogram2d(xy[:, 1], xy[:, 0], bins=bins)
    figure = new_figure(5.6, 4.8 * rows / columns + 0.8)
    axes = figure.subplots()
    axes.imshow(maze.walls, cmap="Greys", vmax=2.0, extent=maze.extent, origin="lower")
    shown = np.ma.masked_equal(counts, 0)
    heat = axes.imshow(shown, cmap="viridis", norm=LogNorm(1, counts.max()), extent=maze.extent, origin="lower")
    figure.colorbar(heat, ax=axes, label=f"rows in {maze.unit / RESOLUTION:g} x {maze.unit / RESOLUTION:g} m")
    axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    axes.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("datasets", nargs="+", metavar="NAME")
    parser.add_argument("--data-dir", type=Path, default=Path(DEFAULT_DATA_DIR).expanduser())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/ant_data")
    given = parser.parse_args()
    for name in given.datasets:
        dataset = name if name.endswith("-v0") else f"{name}-v0"
        record = describe(given.data_dir, dataset)
        with np.load(data_paths(given.data_dir, dataset)[0]) as file:
            data = {field: file[field] for field in ("actions", "terminals", "qpos")}
        maze = maze_layout(ogbench.make(singletask_id(dataset)))
        assert maze is not None, "every dataset named here has a maze"
        found = {"dataset": dataset, "source": record["source"], "provenance": record, **statistics(data, maze)}
        print(json.dumps({key: value for key, value in found.items() if key != "provenance"}, indent=2))
        given.out.mkdir(parents=True, exist_ok=True)
        write_json(given.out / f"{dataset}.json", found)
        draw(data["qpos"][:, :2], maze, f"{dataset}, {record['source']}", given.out / f"{dataset}.png")


if __name__ == "__main__":
    main()
