"""Environments by name, episodes fixed by their seeds, workers that fail loudly, and frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing import active_children

import gymnasium
import numpy as np
import pytest
from strange import MEDIUM, Fragile

from mfrl.catalogue import singletask_id
from mfrl.envs import ogbench
from mfrl.envs.maze import MazeLayout, maze_layout
from mfrl.envs.rendering import choose_backend
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import VectorEnv, WorkerError
from mfrl.errors import EnvError

TELEPORT = EnvSpec("pointmaze-teleport-singletask-v0")


@dataclass(frozen=True)
class UnboundedEnv:
    """Makes an environment without a time limit."""

    def make(self, *, render: bool = False) -> gymnasium.Env:
        return MEDIUM.make(render=render).unwrapped


def rollout(env: VectorEnv, seeds: list[int], actions: np.ndarray) -> np.ndarray:
    """Observations ``(steps + 1, num_envs, ...)`` under actions ``(steps, num_envs, action_dim)``."""
    observations = [env.reset(range(env.num_envs), seeds)]
    observations += [env.step(a).observations for a in actions]
    return np.stack(observations)


def backend_or_skip() -> str:
    try:
        return choose_backend()
    except EnvError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("dataset", "task", "env_id"),
    [
        ("pointmaze-medium-explore-v0", None, "pointmaze-medium-singletask-v0"),
        ("pointmaze-medium-navigate", 2, "pointmaze-medium-singletask-task2-v0"),
        ("antmaze-giant-stitch-v0", 5, "antmaze-giant-singletask-task5-v0"),
        ("cube-single-noisy-v0", 1, "cube-single-singletask-task1-v0"),
        ("scene-play-v0", None, "scene-singletask-v0"),
        ("visual-puzzle-4x4-play-v0", None, "visual-puzzle-4x4-singletask-v0"),
    ],
)
def test_datasets_name_their_single_task_environment(dataset, task, env_id):
    import ogbench as _  # noqa: F401 - registers the environments

    assert singletask_id(dataset, task) == env_id
    assert env_id in gymnasium.registry


@pytest.mark.parametrize("task", [0, 6, -1])
def test_tasks_outside_one_to_five_are_refused(task):
    with pytest.raises(EnvError, match=f"env.task={task}.*1 to 5"):
        singletask_id("cube-single-play-v0", task)


def test_names_without_a_dataset_type_are_refused():
    with pytest.raises(EnvError, match="navigate"):
        singletask_id("cube-single-v0")


def test_misspelt_environments_suggest_near_names():
    with pytest.raises(EnvError, match="pointmaze-medium-singletask"):
        ogbench.make("pointmaze-mediun-singletask-v0")


def test_misspelt_environments_are_reported_from_workers_as_here():
    with pytest.raises(EnvError, match="did you mean"):
        VectorEnv(EnvSpec("pointmaze-mediun-singletask-v0"), num_envs=2, workers=1)


def test_environments_without_a_time_limit_are_refused():
    with pytest.raises(EnvError, match="time limit"):
        VectorEnv(UnboundedEnv(), num_envs=1, workers=0)


def test_maze_layout_agrees_with_the_simulator():
    env = ogbench.make("pointmaze-large-singletask-task2-v0")
    core, maze = env.unwrapped, maze_layout(env)
    assert maze.goal_xy == core.task_infos[1]["goal_xy"]
    assert maze.init_xy == core.task_infos[1]["init_xy"]
    for xy in maze.grid_points(2).reshape(-1, 2):
        assert maze.contains_wall(xy) == (core.maze_map[core.xy_to_ij(xy)] == 1)
    points = maze.free_points(3)
    assert len(points) == 9 * np.count_nonzero(core.maze_map == 0)
    assert not maze.contains_wall(points).any()


def test_environments_without_a_maze_have_no_layout():
    assert maze_layout(ogbench.make("cube-single-singletask-v0")) is None


def test_layout_puts_row_and_column_where_the_simulator_does():
    walls = np.array([[True, False, True]])
    maze = MazeLayout(walls, unit=4.0, offset=(4, 4), init_xy=(0, -4), goal_xy=(0, -4), goal_radius=1.0)
    assert maze.extent == (-6.0, 6.0, -6.0, -2.0)
    np.testing.assert_allclose(maze.free_points(1), [[0.0, -4.0]])


@pytest.mark.parametrize("env_id", ["antmaze-medium-singletask-v0", "cube-double-singletask-v0"])
def test_an_episode_depends_on_its_seed_and_actions_alone(env_id):
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 2, 8)).astype(np.float32)
    with VectorEnv(EnvSpec(env_id), num_envs=2, workers=0) as env:
        actions = actions[..., : env.signature.action_dim]
        first = rollout(env, [3, 4], actions)
        rollout(env, [8, 9], actions[:7])
        again = rollout(env, [3, 5], actions)
    with VectorEnv(EnvSpec(env_id), num_envs=1, workers=0) as env:
        alone = rollout(env, [3], actions[:, :1])
    np.testing.assert_array_equal(first[:, 0], again[:, 0])
    np.testing.assert_array_equal(first[:, 0], alone[:, 0])
    assert np.abs(first[0, 1] - again[0, 1]).max() > 0  # other seeds, other starts


def test_a_reset_hides_no_chance_in_the_simulator():
    # Random steps within a reset must be seeded too: they leave traces in warm start and controls.
    states = []
    for _ in range(2):
        with VectorEnv(EnvSpec("cube-single-singletask-v0"), num_envs=1, workers=0) as env:
            env.reset([0], [3])
            data = env._crew._group._envs[0].unwrapped.data
            states.append(np.concatenate([data.qacc_warmstart, data.ctrl, data.qpos]))
    np.testing.assert_array_equal(*states)


def test_random_teleports_of_one_environment_do_not_disturb_another():
    # A shared generator would give slot 1 another teleport whenever slot 0 draws one first.
    with VectorEnv(TELEPORT, num_envs=2, workers=0) as env:
        envs = [slot.unwrapped for slot in env._crew._group._envs]

        def exits(seeds: list[int], moving: list[bool]) -> list[np.ndarray]:
            env.reset([0, 1], seeds)
            places = []
            for _ in range(12):
                for core, goes in zip(envs, moving, strict=True):
                    core.set_xy(np.array(core._teleport_info["teleport_in_xys"][0] if goes else (0.0, 0.0)))
                env.step(np.zeros((2, 2), np.float32))
                places.append(env.positions[1])
            return places

        np.testing.assert_array_equal(exits([1, 2], [True, True]), exits([7, 2], [False, True]))
        assert not np.array_equal(exits([1, 2], [True, True]), exits([1, 3], [True, True]))


def test_stepping_in_this_process_leaves_numpys_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002 - a second normal variate is held back
    state = np.random.get_state()  # noqa: NPY002
    with VectorEnv(TELEPORT, num_envs=1, workers=0) as env:
        rollout(env, [1], np.zeros((2, 1, 2), np.float32))
    for before, after in zip(state, np.random.get_state(), strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(before, after)


def test_workers_give_what_stepping_here_gives():
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 5, 2)).astype(np.float32)
    active = np.array([True, True, False, True, True])
    results = []
    for workers in (0, 2):
        with VectorEnv(MEDIUM, num_envs=5, workers=workers) as env:
            assert env.signature.maze.goal_xy == (20.0, 20.0)
            observations = rollout(env, [1, 2, 3, 4, 5], actions)
            partial = env.reset([4, 1], [7, 8])
            last = env.step(actions[0], active)
            results.append((observations, partial, *last, env.positions))
    for here, there in zip(*results, strict=True):
        np.testing.assert_array_equal(here, there)
    observations, partial, after = results[0][0], results[0][1], results[0][2]
    np.testing.assert_array_equal(partial[[0, 2, 3]], observations[-1, [0, 2, 3]])  # not reset
    np.testing.assert_array_equal(after[2], partial[2])  # not active


def test_an_error_in_a_worker_reaches_the_caller_with_its_traceback():
    with VectorEnv(Fragile("point fell over"), num_envs=2, workers=2) as env:
        env.reset([0, 1], [0, 1])
        with pytest.raises(WorkerError, match=r"(?s)in fragile.*ArithmeticError: point fell over"):
            env.step(np.array([[0.0, 0.0], [0.5, 0.0]]))
        with pytest.raises(WorkerError, match="closed"):
            env.step(np.zeros((2, 2)))
    assert not active_children()


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with VectorEnv(Fragile(), num_envs=2, workers=2) as env:
        env.reset([0, 1], [0, 1])
        with pytest.raises(WorkerError, match="worker 1 ended unexpectedly: killed by signal 9"):
            env.step(np.array([[0.0, 0.0], [0.5, 0.0]]))
    assert not active_children()


def test_a_worker_has_one_thread_and_no_torch():
    with VectorEnv(WorkerProbe(), num_envs=1, workers=1) as env:
        env.reset([0], [0])
        threads, torch_imported = env.step(np.zeros((1, 1))).observations[0]
    assert threads == 1
    assert not torch_imported


@dataclass(frozen=True)
class WorkerProbe:
    """Makes an environment that observes (OMP threads, whether torch is imported) of its process."""

    def make(self, *, render: bool = False) -> gymnasium.Env:
        del render
        env = gymnasium.wrappers.TimeLimit(ProbeEnv(), max_episode_steps=3)
        env.unwrapped.spec = gymnasium.envs.registration.EnvSpec("Probe-v0", max_episode_steps=3)
        return env


class ProbeEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        del seed, options
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        del action
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> np.ndarray:
        import sys

        return np.array([float(os.environ["OMP_NUM_THREADS"]), float("torch" in sys.modules)])


@pytest.mark.parametrize(
    "env_id",
    ["pointmaze-medium-singletask-v0", pytest.param("cube-single-singletask-v0", marks=pytest.mark.slow)],
)
def test_frames_show_the_scene_and_its_motion(env_id):
    backend_or_skip()
    with VectorEnv(EnvSpec(env_id), num_envs=3, workers=2, render=True) as env:
        env.reset([0, 1, 2], [0, 0, 1])
        same, twin, other = env.render([0, 1, 2])
        assert same.shape == (256, 256, 3)
        assert same.dtype == np.uint8
        assert same.std() > 20  # not black
        np.testing.assert_array_equal(same, twin)
        assert not np.array_equal(same, other)
        np.testing.assert_array_equal(env.render([2])[0], other)
        if env.signature.maze is not None:
            # Right side up: y grows upwards, so the goal (20, 20) is the pink disc in the upper right corner.
            pink = (other.astype(int) - [255, 128, 140]).__abs__().sum(-1) < 90
            rows, columns = np.nonzero(pink)
            assert rows.mean() < 64
            assert columns.mean() > 192


def test_pixel_observations_come_as_bytes():
    backend_or_skip()
    with VectorEnv(EnvSpec("visual-cube-single-singletask-v0", frames=3), 1, workers=1, render=True) as env:
        observations = env.reset([0], [0])
        assert observations.shape == (1, 3, 64, 64, 3)
        assert observations.dtype == np.uint8
        assert observations.std() > 5


def test_a_backend_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert choose_backend() == "glfw"


def test_no_backend_names_the_packages_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("mfrl.envs.rendering._renders", lambda _: False)
    with pytest.raises(EnvError, match="libosmesa6"):
        choose_backend()
