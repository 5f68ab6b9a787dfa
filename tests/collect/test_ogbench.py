"""Scripted collection: OGBench's format and procedure, determinism, and what happens to files."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from mfrl.catalogue import generation_settings
from mfrl.collect.ogbench import workers
from mfrl.collect.ogbench.episode import episode_rng
from mfrl.collect.ogbench.manipspace import ManipspaceCollector, cube_stays_visible
from mfrl.collect.ogbench.maze import MazeCollector
from mfrl.collect.ogbench.runner import collect
from mfrl.data import ogbench_files, records
from mfrl.errors import CollectError

MAZE = "pointmaze-medium-explore-v0"
TINY = {"episodes": 2, "episode_steps": 21, "workers": 1, "progress": False}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {field: file[field] for field in file}


def maze_collector(dataset: str, **changes) -> MazeCollector:
    return MazeCollector(dataclasses.replace(generation_settings(dataset), **changes))


# Published settings


@pytest.mark.parametrize(
    ("dataset", "episodes", "steps", "noise", "p_random"),
    [
        ("pointmaze-medium-navigate-v0", 1000, 1001, 0.5, 0.0),
        ("pointmaze-giant-navigate-v0", 500, 2001, 0.5, 0.0),
        ("pointmaze-teleport-stitch-v0", 5000, 201, 0.5, 0.0),
        ("pointmaze-large-explore-v0", 400, 501, 0.5, 0.0),
        ("cube-single-play-v0", 1000, 1001, 0.1, 0.0),
        ("cube-triple-noisy-v0", 3000, 1001, 0.1, 0.1),
        ("cube-quadruple-play-v0", 5000, 1001, 0.1, 0.0),
        ("scene-noisy-v0", 1000, 1001, 0.1, 0.1),
        ("puzzle-4x4-noisy-v0", 1000, 1001, 0.1, 0.2),
        ("puzzle-4x5-play-v0", 3000, 1001, 0.1, 0.0),
        ("puzzle-4x6-noisy-v0", 5000, 1001, 0.1, 0.2),
    ],
)
def test_defaults_are_the_published_settings(dataset, episodes, steps, noise, p_random):
    s = generation_settings(dataset)
    assert (s.episodes, s.episode_steps, s.noise, s.p_random_action) == (episodes, steps, noise, p_random)
    assert s.val_episodes == episodes // 10


def test_stacking_probabilities_are_the_published_ranges():
    ranges = [generation_settings(f"cube-{n}-play").p_stack for n in ("single", "double", "triple", "quadruple")]
    assert ranges == [(0.0, 0.0), (0.0, 0.25), (0.05, 0.35), (0.1, 0.5)]


def test_the_version_suffix_may_be_left_out():
    assert generation_settings("scene-play") is generation_settings("scene-play-v0")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(CollectError, match=r"Did you mean .*cube-double-play-v0"):
        generation_settings("cube-duoble-play-v0")


@pytest.mark.parametrize(
    "dataset", ["visual-humanoidmaze-large-navigate-v0", "humanoidmaze-giant-stitch-v0", "antsoccer-arena-stitch"]
)
def test_trained_policies_name_the_files_and_where_they_go(dataset, tmp_path):
    with pytest.raises(CollectError, match="no scripted policy") as error:
        collect(dataset, tmp_path / "data")
    name = dataset.removesuffix("-v0") + "-v0"
    for part in (f"{name}.npz", f"{name}-val.npz", "https://rail.eecs.berkeley.edu/datasets/ogbench"):
        assert part in str(error.value)
    assert str(tmp_path / "data") in str(error.value)


@pytest.mark.parametrize(
    "bad", [{"episodes": 0}, {"episode_steps": 1}, {"noise": float("nan")}, {"workers": 0}, {"seed": -1}]
)
def test_settings_that_make_no_dataset_are_refused(bad, tmp_path):
    with pytest.raises(CollectError, match=next(iter(bad))):
        collect(MAZE, tmp_path, **(TINY | bad))
    assert tree(tmp_path) == {}


def test_importing_loads_no_simulator_and_no_torch():
    code = "import sys, mfrl.collect; print({'ogbench', 'mujoco', 'gymnasium', 'torch'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# Format


FORMAT = {
    "pointmaze-medium-navigate-v0": (2, 2, 2, None),
    "pointmaze-teleport-stitch-v0": (2, 2, 2, None),
    "pointmaze-medium-explore-v0": (2, 2, 2, None),
    "cube-single-play-v0": (28, 5, 21, None),
    "cube-double-noisy-v0": (37, 5, 28, None),
    "scene-play-v0": (40, 5, 25, 2),
    "puzzle-3x3-noisy-v0": (55, 5, 23, 9),
}


@pytest.fixture(scope="module", params=FORMAT)
def collected(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return request.param, collect(request.param, folder, **(TINY | {"episodes": 3, "episode_steps": 31}))


def test_fields_and_dtypes_are_those_of_ogbench_files(collected):
    dataset, result = collected
    ob_dim, action_dim, qpos_dim, buttons = FORMAT[dataset]
    for path, episodes in ((result.train_path, 3), (result.val_path, 1)):
        data, rows = arrays(path), episodes * 31
        expected = {
            "observations": ((rows, ob_dim), np.float32),
            "actions": ((rows, action_dim), np.float32),
            "terminals": ((rows,), np.bool_),
            "qpos": ((rows, qpos_dim), np.float32),
            "qvel": (data["qvel"].shape, np.float32),
        }
        if buttons:
            expected["button_states"] = ((rows, buttons), np.int64)
        assert {k: (v.shape, v.dtype) for k, v in data.items()} == expected
        np.testing.assert_array_equal(np.flatnonzero(data["terminals"]), np.arange(30, rows, 31))
        assert np.abs(data["actions"]).max() <= 1
        assert all(np.isfinite(values).all() for values in data.values())
    assert result.transitions == 3 * 30


def test_ogbench_loads_it_goal_conditioned_and_as_a_single_task(collected):
    import ogbench

    dataset, result = collected
    _, train, val = ogbench.make_env_and_datasets(dataset, dataset_path=str(result.train_path))
    assert len(train["observations"]) == result.transitions
    assert len(val["observations"]) == 30
    np.testing.assert_array_equal(train["next_observations"][:29], train["observations"][1:30])

    single_task = dataset.replace("-v0", "-singletask-task2-v0")
    env, train, _ = ogbench.make_env_and_datasets(single_task, dataset_path=str(result.train_path), add_info=True)
    simulator = env.unwrapped
    for i in (
        0,
        29,
        45,
        89,
    ):  # The rewards read off the file are those the simulator gives in the same state.
        qpos, qvel = train["qpos"][i].astype(float), train["qvel"][i].astype(float)
        if dataset.startswith("pointmaze"):
            simulator.set_state(qpos, qvel)
            reward = float(simulator.compute_success()) - 1.0
        else:
            buttons = [train["button_states"][i]] if "button_states" in train else []
            simulator.set_state(qpos, qvel, *buttons)
            reward = simulator.compute_reward()
        assert train["rewards"][i] == reward


def test_val_is_not_train(collected):
    _, result = collected
    train, val = arrays(result.train_path), arrays(result.val_path)
    assert not np.array_equal(train["observations"][:31], val["observations"])


# OGBench's procedure


def test_explore_keeps_a_random_direction_for_ten_steps():
    collector = maze_collector(MAZE, noise=0.0, episode_steps=101)
    actions = collector.episode(episode_rng(0, "train", 0))["actions"][:100].reshape(10, 10, 2)
    assert (actions == actions[:, :1]).all()
    np.testing.assert_allclose(np.linalg.norm(actions[:, 0], axis=-1), 1.0, atol=1e-5)
    assert len(np.unique(actions[:, 0], axis=0)) == 10


def test_action_noise_is_gaussian_around_the_oracle_direction(monkeypatch):
    collector = maze_collector("pointmaze-medium-navigate", noise=0.1, episode_steps=1001)
    oracle, subgoals = collector._subgoal, []
    monkeypatch.setattr(collector, "_subgoal", lambda: subgoals.append(oracle()) or subgoals[-1])
    episode = collector.episode(episode_rng(0, "train", 0))
    towards = np.array(subgoals) - episode["observations"]
    direction = towards / np.linalg.norm(towards, axis=-1, keepdims=True)
    # Steps whose direction leaves five deviations to the limits, so that clipping plays no part.
    noise = (episode["actions"] - direction)[np.abs(direction) < 0.5]
    assert len(noise) > 500
    assert noise.mean() == pytest.approx(0.0, abs=4 * 0.1 / len(noise) ** 0.5)
    assert noise.std() == pytest.approx(0.1, rel=0.1)


def test_subgoals_are_the_environments_own():
    collector = maze_collector("pointmaze-giant-navigate")
    maze, rng = collector._maze, np.random.default_rng(0)
    for _ in range(100):
        start, goal = (collector._free_cells[i] for i in rng.integers(len(collector._free_cells), size=2))
        maze.set_xy(np.array(maze.ij_to_xy(start)) + rng.uniform(-1, 1, 2))
        maze.cur_goal_xy = maze.ij_to_xy(goal)
        for _ in range(2):  # The second answer is a remembered one.
            subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
            np.testing.assert_array_equal(collector._subgoal(), subgoal)


def test_navigate_draws_a_new_goal_exactly_when_one_is_reached(monkeypatch):
    collector = maze_collector("pointmaze-medium-navigate", episode_steps=1001)
    maze, step, goals = collector._maze, collector._env.step, []

    def spying_step(action):
        goals.append(np.array(maze.cur_goal_xy))
        return step(action)

    monkeypatch.setattr(collector._env, "step", spying_step)
    positions = collector.episode(episode_rng(0, "train", 0))["observations"]
    reached = np.linalg.norm(positions[1:] - np.array(goals)[:-1], axis=-1) <= maze._goal_tol
    changed = (np.array(goals)[1:] != np.array(goals)[:-1]).any(axis=-1)
    assert reached.sum() >= 3
    np.testing.assert_array_equal(reached, changed)
    assert {maze.xy_to_ij(goal) for goal in goals} <= set(collector._goal_cells)


def test_goal_cells_leave_out_straight_corridors():
    collector = maze_collector("pointmaze-medium-navigate")
    assert (2, 1) in collector._goal_cells  # A corner.
    assert (5, 1) in collector._free_cells  # Walls left and right, free above and below.
    assert (5, 1) not in collector._goal_cells


def test_stitch_goes_four_cells_and_stays():
    collector = maze_collector("pointmaze-medium-stitch")
    maze, displacements = collector._maze, []
    for index in range(5):
        positions = collector.episode(episode_rng(0, "train", index))["observations"]
        goal = np.array(maze.cur_goal_xy)
        _, distances = maze.get_oracle_subgoal(positions[0], positions[0])
        assert distances[maze.xy_to_ij(goal)] == 4
        # It stays within the goal's cell, four units wide, for the rest of the episode.
        assert np.abs(positions[-20:] - np.array(maze.ij_to_xy(maze.xy_to_ij(goal)))).max() < 3
        displacements.append(np.linalg.norm(positions[-1] - positions[0]))
    assert max(displacements) > 8


def test_play_moves_the_cube_to_its_targets():
    collector = ManipspaceCollector(dataclasses.replace(generation_settings("cube-single-play"), episode_steps=301))
    cube = collector.episode(episode_rng(0, "train", 0))["qpos"][:, 14:17]
    assert cube[:, 2].max() > 0.1  # Lifted, in metres; it rests at 0.02.
    assert np.linalg.norm(cube[-1, :2] - cube[0, :2]) > 0.05


def test_an_episode_keeps_one_stacking_probability_from_the_published_range(monkeypatch):
    collector = ManipspaceCollector(dataclasses.replace(generation_settings("cube-double-noisy"), episode_steps=301))
    simulator, drawn = collector._env.unwrapped, []
    original = simulator.set_new_target

    def spy(return_info=True, p_stack=None):
        if p_stack is not None:
            drawn.append(p_stack)
        return original(return_info=return_info, p_stack=0.5 if p_stack is None else p_stack)

    monkeypatch.setattr(simulator, "set_new_target", spy)
    collector.episode(episode_rng(0, "train", 1))
    assert len(drawn) >= 1
    assert len(set(drawn)) == 1
    assert 0.0 <= drawn[0] <= 0.25


def test_a_noisy_episode_has_its_own_noise_level_and_random_actions():
    quiet = dataclasses.replace(
        generation_settings("puzzle-3x3-noisy"), episode_steps=61, noise=0.0, p_random_action=0.0
    )
    gripper = {}
    for name, settings, episodes in (
        ("oracle", quiet, 1),
        ("noisy", dataclasses.replace(quiet, noise=0.1), 6),
        ("random", dataclasses.replace(quiet, p_random_action=1.0), 4),
    ):
        collector = ManipspaceCollector(settings)
        gripper[name] = [collector.episode(episode_rng(0, "train", i))["actions"][:, 4] for i in range(episodes)]
    assert all((g == 1.0).all() for g in gripper["oracle"])  # A puzzle's gripper stays closed.
    # The gripper's noise is N(0, (10 xi)^2), xi ~ U(0, 0.1), of which the clip at 1 leaves the negative half:
    # its mean, 10 xi / sqrt(2 pi), gives each episode's level away.
    levels = [(1.0 - g).mean() * (2 * np.pi) ** 0.5 for g in gripper["noisy"]]
    assert 0.0 < min(levels) < 0.5 < max(levels) < 1.2
    uniform = np.concatenate(gripper["random"])
    assert abs(uniform.mean()) < 0.15
    assert uniform.std() == pytest.approx(1 / 3**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("y", "z", "healthy"),
    [(0.0, 0.02, True), (0.29, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True), (-0.31, 0.1, False)],
)
def test_scene_health_check_keeps_the_cube_in_sight(y, z, healthy):
    qpos = np.zeros((5, 25))
    qpos[3, 15:17] = y, z
    assert cube_stays_visible(qpos) == healthy


def test_an_unhealthy_scene_episode_is_retried(monkeypatch):
    verdicts = iter([False, False, True])
    monkeypatch.setattr("mfrl.collect.ogbench.manipspace.cube_stays_visible", lambda _: next(verdicts))
    collector = ManipspaceCollector(dataclasses.replace(generation_settings("scene-play"), episode_steps=6))
    assert len(collector.episode(episode_rng(0, "train", 0))["observations"]) == 6
    assert next(verdicts, None) is None


# Determinism


@pytest.mark.parametrize(
    "dataset", ["pointmaze-teleport-navigate", pytest.param("scene-noisy", marks=pytest.mark.slow)]
)
def test_data_do_not_depend_on_the_number_of_workers(dataset, tmp_path):
    options = TINY | {"episodes": 3, "episode_steps": 51}
    alone = collect(dataset, tmp_path / "1", **options)
    pooled = collect(dataset, tmp_path / "2", **(options | {"workers": 2}))
    assert alone.provenance["files"] == pooled.provenance["files"]


@pytest.mark.parametrize("dataset", ["pointmaze-teleport-navigate", "scene-noisy"])
def test_an_episode_does_not_depend_on_those_before_it(dataset):
    # Long enough that the scene's drawer and window, which OGBench's reset does not restore, get new targets.
    settings = dataclasses.replace(generation_settings(dataset), episode_steps=301)
    first, second = workers._make_collector(settings), workers._make_collector(settings)
    forward = [first.episode(episode_rng(0, "train", i)) for i in (0, 1)]
    backward = [second.episode(episode_rng(0, "train", i)) for i in (1, 0)][::-1]
    for one, other in zip(forward, backward, strict=True):
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])


def test_seed_changes_the_data_and_repeats_them(tmp_path):
    same = [collect(MAZE, tmp_path / name, **TINY, seed=3).provenance["files"] for name in "ab"]
    other = collect(MAZE, tmp_path / "c", **TINY, seed=4).provenance["files"]
    assert same[0] == same[1]
    assert same[0] != other


def test_the_callers_random_state_is_left_alone(tmp_path):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    collect(MAZE, tmp_path, **TINY)
    assert np.random.rand() == expected  # noqa: NPY002


# Files


def test_record_describes_the_files(tmp_path):
    result = collect(MAZE, tmp_path, **TINY, seed=7)
    record = records.read(ogbench_files.record_path(tmp_path, MAZE), MAZE)
    assert record == json.loads(json.dumps(result.provenance))
    assert (record["source"], record["seed"], record["episodes"], record["noise"]) == ("collected", 7, 2, 0.5)
    assert {record["versions"][p] is not None for p in ("ogbench", "mujoco", "numpy")} == {True}
    for path in (result.train_path, result.val_path):
        assert record["files"][path.name] == {"sha256": records.sha256(path), "bytes": path.stat().st_size}
    assert sorted(tree(tmp_path)) == sorted([*record["files"], f"{MAZE}.provenance.json"])
    assert ogbench_files.describe(tmp_path, MAZE) == record


def test_existing_files_stay_unless_asked(tmp_path):
    collect(MAZE, tmp_path, **TINY)
    before = tree(tmp_path)
    with pytest.raises(CollectError, match=r"already in .*overwrite=true"):
        collect(MAZE, tmp_path, **TINY, seed=1)
    assert tree(tmp_path) == before
    collect(MAZE, tmp_path, **TINY, seed=1, overwrite=True)
    assert ogbench_files.describe(tmp_path, MAZE)["seed"] == 1
    assert sorted(tree(tmp_path)) == sorted(before)


def test_files_without_our_record_are_never_overwritten(tmp_path):
    (tmp_path / f"{MAZE}-val.npz").write_bytes(b"an official download")
    before = tree(tmp_path)
    with pytest.raises(CollectError, match=r"no mfrl record beside it.*Move it away yourself"):
        collect(MAZE, tmp_path, **TINY, overwrite=True)
    assert tree(tmp_path) == before
    assert ogbench_files.describe(tmp_path, MAZE)["source"] == "unrecorded"


def test_a_record_does_not_cover_files_it_was_not_written_for(tmp_path):
    result = collect(MAZE, tmp_path, **TINY)
    result.train_path.write_bytes(b"downloaded over ours")
    assert ogbench_files.describe(tmp_path, MAZE)["source"] == "unrecorded"
    with pytest.raises(CollectError, match=f"record beside it is not of these files .{MAZE}.npz"):
        collect(MAZE, tmp_path, **TINY, overwrite=True)


def test_a_corrupt_record_is_named_and_blocks_overwriting(tmp_path):
    collect(MAZE, tmp_path, **TINY)
    path = ogbench_files.record_path(tmp_path, MAZE)
    path.write_text("{")
    with pytest.raises(records.ProvenanceError, match=path.name):
        records.read(ogbench_files.record_path(tmp_path, MAZE), MAZE)
    with pytest.raises(CollectError, match=path.name):
        collect(MAZE, tmp_path, **TINY, overwrite=True)


def _full_disk_at_the_second_file(monkeypatch):
    save, calls = np.savez_compressed, []

    def failing(file, **data):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, **data)

    monkeypatch.setattr(np, "savez_compressed", failing)


def _no_rename_of_the_training_file(monkeypatch):
    replace = os.replace

    def failing(source, target):
        if Path(target).name == Path(source).name == f"{MAZE}.npz":
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize("break_it", [_full_disk_at_the_second_file, _no_rename_of_the_training_file])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failed_write_leaves_the_files_as_they_were_and_keeps_the_episodes(
    break_it, replacing, monkeypatch, tmp_path
):
    if replacing:
        collect(MAZE, tmp_path, **TINY)
    before = tree(tmp_path)
    with monkeypatch.context() as broken:
        break_it(broken)
        with pytest.raises(CollectError, match=r"Cannot write the dataset.*(No space|Permission denied)"):
            collect(MAZE, tmp_path, **TINY, seed=1, overwrite=replacing)
    (kept,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != kept} == before
    monkeypatch.setattr(MazeCollector, "episode", lambda *_: pytest.fail("simulated"))
    collect(MAZE, tmp_path, **TINY, seed=1, overwrite=replacing)
    assert sorted(tree(tmp_path)) == sorted([f"{MAZE}.npz", f"{MAZE}-val.npz", f"{MAZE}.provenance.json"])


def test_an_interrupted_simulation_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MazeCollector, "episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(MAZE, tmp_path, **TINY)
    assert tree(tmp_path) == {}


def test_a_failing_episode_is_named(monkeypatch, tmp_path):
    def failing(*_):
        raise ValueError("the simulator said no")

    monkeypatch.setattr(MazeCollector, "episode", failing)
    with pytest.raises(CollectError, match=r"Episode 0 of the train split failed.*the simulator said no"):
        collect(MAZE, tmp_path, **TINY)
    assert tree(tmp_path) == {}


def _die(*_):
    os._exit(1)


def test_a_dead_worker_is_reported_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_episode_in_worker", _die)
    with pytest.raises(CollectError, match="worker process died"):
        collect(MAZE, tmp_path, **(TINY | {"workers": 2}))
    assert tree(tmp_path) == {}


def test_a_worker_that_died_before_the_next_job_is_reported_too(monkeypatch, tmp_path):
    class Broken(ProcessPoolExecutor):
        def submit(self, function, *arguments, **keywords):
            if arguments[1][1] == 1:  # the second episode
                raise BrokenProcessPool("a child process terminated abruptly")
            return super().submit(function, *arguments, **keywords)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Broken)
    with pytest.raises(CollectError, match="worker process died"):
        collect(MAZE, tmp_path, **(TINY | {"workers": 2}))
    assert tree(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_reported_before_simulating(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(MazeCollector, "episode", lambda *_: pytest.fail("simulated"))
    with pytest.raises(CollectError, match="Cannot write"):
        collect(MAZE, tmp_path / "file" / "data", **TINY)


def test_too_little_room_is_reported_after_one_episode(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(CollectError, match="MB free"):
        collect(MAZE, tmp_path, **TINY)
    assert tree(tmp_path) == {}


def test_progress_prints_one_line_where_there_is_no_terminal(capfd, tmp_path):
    collect(MAZE, tmp_path, **(TINY | {"progress": True}))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert MAZE in err
    assert "/s" in err
