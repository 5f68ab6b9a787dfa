"""Collecting Minari datasets in real simulators: the controller, random actions, trained policies, and the files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from conftest import DATASET
from minari.dataset._storages.hdf5_storage import HDF5Storage
from omegaconf import OmegaConf
from tiny import compose

from mfrl.app import collect as command
from mfrl.app.collect import collect_missing
from mfrl.app.train import train
from mfrl.catalogue import MAZES
from mfrl.collect.minari.episodes import run_episode
from mfrl.collect.minari.files import check_free_to_make
from mfrl.collect.minari.policies import Uniform, Waypoints
from mfrl.collect.minari.recorder import Recorder, append, rows
from mfrl.collect.minari.runner import collect
from mfrl.collect.minari.waypoint import WaypointController
from mfrl.data.minari import MinariData
from mfrl.data.minari_files import describe
from mfrl.envs import minari as minari_envs
from mfrl.envs.spec import EnvSpec
from mfrl.errors import CheckpointError, CollectError, ConfigError, MfrlError
from mfrl.randomness import generator
from mfrl.runs.load import load_algorithm

UMAZE, PENDULUM = "mfrl/pointmaze/umaze-v0", "my/pendulum-random-v0"
TINY = {"episodes": 2, "episode_steps": 80, "reference_episodes": 0, "progress": False}
RANDOM = {"policy": "random", "gym_id": "Pendulum-v1", "episodes": 2, "episode_steps": 30, "progress": False}


@pytest.fixture(autouse=True)
def minari_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Minari's root, where nothing is given: never the developer's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "default"))
    return tmp_path / "default"


def load(root: Path, dataset: str) -> minari.MinariDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        return minari.load_dataset(dataset)


def leaves(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, dict):
        return {path: leaf for key, branch in tree.items() for path, leaf in leaves(branch, f"{name}/{key}").items()}
    return {name: np.asarray(tree)}


def arrays(root: Path, dataset: str, episode: int) -> dict[str, np.ndarray]:
    """Everything that is recorded of an episode."""
    fields = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    recorded = load(root, dataset)[episode]
    return leaves({name: getattr(recorded, name) for name in fields})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# The controller


@pytest.mark.parametrize("maze", MAZES.values(), ids=lambda maze: maze.gym_id)
def test_the_controller_reaches_its_goals_through_the_noise(maze: Any) -> None:
    env = minari_envs.make_as_recorded(minari_envs.write_spec(maze.gym_id, {"continuing_task": False}))
    lengths = [len(run_episode(env, Waypoints(env, maze.noise, 0), 0, episode)) for episode in range(12)]
    limit = env.spec.max_episode_steps
    env.close()
    assert max(lengths) < limit  # an episode ends before its limit only at the goal
    assert np.mean(lengths) < limit / 3


@pytest.mark.parametrize("maze", MAZES.values(), ids=lambda maze: maze.gym_id)
def test_cells_are_those_of_the_environment(maze: Any) -> None:
    env = minari_envs.make_as_recorded(minari_envs.write_spec(maze.gym_id))
    theirs = env.unwrapped.maze
    env.close()
    controller = WaypointController(theirs.maze_map)
    for i, row in enumerate(theirs.maze_map):
        for j in range(len(row)):
            centre = theirs.cell_rowcol_to_xy(np.array([i, j]))
            np.testing.assert_allclose(controller.centre((i, j)), centre)
            assert controller.cell(centre + np.array([0.49, -0.49])) == (i, j)


def test_the_controller_goes_around_walls_by_the_shortest_way() -> None:
    controller = WaypointController(
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    )
    start, goal, still = controller.centre((1, 1)), controller.centre((3, 1)), np.zeros(2)
    np.testing.assert_array_equal(controller.action(start, still, goal), [1.0, 0.0])
    np.testing.assert_array_equal(controller.action(controller.centre((1, 3)), still, goal), [0.0, -1.0])
    np.testing.assert_array_equal(controller.action(controller.centre((3, 3)), still, goal), [-1.0, 0.0])
    # In the goal's own cell: 10 (goal - position) - velocity, as D4RL's controller.
    near, velocity = goal + np.array([0.05, -0.02]), np.array([0.1, 0.3])
    np.testing.assert_allclose(controller.action(near, velocity, goal), [-0.6, -0.1])


# The dataset


@pytest.fixture(scope="module")
def umaze(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("minari")
    made = collect(UMAZE, root, episodes=3, episode_steps=300, reference_episodes=4, progress=False)
    assert made.path == root / UMAZE
    assert (made.episodes, made.transitions) == (3, 900)
    return root, made.provenance


def test_minari_loads_the_dataset_and_its_environments(umaze: tuple[Path, dict[str, Any]]) -> None:
    dataset = load(umaze[0], UMAZE)
    assert (dataset.total_episodes, dataset.total_steps) == (3, 900)
    env, evaluation = dataset.recover_environment(), dataset.recover_environment(eval_env=True)
    assert (env.spec.id, env.spec.max_episode_steps) == ("PointMaze_UMaze-v3", 300)
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    goals = []
    for seed in range(3):
        observation, _ = evaluation.reset(seed=seed)
        goals.append(evaluation.unwrapped.maze.cell_xy_to_rowcol(observation["desired_goal"]).tolist())
    assert goals == [[1, 1]] * 3
    env.close()
    evaluation.close()
    metadata = dataset.storage.metadata
    assert metadata["author"] == {"mfrl"}
    assert "shortest paths" in metadata["algorithm_name"]
    assert "PointMaze_UMaze-v3" in metadata["description"]
    assert metadata["num_episodes_average_score"] == 4
    # Up to 300 steps at the goal: the controller gets there soon and stays, random actions hardly ever do.
    assert 0 <= metadata["ref_min_score"] < 100 < metadata["ref_max_score"] < 300


def test_rewards_and_goals_are_those_of_a_continuing_task(umaze: tuple[Path, dict[str, Any]]) -> None:
    reached = 0
    for k, episode in enumerate(load(umaze[0], UMAZE).iterate_episodes()):
        achieved, goals = episode.observations["achieved_goal"], episode.observations["desired_goal"]
        there = np.linalg.norm(achieved[1:] - goals[:-1], axis=1) <= 0.45  # the environment's radius
        np.testing.assert_array_equal(episode.rewards, there)
        np.testing.assert_array_equal(episode.infos["success"][1:], there)
        np.testing.assert_array_equal(there, (goals[1:] != goals[:-1]).any(axis=1))  # a new one at once
        np.testing.assert_array_equal(episode.infos["goal"], goals)
        assert not episode.terminations.any()
        np.testing.assert_array_equal(np.flatnonzero(episode.truncations), [299])
        assert np.abs(episode.actions).max() <= 1.0, k
        reached += there.sum()
    assert reached >= 6


def test_recorded_states_and_actions_give_the_recorded_rows_again(umaze: tuple[Path, dict[str, Any]]) -> None:
    episode = load(umaze[0], UMAZE)[1]
    env = minari_envs.make_as_recorded(minari_envs.write_spec("PointMaze_UMaze-v3"))
    env.reset(seed=0)
    core = env.unwrapped
    for t in (0, 100, int(np.flatnonzero(episode.rewards)[0]), 298):
        core.point_env.set_state(episode.infos["qpos"][t], episode.infos["qvel"][t])
        core.goal = episode.infos["goal"][t]
        observation, reward, *_ = env.unwrapped.step(episode.actions[t])
        np.testing.assert_allclose(observation["observation"], episode.observations["observation"][t + 1], atol=1e-9)
        assert reward == episode.rewards[t]
    env.close()


def test_the_record_speaks_for_exactly_these_files(umaze: tuple[Path, dict[str, Any]]) -> None:
    root, record = umaze
    assert json.loads((root / UMAZE / "provenance.json").read_text()) == record == describe(root, UMAZE)
    assert record["source"] == "collected"
    assert record["generator"]["function"] == "mfrl.collect.minari.runner.collect"
    settings = {"seed": 0, "policy": "controller", "env_id": "PointMaze_UMaze-v3", "episode_steps": 300, "noise": 0.5}
    assert record | settings | {"episodes": 3, "transitions": 900} == record
    assert {"data/main_data.hdf5", "data/metadata.json"} == set(record["files"])
    assert {"minari", "mujoco", "gymnasium-robotics"} <= set(record["versions"])


def test_noise_is_gaussian_around_the_controllers_force(tmp_path: Path) -> None:
    collect(UMAZE, tmp_path, **TINY | {"episode_steps": 1000, "noise": 0.1})
    episode = load(tmp_path, UMAZE)[0]
    controller = WaypointController(
        minari_envs.read_spec(minari_envs.write_spec("PointMaze_UMaze-v3")).kwargs["maze_map"]
    )
    states = zip(episode.infos["qpos"][:-1], episode.infos["qvel"][:-1], episode.infos["goal"][:-1], strict=True)
    forces = np.array([controller.action(*state) for state in states])
    noise = (episode.actions - forces)[np.abs(forces) < 0.5]  # five deviations from the limits: no clipping
    assert len(noise) > 300
    assert noise.mean() == pytest.approx(0.0, abs=4 * 0.1 / len(noise) ** 0.5)
    assert noise.std() == pytest.approx(0.1, rel=0.12)


def test_rows_are_copies_for_environments_may_reuse_their_arrays() -> None:
    buffer = np.zeros(2)
    observation = {"a": buffer, "b": (buffer[:1],)}
    series = rows(observation)
    for value in (1.0, 2.0):
        buffer[:] = value
        append(series, observation)
    np.testing.assert_array_equal(series["a"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(series["b"][0], [[0], [1], [2]])


def test_a_training_run_collects_what_is_missing(tmp_path: Path) -> None:
    data = MinariData(UMAZE, str(tmp_path), observation_keys=["observation", "desired_goal"])
    collect_missing(OmegaConf.create({"env": {"suite": "minari"}, "collect": TINY}), data)
    data.setup()
    assert data.train is not None
    assert (data.spec.observation_dim, data.spec.action_dim) == (6, 2)
    assert data.provenance()["source"] == "collected"


# Reproducible


@pytest.mark.parametrize(("dataset", "settings"), [(UMAZE, TINY), (PENDULUM, RANDOM)], ids=["controller", "random"])
def test_the_data_depend_on_settings_and_seed_only(dataset: str, settings: dict[str, Any], tmp_path: Path) -> None:
    runs = {"a": {"seed": 3}, "b": {"seed": 3, "episodes": 3}, "c": {"seed": 4}}
    for name, changes in runs.items():
        np.random.seed(len(name))  # noqa: NPY002 - the caller's own stream plays no part
        collect(dataset, tmp_path / name, **settings | changes)
    for episode in range(2):  # the same with another number of episodes
        assert same(*(arrays(tmp_path / name, dataset, episode) for name in "ab"))
        assert not same(*(arrays(tmp_path / name, dataset, episode) for name in "ac"))
    assert not same(arrays(tmp_path / "a", dataset, 0), arrays(tmp_path / "a", dataset, 1))


def test_an_episode_does_not_depend_on_those_before_it() -> None:
    for spec in (EnvSpec("pointmaze-teleport-singletask-v0"), minari_spec("AntMaze_UMaze-v4")):
        env = spec.make()
        behaviour = Uniform(env.action_space, 0)
        forward = [sums(env, behaviour, k) for k in range(3)]
        assert [sums(env, behaviour, k) for k in (2, 1, 0)] == forward[::-1]
        env.close()


def minari_spec(gym_id: str) -> EnvSpec:
    return EnvSpec(gym_id, "minari", gym_spec=minari_envs.write_spec(gym_id))


def sums(env: Any, behaviour: Any, episode: int) -> float:
    """A number that every observation of an episode goes into."""
    seen: list[float] = []
    act = behaviour.action
    behaviour.action = lambda observation: seen.append(float(np.abs(observation).sum())) or act(observation)
    try:
        run_episode(env, behaviour, 0, episode, max_steps=40)
    finally:
        behaviour.action = act
    return float(np.sum(seen))


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.rand(4)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    collect(PENDULUM, tmp_path, **RANDOM)
    np.testing.assert_array_equal(np.random.rand(4), expected)  # noqa: NPY002


def test_steps_cut_the_last_episode(tmp_path: Path) -> None:
    made = collect(PENDULUM, tmp_path / "steps", **RANDOM | {"episodes": None, "steps": 70})
    collect(PENDULUM, tmp_path / "episodes", **RANDOM | {"episodes": 3})
    episodes = list(load(tmp_path / "steps", PENDULUM).iterate_episodes())
    assert [len(episode) for episode in episodes] == [30, 30, 10]
    assert (made.episodes, made.transitions) == (3, 70)
    assert episodes[-1].truncations[-1]  # cut, not ended
    whole = arrays(tmp_path / "episodes", PENDULUM, 2)["/actions"]
    np.testing.assert_array_equal(episodes[-1].actions, whole[:10])


# Random actions in any environment


@pytest.mark.parametrize("gym_id", ["Pendulum-v1", "AdroitHandPen-v1", "AdroitHandDoor-v1", "AntMaze_UMaze-v4"])
def test_random_actions_fill_the_bounds_of_any_environment(gym_id: str, tmp_path: Path) -> None:
    name = f"mfrl/{gym_id.lower()}"
    collect(name, tmp_path, **RANDOM | {"gym_id": gym_id, "steps": 120, "episodes": None, "episode_steps": 50})
    dataset = load(tmp_path, name)
    env = dataset.recover_environment()
    assert dataset.observation_space == env.observation_space
    assert dataset.action_space == env.action_space
    env.close()
    bound = float(dataset.action_space.high[0])
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    assert (np.abs(actions) <= bound).all()
    assert actions.max() > 0.9 * bound > -0.9 * bound > actions.min()
    assert actions.mean() == pytest.approx(0.0, abs=4 * bound / (3 * actions.size) ** 0.5)
    data = MinariData(name, str(tmp_path))
    data.setup()
    assert len(data.train) + (0 if data.val is None else len(data.val)) == 120


@pytest.mark.parametrize("task", ["Pen", "Door", "Hammer", "Relocate"])
def test_adroits_state_is_recorded_so_that_it_can_be_set_again(task: str, tmp_path: Path) -> None:
    collect("mfrl/hand-v0", tmp_path, **RANDOM | {"gym_id": f"AdroitHand{task}-v1"})
    episode = load(tmp_path, "mfrl/hand-v0")[1]
    env = minari_envs.make_as_recorded(minari_envs.write_spec(f"AdroitHand{task}-v1"))
    env.reset(seed=0)  # another pen and target, door, board, ball
    core = env.unwrapped
    for k in (10, 20):
        core.set_env_state({name: episode.infos[name][k] for name in core._state_space.spaces})
        observation, reward, *_ = core.step(episode.actions[k])
        np.testing.assert_allclose(observation, episode.observations[k + 1], atol=1e-9)
        assert reward == pytest.approx(episode.rewards[k], abs=1e-9)
    env.close()


def test_ogbenchs_environments_are_recorded_with_their_rewards(tmp_path: Path) -> None:
    env = EnvSpec("cube-single-singletask-v0")
    collect("mfrl/cube-v0", tmp_path, policy="random", env=env, steps=30, progress=False)
    recorded = load(tmp_path, "mfrl/cube-v0")[0]
    assert set(np.unique(recorded.rewards)) <= {-1.0, 0.0}
    assert recorded.infos["qpos"].shape == (31, 21)
    data = MinariData("mfrl/cube-v0", str(tmp_path))
    data.setup()
    assert data.env.make().spec.id == "cube-single-singletask-v0"


# Trained policies


SMALL = [
    "experiment=quickstart",
    "collect=null",
    "network.actor.width=16",
    "network.critic.hidden=[16]",
    "batch_size=8",
    "updates=4",
    "eval.every=4",
    "eval.episodes=1",
    "eval.num_envs=1",
    "eval.workers=0",
    "accelerator=cpu",
]


def trained(run_dir: Path, data_dir: Path, *overrides: str) -> Path:
    changes = [*SMALL, f"data_dir={data_dir}", f"run_dir={run_dir}", *overrides]
    train(compose("train", *changes), changes)
    return run_dir


@pytest.fixture(scope="module")
def ogbench_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "ogbench", data_dir, f"env=ogbench/{DATASET}")


def test_a_trained_policy_acts_as_it_does_in_evaluation(ogbench_run: Path, tmp_path: Path) -> None:
    dataset = "mfrl/trained-v0"
    made = collect(
        dataset, tmp_path, policy=f"ckpt:{ogbench_run}", episodes=2, episode_steps=20, seed=5, progress=False
    )
    policy = load_algorithm(ogbench_run)[0].policy()
    for episode in range(2):
        recorded = load(tmp_path, dataset)[episode]
        noise = generator(5, "collection policy", episode)
        for observation, action in zip(recorded.observations, recorded.actions, strict=False):
            e = policy.sample_noise((policy.num_candidates, 1, policy.action_dim), noise)
            with torch.no_grad():
                expected = policy.act(torch.from_numpy(observation).float()[None], e)[0]
            np.testing.assert_allclose(action, expected, atol=1e-6)
    assert made.provenance["policy"]["trained_on"] == f"{DATASET}-v0"
    assert made.provenance["policy"]["updates"] == 4
    assert made.provenance["env_id"] == "pointmaze-medium-singletask-v0"
    env = load(tmp_path, dataset).recover_environment(eval_env=True)
    assert (env.spec.id, env.spec.max_episode_steps) == ("pointmaze-medium-singletask-v0", 1000)
    env.close()


def test_noise_is_added_to_a_trained_policy_and_repeats(ogbench_run: Path, tmp_path: Path) -> None:
    settings = {"policy": f"ckpt:{ogbench_run}", "episodes": 1, "episode_steps": 20, "progress": False}
    for name, noise in {"plain": None, "noisy": 0.3, "again": 0.3}.items():
        collect("mfrl/x-v0", tmp_path / name, **settings, noise=noise)
    plain, noisy, again = (arrays(tmp_path / name, "mfrl/x-v0", 0) for name in ("plain", "noisy", "again"))
    assert same(noisy, again)
    first = np.abs(noisy["/actions"][0] - plain["/actions"][0])  # later ones answer to other observations
    assert 0.0 < first.max() < 1.5
    assert np.abs(noisy["/actions"]).max() <= 1.0


def test_a_policy_of_a_minari_environment_acts_in_its_own_bounds(tmp_path: Path) -> None:
    collect(PENDULUM, tmp_path, **RANDOM)
    run = trained(tmp_path / "run", tmp_path, "env=minari/dataset", f"env.dataset={PENDULUM}")
    collect("my/trained-v0", tmp_path, policy=f"ckpt:{run}", steps=60, noise=1.0, progress=False)
    actions = load(tmp_path, "my/trained-v0")[0].actions
    assert 1.0 < np.abs(actions).max() <= 2.0  # a pendulum's torque
    # A dictionary stays a dictionary, though the policy takes a vector of part of it.
    collect(UMAZE, tmp_path, **TINY)
    run = trained(tmp_path / "maze", tmp_path, "env=minari/pointmaze-umaze")
    collect("my/maze-v0", tmp_path, policy=f"ckpt:{run}", steps=20, progress=False)
    assert set(load(tmp_path, "my/maze-v0")[0].observations) == {"observation", "achieved_goal", "desired_goal"}


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gym_id": "CartPole-v1"}, "policies here need a vector of continuous actions"),
        ({"gym_id": "Pendulun-v1"}, "did you mean Pendulum-v1"),
        ({"gym_id": None}, "policy=random needs an environment"),
        ({"policy": None}, "nobody to act"),
        ({"policy": None, "gym_id": None}, "no controller that collects my/pendulum-random-v0"),
        ({"policy": "rondom"}, "policy=rondom is unknown"),
        ({"policy": "ckpt:x"}, "brings the environment"),
        ({"noise": 0.5}, "noise is no setting of policy=random"),
        ({"reference_episodes": 3}, "reference_episodes is a setting of the point mazes"),
        ({"steps": 3}, "both say how much"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1, got 0"),
        ({"episodes": True}, "episodes must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"policy": "ckpt:x", "gym_id": None, "noise": float("nan")}, "noise must be at least 0"),
        ({"gym_id": None, "env": EnvSpec("visual-cube-single-singletask-v0")}, "observes images"),
    ],
)
def test_settings_that_make_no_dataset_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MfrlError, match=message):
        collect(PENDULUM, tmp_path, **RANDOM | changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "dataset",
    [
        "../x-v0",
        "/tmp/x-v0",
        "a/../../x-v0",
        "mfrl/./x-v0",
        "mfrl//x-v0",
        "x",
        "mfrl/x",
        "a\\x-v0",
        "mfrl/x-v0\n",
        "-v0/",
    ],
)
def test_ids_that_lead_elsewhere_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(MfrlError, match="is no Minari dataset"):
        collect(dataset, tmp_path / "root", **RANDOM)
    assert list(tmp_path.iterdir()) == []


def test_a_namespace_that_minari_refuses_is_refused_before_simulating() -> None:
    with pytest.raises(CollectError, match="at least two characters"):
        check_free_to_make("a/x-v0")


@pytest.mark.parametrize("dataset", ["D4RL/pen/human-v2", "d4rl/mine-v0", "mujoco/hopper/mine-v0"])
def test_what_is_collected_never_passes_for_a_published_dataset(dataset: str) -> None:
    with pytest.raises(CollectError, match="namespace of published datasets"):
        check_free_to_make(dataset)


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="did you mean mfrl/pointmaze/umaze-v0"):
        collect("mfrl/pointmaze/umazes-v0", tmp_path, **TINY)


def test_an_environment_without_a_time_limit_needs_one(tmp_path: Path) -> None:
    import gymnasium
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    gymnasium.register("EndlessPendulum-v0", entry_point=f"{PendulumEnv.__module__}:PendulumEnv")
    try:
        with pytest.raises(CollectError, match="has no time limit"):
            collect(PENDULUM, tmp_path, **RANDOM | {"gym_id": "EndlessPendulum-v0", "episode_steps": None})
        assert collect(PENDULUM, tmp_path, **RANDOM | {"gym_id": "EndlessPendulum-v0"}).transitions == 60
    finally:
        del gymnasium.registry["EndlessPendulum-v0"]


# Files


def test_where_nothing_is_given_minaris_own_folder_is_taken(minari_root: Path) -> None:
    assert collect(PENDULUM, **RANDOM).path == minari_root / PENDULUM
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_root)
    assert minari.list_local_datasets().keys() == {PENDULUM}
    assert sorted(path.name for path in minari_root.iterdir()) == ["my"]


def test_an_existing_dataset_is_replaced_only_if_it_is_ours_and_asked_for(tmp_path: Path) -> None:
    collect(PENDULUM, tmp_path, **RANDOM)
    before = tree(tmp_path)
    with pytest.raises(CollectError, match="overwrite=true"):
        collect(PENDULUM, tmp_path, **RANDOM, seed=1)
    assert tree(tmp_path) == before
    made = collect(PENDULUM, tmp_path, **RANDOM, seed=1, overwrite=True)
    assert made.provenance["seed"] == 1 == describe(tmp_path, PENDULUM)["seed"]
    assert tree(tmp_path).keys() == before.keys()


def _no_record(folder: Path) -> None:
    (folder / "provenance.json").unlink()


def _changed(folder: Path) -> None:
    with (folder / "data" / "main_data.hdf5").open("ab") as file:
        file.write(b"x")


def _official(folder: Path) -> None:
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | {"source": "official"}))


def _damaged(folder: Path) -> None:
    (folder / "provenance.json").write_text("{")


@pytest.mark.parametrize("change", [_no_record, _changed, _official, _damaged])
def test_what_is_not_ours_is_never_overwritten(change: Any, tmp_path: Path) -> None:
    collect(PENDULUM, tmp_path, **RANDOM)
    change(tmp_path / PENDULUM)
    before = tree(tmp_path)
    with pytest.raises(CollectError, match="Not overwriting"):
        collect(PENDULUM, tmp_path, **RANDOM, overwrite=True)
    assert tree(tmp_path) == before


def test_a_dataset_inside_another_is_refused(tmp_path: Path) -> None:
    collect(PENDULUM, tmp_path, **RANDOM)
    with pytest.raises(CollectError, match="inside the dataset my/pendulum-random-v0"):
        collect(f"{PENDULUM}/data/x-v0", tmp_path, **RANDOM)


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def _full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _break_second_episode(patch: pytest.MonkeyPatch, error: Any) -> None:
    write, count = HDF5Storage.update_episodes, iter(range(100))
    patch.setattr(HDF5Storage, "update_episodes", lambda *a: error() if next(count) == 1 else write(*a))


def _break_publishing(patch: pytest.MonkeyPatch, error: Any) -> None:
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name == Path(PENDULUM).name and Path(source).name == Path(PENDULUM).name:
            error()
        replace(source, target)

    patch.setattr(os, "replace", failing)


def _break_description(patch: pytest.MonkeyPatch, error: Any) -> None:
    patch.setattr(Recorder, "create_dataset", lambda *_, **__: error())


@pytest.mark.parametrize("where", [_break_second_episode, _break_description, _break_publishing])
@pytest.mark.parametrize(("error", "raised"), [(_full_disk, CollectError), (_interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_collection_that_fails_leaves_the_folder_as_it_was(
    where: Any, error: Any, raised: Any, replacing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if replacing:
        collect(PENDULUM, tmp_path, **RANDOM)
    before = tree(tmp_path)
    where(monkeypatch, error)
    with pytest.raises(raised) as caught:
        collect(PENDULUM, tmp_path, **RANDOM, seed=1, overwrite=replacing)
    if raised is CollectError:
        assert "Cannot write the dataset" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert tree(tmp_path) == before
    assert replacing or list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_noticed_before_hdf5_meets_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = iter([1 << 30, 1 << 20, 1 << 20])
    usage = lambda _: type("Usage", (), {"free": next(sizes)})  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(CollectError, match=r"1 MB free; the rest of the dataset may take 6\d MB"):
        collect(PENDULUM, tmp_path, **RANDOM)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_reported_before_simulating(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CollectError, match="Cannot write"):
        collect(PENDULUM, tmp_path / "file", **RANDOM)


# The command


def run_command(root: Path, *overrides: str) -> None:
    changes = [f"data_dir={root}", *overrides]
    command.collect(compose("collect", *changes), changes)


@pytest.mark.parametrize(
    ("overrides", "dataset", "reading"),
    [
        (["env=minari/pointmaze-umaze", "reference_episodes=0"], UMAZE, "env=minari/pointmaze-umaze "),
        (["env=minari/pointmaze-large", "policy=random"], "mfrl/pointmaze-large-random-v0", "env=minari/dataset env."),
        (
            ["env=minari/dataset", f"env.dataset={PENDULUM}", "env.gym_id=Pendulum-v1", "policy=random"],
            PENDULUM,
            "env=minari/dataset env.",
        ),
        (["env=d4rl/pen-human", "policy=random"], "mfrl/pen-human-random-v0", "env=d4rl/pen-human env.dataset=mfrl/"),
        (
            ["env=d4rl/antmaze-medium-play", "policy=random", "dataset=me/b-v3"],
            "me/b-v3",
            "env=d4rl/antmaze-medium-play",
        ),
        (
            ["env=ogbench/cube-single-play", "policy=random"],
            "mfrl/cube-single-play-random-v0",
            "env=minari/dataset env.",
        ),
    ],
)
def test_the_command_names_what_it_makes_and_how_to_train_on_it(
    overrides: list[str], dataset: str, reading: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_command(tmp_path, *overrides, "episodes=1", "episode_steps=10")
    assert load(tmp_path, dataset).total_steps == 10
    err = capfd.readouterr().err
    assert f"Collected {dataset}: 10 transitions in 1 episode" in err
    assert f"mfrl train {reading}" in err


def test_the_command_collects_with_a_checkpoint_in_its_environment(ogbench_run: Path, tmp_path: Path) -> None:
    run_command(tmp_path, f"policy=ckpt:{ogbench_run}", "steps=5")
    assert load(tmp_path, f"mfrl/{DATASET}-meanflowql-v0").total_steps == 5
    run_command(tmp_path, f"policy=ckpt:{ogbench_run}", "steps=5", "env=minari/dataset", "env.dataset=my/own-v1")
    assert load(tmp_path, "my/own-v1").total_steps == 5
    with pytest.raises(ConfigError, match="environment is that of the checkpoint"):
        run_command(tmp_path, f"policy=ckpt:{ogbench_run}", "env=ogbench/cube-single-play")
    with pytest.raises(CheckpointError, match="nowhere"):
        run_command(tmp_path, "policy=ckpt:nowhere")


def test_ogbenchs_scripted_policies_are_collected_as_before(tmp_path: Path) -> None:
    run_command(tmp_path, f"env=ogbench/{DATASET}", "episodes=1", "episode_steps=5", "workers=1")
    assert (tmp_path / f"{DATASET}-v0.npz").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=ogbench/cube-single-play", "steps=3"], "steps=3 is no setting of collecting cube-single-play-v0"),
        (["env=minari/pointmaze-umaze", "workers=2"], "workers=2 is no setting of collecting a Minari dataset"),
        (["env=d4rl/pen-human"], "mfrl download env=d4rl/pen-human"),
        (["env=minari/dataset", "env.dataset=a/b-v0", "policy=random"], "env.gym_id=NAME-v0"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_command(tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []
