"""Figures put things where they are: drawn, then read back from the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mfrl.callbacks import figures
from mfrl.envs.maze import MazeLayout
from mfrl.study import figures as study_figures
from mfrl.system import drawing

# An L: three cells along the bottom, then up on the right; asymmetric in x and y on purpose.
WALLS = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 0, 1],
        [1, 1, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1],
    ],
    dtype=bool,
)
MAZE = MazeLayout(WALLS, unit=4.0, offset=(4, 4), init_xy=(0.0, 0.0), goal_xy=(12.0, 8.0), goal_radius=1.0)
ROUTE = np.concatenate([np.linspace((0, 0), (12, 0), 50), np.linspace((12, 0), (12, 8), 50)])


def pixels(figure: Figure, points: np.ndarray) -> np.ndarray:
    """Colours ``(points, 3)`` in [0, 1] that the first axes show at data coordinates ``(points, 2)``."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    x, y = figure.axes[0].transData.transform(points).T
    return image[(image.shape[0] - 1 - y).round().astype(int), x.round().astype(int)]


def is_color(colors: np.ndarray, name: str) -> np.ndarray:
    return np.abs(colors - to_rgb(name)).max(-1) < 0.08


def away_from_marks(points: np.ndarray) -> np.ndarray:
    """Which points the signs for start and goal do not cover."""
    return np.linalg.norm(points[:, None] - [MAZE.init_xy, MAZE.goal_xy], axis=-1).min(1) > 1.8


def test_walls_are_drawn_where_the_layout_has_them():
    inner = MAZE.grid_points(5)[4:-4, 4:-4].reshape(-1, 2)  # the rim of the outer wall is cropped
    far = away_from_marks(inner)
    shown = is_color(pixels(figures.maze_paths(MAZE, [], []), inner[far]), figures.WALL)
    np.testing.assert_array_equal(shown, MAZE.contains_wall(inner[far]))


def test_paths_lie_in_the_corridors_coloured_by_success():
    middle = ROUTE[away_from_marks(ROUTE)]
    for success, color in ((True, drawing.BLUE), (False, drawing.ORANGE)):
        figure = figures.maze_paths(MAZE, [ROUTE], [success])
        (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(ROUTE)]
        np.testing.assert_array_equal(line.get_xydata(), ROUTE)
        assert line.get_color() == color
        shown = pixels(figure, middle)
        assert not is_color(shown, figures.WALL).any()
        assert not is_color(shown, figures.FLOOR).any()


def test_legend_counts_successes():
    figure = figures.maze_paths(MAZE, [ROUTE] * 3, [True, False, True])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["reached the goal (2)", "did not (1)", "start", "goal"]


def test_a_teleport_is_not_drawn_as_a_way_through_walls():
    jump = np.array([[0.0, 0.0], [0.2, 0.0], [12.0, 8.0], [12.0, 7.8]])
    figure = figures.maze_paths(MAZE, [jump], [False])
    (drawn,) = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    assert np.isnan(drawn[2]).all()
    np.testing.assert_array_equal(drawn[[0, 1, 3, 4]], jump)


def test_values_are_shown_in_their_cells_and_walls_stay_dark():
    points = MAZE.free_points(3)
    values = points[:, 0] + 10 * points[:, 1]
    figure = figures.value_map(MAZE, points, values)
    (image,) = figure.axes[0].images
    far = away_from_marks(points)
    expected = image.cmap(image.norm(values))[:, :3]
    np.testing.assert_allclose(pixels(figure, points[far]), expected[far], atol=0.02)
    walls = np.array([[0.0, 4.0], [8.0, 8.0], [4.0, 4.0]])
    assert is_color(pixels(figure, walls), figures.WALL).all()


def test_values_at_other_points_than_the_raster_are_refused():
    points = MAZE.free_points(3)
    with pytest.raises(ValueError, match="raster"):
        figures.value_map(MAZE, points[::-1], np.zeros(len(points)))
    with pytest.raises(ValueError, match="raster"):
        figures.value_map(MAZE, points, np.zeros(len(points) - 1))


def test_start_and_goal_are_marked_in_both_maze_figures():
    points = MAZE.free_points(2)
    for figure in (figures.maze_paths(MAZE, [], []), figures.value_map(MAZE, points, np.zeros(len(points)))):
        marks = {line.get_marker(): tuple(line.get_xydata()[0]) for line in figure.axes[0].lines}
        assert marks == {"s": MAZE.init_xy, "*": MAZE.goal_xy}


@pytest.mark.parametrize("action_dim", [1, 2, 5, 21])
def test_every_action_of_policy_and_dataset_is_shown(action_dim):
    rng = np.random.default_rng(0)
    samples = rng.uniform(-1, 1, (3, 20, action_dim))
    dataset = [rng.uniform(-1, 1, (n, action_dim)) for n in (7, 9, 11)]
    figure = figures.action_samples(samples, dataset, title="actions")
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    for axes, taken, sampled in zip(panels, dataset, samples, strict=True):
        for points, actions in zip(axes.collections, (taken, sampled), strict=True):
            offsets = points.get_offsets()
            if action_dim == 2:
                np.testing.assert_array_equal(offsets, actions)
            else:
                np.testing.assert_array_equal(offsets[:, 1], actions.ravel())
                dimensions = np.tile(np.arange(1, action_dim + 1), len(actions))
                np.testing.assert_array_equal(offsets[:, 0].round(), dimensions)


def test_four_states_stand_two_by_two_under_their_places():
    places = [f"x = {k}.0, y = 0.5" for k in range(4)]
    figure = figures.action_samples(np.zeros((4, 5, 2)), [np.zeros((3, 2))] * 4, places)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == places
    corners = [axes.get_position() for axes in figure.axes]
    assert len({round(corner.x0, 3) for corner in corners}) == len({round(corner.y0, 3) for corner in corners}) == 2


def test_states_and_dataset_actions_must_match():
    with pytest.raises(ValueError, match="states"):
        figures.action_samples(np.zeros((2, 5, 2)), [np.zeros((5, 2))])


def test_figures_leave_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.maze_paths(MAZE, [ROUTE], [True])
    assert plt.get_fignums() == before


def test_clouds_have_a_panel_for_each_name_coloured_by_observation():
    clouds = {"data": np.zeros((2, 40, 2)), "policy": np.full((2, 40, 2), 0.5)}
    clouds["data"][1] += (0.9, -0.9)
    clouds["policy"][0, :10] = 9.0
    figure = study_figures.sample_clouds(clouds, title="two")
    assert [axes.get_title() for axes in figure.axes] == ["data", "policy"]
    seen = pixels(figure, np.array([(0.0, 0.0), (0.9, -0.9), (-0.5, 0.5)]))
    assert seen[0].argmax() == 2  # blue
    assert seen[1].argmax() == 0  # orange
    assert is_color(seen[2], "white")
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["12% beyond"]
    of_methods = study_figures.sample_clouds({"a": np.zeros((1, 40, 2)), "b": np.zeros((1, 40, 2))}, colors=["g", "r"])
    for axes, color in zip(of_methods.axes, ("g", "r"), strict=True):
        assert to_rgb(axes.collections[0].get_facecolor()[0][:3]) == to_rgb(color)


def test_displaced_lines_are_drawn_where_they_are():
    lines = np.zeros((2, 3, 50, 2))
    lines[0, ..., 0], lines[0, ..., 1] = np.array([[-0.5], [0.0], [0.5]]), np.linspace(-1, 1, 50)
    lines[1] = lines[0, ..., ::-1]
    figure = study_figures.displaced_grids({"noise": 3.0 * lines, "action": lines})
    upright, level = figure.axes[1].collections
    np.testing.assert_array_equal(upright.get_segments(), lines[0])
    np.testing.assert_array_equal(level.get_segments(), lines[1])
    assert figure.axes[0].get_xlim()[1] > 3.0
    assert figure.axes[1].get_xlim() == (-1.5, 1.5)


def test_panels_go_on_in_the_next_row():
    figure = study_figures.sample_clouds({str(k): np.zeros((1, 5, 2)) for k in range(7)}, columns=3)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 7 + [False] * 2
