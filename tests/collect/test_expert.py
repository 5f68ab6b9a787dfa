"""Experts as plain arrays, where they come from, and the ant mazes that are collected by them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import compose

from mfrl.app.collect import collect as command
from mfrl.app.train import train
from mfrl.catalogue import generation_settings
from mfrl.collect.ogbench import expert as experts
from mfrl.collect.ogbench import workers
from mfrl.collect.ogbench.episode import episode_rng
from mfrl.collect.ogbench.expert import Expert, expert_from, read, shipped, write
from mfrl.collect.ogbench.maze import MazeCollector
from mfrl.collect.ogbench.runner import collect
from mfrl.collect.ogbench.training import actor_arrays, export, trained_expert
from mfrl.data import ogbench_files, records
from mfrl.data.getting import commands
from mfrl.envs.spec import EnvSpec
from mfrl.errors import CheckpointError, CollectError
from mfrl.networks.gaussian import SquashedGaussianMLP
from mfrl.runs.load import load_algorithm

NAVIGATE = "antmaze-medium-navigate-v0"
TINY = {"episodes": 3, "val_episodes": 1, "episode_steps": 13, "workers": 1, "progress": False}


def random_expert(seed: int = 0, sizes: tuple[int, ...] = (29, 16, 12, 8)) -> Expert:
    """It stumbles: nobody has trained it."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(0.0, into**-0.5, (out, into)).astype(np.float32), rng.normal(0.0, 0.3, out).astype(np.float32))
        for into, out in pairwise(sizes)
    ]
    return Expert(tuple(layers[:-1]), layers[-1], {"trained_by": "nobody"})


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {field: file[field] for field in file}


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Expert:
    """A random expert in the place of the one that comes with mfrl."""
    monkeypatch.setattr(experts, "EXPERTS", tmp_path / "experts")
    expert = random_expert()
    write(expert, tmp_path / "experts", "ant")
    return expert


# ---- what it computes


def test_it_acts_as_the_network_that_was_trained_on_normalised_observations() -> None:
    torch.manual_seed(0)
    actor = SquashedGaussianMLP(29, 8, (32, 24), head_scale=1.0)
    rng = np.random.default_rng(0)
    mean, std = rng.normal(0, 1, 29).astype(np.float32), rng.uniform(0.5, 2, 29).astype(np.float32)
    state = {f"actor.network.{name}": value for name, value in actor.state_dict().items()}
    expert = expert_from(actor_arrays(state | {"critic.x": torch.zeros(1)}, mean, std), {}, "a test")
    assert (expert.observation_dim, expert.action_dim, len(expert.hidden)) == (29, 8, 2)
    observations = rng.normal(0, 2, (20, 29))
    with torch.no_grad():
        wanted = actor((torch.from_numpy(observations).float() - torch.from_numpy(mean)) / torch.from_numpy(std))[
            0
        ].tanh()
    given = [expert.act(observation) for observation in observations]
    assert given[0].dtype == np.float32
    np.testing.assert_allclose(given, wanted.numpy(), atol=2e-6)
    assert np.abs(given).max() > 0.3


def test_the_ant_that_comes_with_mfrl_walks_where_it_is_told() -> None:
    expert, env = shipped("ant"), EnvSpec("online-ant-xy-v0").make()
    observation, _ = env.reset(seed=0)
    way = 0.0
    for _ in range(200):  # two directions
        observation, reward, *_ = env.step(expert.act(observation))
        way += reward
    assert way > 15.0  # 154 in 1000 steps; one that stands still gets 0


def test_it_needs_no_torch() -> None:
    code = "import sys, mfrl.collect.ogbench.workers; print({'torch', 'gymnasium'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# ---- where it comes from


@pytest.fixture(scope="module")
def run_folder(short_episodes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as that of the expert, of a moment."""
    path = tmp_path_factory.mktemp("runs") / "ant"
    overrides = [
        "experiment=ant_expert",
        "network.critic.hidden=[16,12]",
        "online={steps:24,start_after:10,random_steps:8,capacity:100}",
        "eval={every:100,episodes:1,num_envs:1,workers:0}",
        "accelerator=cpu",
        "logger=csv",
        f"run_dir={path}",
    ]
    train(compose("train", *overrides), overrides)
    return path


def test_the_actor_of_a_run_becomes_an_expert(run_folder: Path, tmp_path: Path) -> None:
    path, record = export(run_folder, tmp_path, "ant")
    expert = read(path)
    policy = load_algorithm(run_folder)[0].policy()
    observations = np.random.default_rng(0).normal(0, 1, (10, 29)).astype(np.float32)
    wanted = policy.act(torch.from_numpy(observations), torch.zeros(1, 10, 8)).numpy()
    np.testing.assert_allclose([expert.act(observation) for observation in observations], wanted, atol=1e-6)
    assert (
        json.loads(path.with_suffix(".json").read_text()) == expert.origin == record | {"sha256": records.sha256(path)}
    )
    assert (record["algo"], record["env"], record["seed"]) == ("sac", "online-ant-xy-v0", 0)
    assert record["evaluation"]["episodes"] == 1
    assert record["command"].startswith("mfrl train experiment=ant_expert 'network.critic")
    assert str(tmp_path) not in str(record)
    assert str(run_folder) not in str(record)


def test_an_unfinished_run_is_not_shipped_and_an_actor_of_another_kind_not_read(
    run_folder: Path, tmp_path: Path
) -> None:
    stopped = shutil.copytree(run_folder, tmp_path / "stopped")
    (stopped / "result.json").unlink()
    with pytest.raises(CollectError, match="unfinished"):
        export(stopped, tmp_path / "out", "ant")
    assert not (tmp_path / "out").exists()
    trained_expert(stopped)  # acts all the same
    last = stopped / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["mfrl"]["config"]["algo"]["actor"]["_target_"] = "os.system"
    torch.save(checkpoint, last)
    with pytest.raises(CollectError, match=r"another kind \(os\.system\)"):
        trained_expert(stopped)
    with pytest.raises(CheckpointError, match="no file or folder"):
        collect(NAVIGATE, tmp_path / "data", policy="ckpt:nowhere", **TINY)


def test_the_command_takes_the_expert_of_a_run(run_folder: Path, tmp_path: Path, at_home: Expert) -> None:
    def collected(name: str, *overrides: str) -> dict[str, Any]:
        sizes = [f"{key}={value}" for key, value in TINY.items() if key != "progress"]
        given = ["env=ogbench/antmaze-medium-navigate", *sizes, f"data_dir={tmp_path / name}", *overrides]
        command(compose("collect", *given), given)
        return records.read(ogbench_files.record_path(tmp_path / name, NAVIGATE), NAVIGATE)

    of_the_run, own = collected("a", f"policy=ckpt:{run_folder}"), collected("b")
    assert of_the_run["expert"]["algo"] == "sac"
    assert of_the_run["expert"]["arrays"] == trained_expert(run_folder).checksum
    assert own["expert"]["arrays"] == at_home.checksum
    assert own["files"] != of_the_run["files"]
    assert commands(NAVIGATE, tmp_path).keys() == {"collect", "download"}


# ---- its files


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    expert = random_expert()
    path = write(expert, tmp_path / "new", "ant")
    again = read(path)
    assert again.checksum == expert.checksum != random_expert(1).checksum
    assert again.origin == {"trained_by": "nobody", "sha256": records.sha256(path)}
    assert sorted(file.name for file in path.parent.iterdir()) == ["ant.json", "ant.npz"]
    assert list(np.load(path)) == [f"{n}.{p}" for n in ("hidden_0", "hidden_1", "mean") for p in ("weight", "bias")]
    observation = np.arange(29.0)
    np.testing.assert_array_equal(again.act(observation), expert.act(observation))


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {key: value for key, value in a.items() if key != name}


SPOILT = {
    "missing": (_without("mean.bias"), r"mean\.bias is missing"),
    "foreign": (lambda a: a | {"log_std.weight": a["mean.weight"]}, r"nobody knows.*log_std\.weight"),
    "a gap": (_without("hidden_0.weight"), r"hidden_0\.bias"),
    "wide": (lambda a: a | {"hidden_1.weight": a["hidden_1.weight"][:, :3]}, r"hidden_1\.weight is \(12, 3\).*16"),
    "double": (lambda a: a | {"mean.bias": a["mean.bias"].astype(float)}, r"mean\.bias is float64"),
    "flat": (lambda a: a | {"mean.weight": a["mean.weight"].ravel()}, r"mean\.weight is float32 \(96,\)"),
    "nan": (lambda a: a | {"mean.bias": a["mean.bias"] * np.float32("nan")}, r"mean\.bias.*not finite"),
    "pickled": (lambda a: a | {"mean.bias": np.array([print], object)}, "cannot be read.*allow_pickle"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_arrays_that_are_no_expert_are_refused(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[case]
    np.savez(tmp_path / "ant.npz", **spoil(random_expert().arrays()))
    (tmp_path / "ant.json").write_text(json.dumps({"sha256": records.sha256(tmp_path / "ant.npz")}))
    with pytest.raises(CollectError, match=message):
        read(tmp_path / "ant.npz")


def test_files_that_do_not_belong_together_or_are_damaged_are_refused(tmp_path: Path) -> None:
    path = write(random_expert(), tmp_path, "ant")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CollectError, match=r"ant\.npz cannot be read"):
        read(path)
    np.savez(path, **random_expert(1).arrays())
    with pytest.raises(CollectError, match=r"ant\.json does not speak of"):
        read(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CollectError, match=r"ant\.json.*cannot be read"):
        read(path)


def test_where_it_is_missing_the_way_to_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "EXPERTS", tmp_path / "none")
    with pytest.raises(CollectError, match=r"ant\.npz is not there.*mfrl train experiment=ant_expert.*policy=ckpt:"):
        collect(NAVIGATE, tmp_path / "data", **TINY)
    assert not (tmp_path / "data").exists()


# ---- who walks how


@pytest.mark.parametrize(
    ("dataset", "episodes", "steps", "noise"),
    [
        ("antmaze-medium-navigate", 1000, 1001, 0.2),
        ("antmaze-giant-navigate", 500, 2001, 0.2),
        ("antmaze-teleport-stitch", 5000, 201, 0.2),
        ("antmaze-large-explore", 10_000, 501, 1.0),
        ("visual-antmaze-giant-stitch", 5000, 201, 0.2),
    ],
)
def test_settings_are_those_of_ogbenchs_commands(dataset: str, episodes: int, steps: int, noise: float) -> None:
    s = generation_settings(dataset)
    assert (s.episodes, s.val_episodes, s.episode_steps, s.noise) == (episodes, episodes // 10, steps, noise)
    assert (s.expert, s.is_maze, s.renders) == ("ant", True, dataset.startswith("visual"))
    assert s.used()["expert"] == "ant"
    assert "expert" not in generation_settings("pointmaze-medium-stitch").used()


def one_episode(dataset: str, expert: Expert, **changes: Any) -> tuple[MazeCollector, dict[str, np.ndarray]]:
    collector = MazeCollector(dataclasses.replace(generation_settings(dataset), **changes), expert)
    return collector, collector.episode(episode_rng(0, "train", 1))


def test_an_ant_walks_in_the_direction_of_the_subgoal_by_its_expert() -> None:
    """Every action is that of OGBench's script in the state that was recorded with it."""
    expert = random_expert()
    collector, episode = one_episode("antmaze-medium-stitch", expert, noise=0.0, episode_steps=31)
    maze = collector._maze
    for qpos, qvel, observation, action in zip(
        *(episode[k] for k in ("qpos", "qvel", "observations", "actions")), strict=True
    ):
        np.testing.assert_array_equal(observation, np.concatenate([qpos, qvel]))
        maze.set_state(qpos, qvel)
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        agent_ob = np.concatenate([maze.get_ob(ob_type="states")[2:], direction])
        np.testing.assert_allclose(action, expert.act(agent_ob), atol=1e-4)


class Spy(Expert):
    """Notes what it is shown, and stays where it is."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        self.origin.setdefault("seen", []).append(observation)
        return np.zeros(8, np.float32)


def test_exploring_takes_a_new_direction_every_ten_steps_and_as_much_noise_as_there_is_room_for() -> None:
    base = random_expert()
    spy = Spy(base.hidden, base.mean, {})
    _, episode = one_episode("antmaze-medium-explore", spy, episode_steps=101)
    directions = np.array(spy.origin["seen"])[:, 27:]
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-5)
    assert np.flatnonzero((directions[1:] != directions[:-1]).any(1)).tolist() == list(range(9, 100, 10))
    clipped = np.abs(episode["actions"]) == 1.0
    assert 0.25 < clipped.mean() < 0.4  # beyond one standard deviation lie 32 % of a Gaussian
    assert episode["actions"][~clipped].std() == pytest.approx(0.54, abs=0.05)


def test_noise_is_added_to_what_the_expert_does_and_the_clipped_action_is_recorded() -> None:
    base = random_expert()
    spy = Spy(base.hidden, base.mean, {})
    _, episode = one_episode("antmaze-large-navigate", spy, episode_steps=101)
    assert episode["actions"].std() == pytest.approx(0.2, abs=0.01)
    assert abs(episode["actions"].mean()) < 0.02


def test_an_expert_of_another_body_is_refused(tmp_path: Path) -> None:
    settings = generation_settings(NAVIGATE)
    with pytest.raises(CollectError, match=r"sees 69 numbers and gives 8.*shows 29 and takes 8"):
        MazeCollector(settings, random_expert(sizes=(69, 4, 8)))


# ---- the data


@pytest.mark.parametrize(
    "dataset",
    ["antmaze-medium-navigate", "antmaze-giant-stitch", "antmaze-teleport-explore"],
    ids=lambda name: name[8:],
)
def test_collected_files_are_in_ogbenchs_format_and_say_who_walked(
    dataset: str, at_home: Expert, tmp_path: Path
) -> None:
    import ogbench

    result = collect(dataset, tmp_path / "data", **TINY)
    data = arrays(result.train_path)
    assert {key: value.shape for key, value in data.items()} == {
        "observations": (39, 29),
        "actions": (39, 8),
        "terminals": (39,),
        "qpos": (39, 15),
        "qvel": (39, 14),
    }
    assert np.flatnonzero(data["terminals"]).tolist() == [12, 25, 38]
    assert np.abs(data["actions"]).max() <= 1.0
    name = f"{dataset}-singletask-task2-v0"
    _, train, val = ogbench.make_env_and_datasets(name, dataset_path=str(result.train_path))
    assert (len(train["observations"]), len(val["observations"])) == (36, 12)
    assert set(np.unique(train["rewards"])) <= {-1.0, 0.0}
    record = records.read(ogbench_files.record_path(tmp_path / "data", f"{dataset}-v0"), f"{dataset}-v0")
    assert record["source"] == "collected"
    assert record["expert"] == {
        "trained_by": "nobody",
        "sha256": shipped("ant").origin["sha256"],
        "arrays": at_home.checksum,
    }
    assert "not OGBench's" in record["note"]
    assert ogbench_files.describe(tmp_path / "data", f"{dataset}-v0") == record


def test_data_depend_on_the_expert_and_not_on_the_number_of_workers(at_home: Expert, tmp_path: Path) -> None:
    one = collect("antmaze-teleport-navigate", tmp_path / "1", **TINY)
    two = collect("antmaze-teleport-navigate", tmp_path / "2", **(TINY | {"workers": 2}))
    assert one.provenance["files"] == two.provenance["files"]
    write(random_expert(1), tmp_path / "experts", "ant")
    other = collect("antmaze-teleport-navigate", tmp_path / "3", **TINY)
    assert other.provenance["files"] != one.provenance["files"]


@pytest.mark.parametrize("dataset", ["antmaze-teleport-navigate", "antmaze-medium-explore"])
def test_an_episode_does_not_depend_on_those_before_it(dataset: str) -> None:
    settings = dataclasses.replace(generation_settings(dataset), episode_steps=41)
    first, second = (workers._make_collector(settings, random_expert()) for _ in range(2))
    forward = [first.episode(episode_rng(0, "train", i)) for i in range(3)]
    backward = [second.episode(episode_rng(0, "train", i)) for i in reversed(range(3))][::-1]
    for one, other in zip(forward, backward, strict=True):
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])


@pytest.mark.slow  # a picture takes OSMesa a second
def test_images_are_seen_by_others_than_the_expert(tmp_path: Path, at_home: Expert) -> None:
    result = collect("visual-antmaze-medium-navigate", tmp_path, **(TINY | {"episodes": 1, "episode_steps": 3}))
    data = arrays(result.train_path)
    assert (data["observations"].shape, data["observations"].dtype) == ((3, 64, 64, 3), np.uint8)
    assert data["observations"].std() > 1.0
    states = collect("antmaze-medium-navigate", tmp_path, **(TINY | {"episodes": 1, "episode_steps": 3}))
    np.testing.assert_array_equal(arrays(states.train_path)["actions"], data["actions"])


def test_a_policy_is_refused_where_a_script_acts_or_where_it_is_none(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="pointmaze-medium-stitch-v0 is collected by its script"):
        collect("pointmaze-medium-stitch", tmp_path, policy="ckpt:runs/x")
    with pytest.raises(CollectError, match=r"policy=random.*ckpt:PATH"):
        collect(NAVIGATE, tmp_path, policy="random")


# ---- going on


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("dataset", ["pointmaze-medium-explore-v0", NAVIGATE])
def test_an_interrupted_collection_goes_on_where_it_was(
    dataset: str, at_home: Expert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = collect(dataset, tmp_path / "whole", **TINY)
    episode, ran = MazeCollector.episode, []

    def interrupted_after_two(self: MazeCollector, rng: np.random.Generator) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(rng)
        return episode(self, rng)

    monkeypatch.setattr(MazeCollector, "episode", interrupted_after_two)
    folder = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        collect(dataset, folder, **TINY)
    assert "2 of 4 episodes" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == hidden(folder) != []
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        collect(dataset, folder, **TINY, seed=1)  # makes others: it does not go on with these
    assert len(hidden(folder)) == 2
    monkeypatch.setattr(MazeCollector, "episode", lambda self, rng: ran.append(rng) or episode(self, rng))
    ran.clear()
    again = collect(dataset, folder, **TINY)
    assert len(ran) == 2
    assert again.provenance["files"] == whole.provenance["files"]
    assert hidden(folder) == []


def test_an_episode_that_was_stored_by_half_is_run_again(
    at_home: Expert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(NAVIGATE, tmp_path / "whole", **TINY)
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    folder = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        collect(NAVIGATE, folder, **TINY)
    monkeypatch.undo()
    monkeypatch.setattr(experts, "EXPERTS", tmp_path / "experts")
    (path,) = folder.glob(".unfinished-*/train.npy")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the last episode
    path.write_bytes(content)
    ran, episode = [], MazeCollector.episode
    monkeypatch.setattr(MazeCollector, "episode", lambda self, rng: ran.append(rng) or episode(self, rng))
    again = collect(NAVIGATE, folder, **TINY)
    assert len(ran) == 1
    assert again.provenance["files"] == whole.provenance["files"]


def test_a_killed_collection_goes_on_and_two_do_not_disturb_each_other(at_home: Expert, tmp_path: Path) -> None:
    folder, script, long = tmp_path / "data", tmp_path / "script.py", TINY | {"episodes": 20, "episode_steps": 101}
    script.write_text(
        "from pathlib import Path\n"
        "from mfrl.collect.ogbench import expert\n"
        "from mfrl.collect.ogbench.runner import collect\n"
        f"expert.EXPERTS = Path({str(tmp_path / 'experts')!r})\n"
        f"collect({NAVIGATE!r}, {str(folder)!r}, **{long!r})\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not list(folder.glob(".unfinished-*/val.npy")):
            assert process.poll() is None
        with pytest.raises(CollectError, match="another process is collecting"):
            collect(NAVIGATE, folder, **long)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(folder.glob("*.npz"))
    ran, episode = [], MazeCollector.episode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MazeCollector, "episode", lambda self, rng: ran.append(rng) or episode(self, rng))
        result = collect(NAVIGATE, folder, **long)
    assert 0 < len(ran) < 21
    fresh = collect(NAVIGATE, tmp_path / "fresh", **long)
    assert result.provenance["files"] == fresh.provenance["files"]
    assert hidden(folder) == []
