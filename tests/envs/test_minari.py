"""Environments of Minari datasets and of the D4RL names: rebuilt, checked, labelled as in the original benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tiny
from gymnasium import spaces

from mfrl.envs.d4rl import AdroitLabels, goal_labels, hand_distance
from mfrl.envs.minari import read_spec, register_robotics, vector_keys, write_spec
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import Signature, VectorEnv
from mfrl.errors import ConfigError, EnvError
from mfrl.runs.targets import build

register_robotics()


compose = partial(tiny.compose, "train")


def spec_of(name: str) -> EnvSpec:
    """Of a D4RL name, whose data are not there."""
    return build(compose(f"env=d4rl/{name}").data).env


def test_reference_returns_are_those_of_d4rl() -> None:
    known = {
        "pen": (96.262799, 3076.8331017826877),
        "door": (-56.512833, 2880.5693087298737),
        "hammer": (-274.856578, 12794.134825156867),
        "relocate": (-6.425911, 4233.877797728884),
    }
    for task, returns in known.items():
        assert spec_of(f"{task}-cloned").reference_returns == returns
    assert spec_of("antmaze-umaze").reference_returns == (0.0, 1.0)


@pytest.mark.parametrize("name", ["antmaze-umaze", "antmaze-medium-play", "antmaze-large-diverse"])
def test_the_labelled_goal_is_where_the_evaluation_has_its_goal(name: str) -> None:
    goal = compose(f"env=d4rl/{name}").env.goal
    core = spec_of(name).make().unwrapped
    assert [cell.tolist() for cell in core.maze.unique_goal_locations] == [list(goal)]
    assert len(core.maze.unique_reset_locations) == 1
    for seed in range(5):
        core.reset(seed=seed)
        assert np.abs(core.goal - goal).max() <= 1.0, "drawn anew around the centre of its cell"


def test_an_ant_at_the_goal_succeeds_and_ends_the_episode_with_a_return_of_one() -> None:
    env = spec_of("antmaze-umaze").make()
    env.reset(seed=0)
    core = env.unwrapped
    *_, info = env.step(np.zeros(8, np.float32))
    assert not info["success"]
    ant = core.ant_env
    qpos = ant.data.qpos.copy()
    qpos[:2] = core.goal
    ant.set_state(qpos, np.zeros_like(ant.data.qvel))
    observation, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    np.testing.assert_allclose(observation[:2], ant.data.qpos[:2], rtol=1e-6)


def test_an_antmaze_observation_is_position_and_proprioception_as_in_d4rl() -> None:
    env = spec_of("antmaze-medium-diverse").make()
    env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    data = env.unwrapped.ant_env.data
    np.testing.assert_allclose(observation, np.concatenate([data.qpos, data.qvel]), rtol=1e-5, atol=1e-6)


def original_reward(task: str, core: Any) -> float:
    """D4RL's dense reward, d4rl/hand_manipulation_suite/*_v0.py, from the simulator's state."""
    data, sites = core.data, lambda number: core.data.site_xpos[number].ravel()
    norm = np.linalg.norm
    if task == "door":
        hinge = float(data.qpos[core.door_hinge_addrs])
        reward = -0.1 * norm(sites(core.grasp_site_id) - sites(core.handle_site_id))
        reward -= 0.1 * (hinge - 1.57) ** 2 + 1e-5 * np.sum(data.qvel**2)
        return reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
    thing, palm = data.xpos[core.obj_body_id].ravel(), sites(core.S_grasp_site_id)
    target = sites(core.target_obj_site_id)
    if task == "hammer":
        head, nail_gap = sites(core.tool_site_id), norm(target - sites(core.goal_site_id))
        reward = -0.1 * norm(palm - thing) - norm(head - target) - 10 * nail_gap - 1e-2 * norm(data.qvel)
        return reward + 2 * (thing[2] > 0.04 and head[2] > 0.04) + 25 * (nail_gap < 0.02) + 75 * (nail_gap < 0.01)
    gap = norm(thing - target)
    reward = -0.1 * norm(palm - thing)
    if thing[2] > 0.04:
        reward += 1.0 - 0.5 * norm(palm - target) - 0.5 * gap
    return reward + 10 * (gap < 0.1) + 20 * (gap < 0.05)


@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_adroit_rewards_are_d4rls_and_not_those_of_the_package(task: str) -> None:
    env, plain = spec_of(f"{task}-expert").make(), gym.make(f"AdroitHand{task.capitalize()}-v1")
    env.action_space.seed(0)
    env.reset(seed=0)
    plain.reset(seed=0)
    for _ in range(30):
        action = env.action_space.sample()
        _, reward, terminated, _, _ = env.step(action)
        assert reward == pytest.approx(original_reward(task, env.unwrapped), abs=1e-6)
        assert reward < plain.step(action)[1], "the package adds the distance of the hand"
        assert not terminated


def test_a_dropped_pen_ends_the_episode_as_in_d4rl() -> None:
    env = spec_of("pen-human").make()
    rng = np.random.default_rng(0)
    ends = []
    for seed in range(4):
        env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 24).astype(np.float32))
            height = env.unwrapped.data.xpos[env.unwrapped.obj_body_id][2]
            assert terminated == (height < 0.075)
        ends.append(terminated)
    assert any(ends)


def test_goal_labels_follow_d4rls_relabelling() -> None:
    positions = np.array([[0.0, 0.0], [3.0, 0.49], [3.0, 0.51], [2.7, 0.4]])
    rewards, terminated = goal_labels(positions, (3.0, 0.0))
    assert rewards.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert terminated.tolist() == [False, True, False, True]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="rule=kitchen must be one of pen"):
        AdroitLabels(gym.make("Pendulum-v1"), "kitchen")
    with pytest.raises(ConfigError, match=r"did you mean hammer\?"):
        AdroitLabels(gym.make("Pendulum-v1"), "hamer")
    with pytest.raises(EnvError, match="rule=door is for 39 numbers"):
        AdroitLabels(gym.make("Pendulum-v1"), "door")


class Signed(gym.Wrapper):
    """A later package: the bare environment itself subtracts the hand's distance, or half of it."""

    def __init__(self, task: str, share: float) -> None:
        super().__init__(gym.make(f"AdroitHand{task.capitalize()}-v1").unwrapped)
        self.task, self.share = task, share

    @property
    def unwrapped(self) -> gym.Env:
        return self

    @property
    def data(self) -> Any:
        return self.env.data

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        term = 0.1 * hand_distance(self.task, observation[None])[0]
        return observation, reward - (1.0 + self.share) * term, *rest


@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_an_environment_with_d4rls_rewards_keeps_them(task: str) -> None:
    env, plain = AdroitLabels(Signed(task, 1.0), task), Signed(task, 1.0)
    for each in (env, plain):
        each.reset(seed=0)
    for _ in range(3):
        action = np.full(env.action_space.shape, 0.2)
        assert env.step(action)[1] == plain.step(action)[1]
    with pytest.raises(EnvError, match=f"rule={task} expects the dense reward"):
        AdroitLabels(Signed(task, 0.5), task)
    other = {"door": "relocate", "relocate": "door"}.get(task)
    if other:
        with pytest.raises(EnvError, match="of that Adroit task"):
            AdroitLabels(gym.make(f"AdroitHand{task.capitalize()}-v1"), other)


def test_sparse_rewards_have_no_dense_labels() -> None:
    wrapper = {"name": "L", "entry_point": "mfrl.envs.d4rl:AdroitLabels", "kwargs": {"rule": "door"}}
    spec = write_spec("AdroitHandDoor-v1", {"reward_type": "sparse"}, wrappers=[wrapper])
    with pytest.raises(EnvError, match=r"AdroitHandDoor-v1 cannot be built: env\.rule=door expects the dense reward"):
        EnvSpec("x", "minari", gym_spec=spec).make()


def as_json(
    entry_point: str,
    kwargs: dict[str, Any] | None = None,
    wrappers: tuple[dict, ...] = (),
    max_episode_steps: int | None = None,
) -> str:
    spec = {"id": "Some-v0", "entry_point": entry_point, "kwargs": kwargs or {}, "additional_wrappers": list(wrappers)}
    return json.dumps(spec | {"max_episode_steps": max_episode_steps})


PENDULUM = "gymnasium.envs.classic_control.pendulum:PendulumEnv"

FOREIGN = {
    "a function of the system": as_json("os:system", {"command": "x"}),
    "another package's class": as_json("mischief:Env"),
    "a known package's import": as_json("gymnasium.envs.registration:importlib"),
    "a known package's function": as_json("gymnasium.envs.registration:make", {"id": "mischief:Evil-v0"}),
    "a known package's other class": as_json("mfrl.envs.spec:EnvSpec", {"env_id": "x"}),
    "a base class in place of an environment": as_json("gymnasium.wrappers:TimeLimit"),
    "a foreign wrapper": as_json(PENDULUM, wrappers=({"name": "W", "entry_point": "mischief:W", "kwargs": {}},)),
    "a wrapper that is none": as_json(PENDULUM, wrappers=({"name": "W", "entry_point": PENDULUM, "kwargs": {}},)),
    "a wrapper that writes files": as_json(
        PENDULUM,
        wrappers=({"name": "R", "entry_point": "gymnasium.wrappers:RecordVideo", "kwargs": {"video_folder": "x"}},),
    ),
    "a wrapper that opens a window": as_json(
        PENDULUM, wrappers=({"name": "H", "entry_point": "gymnasium.wrappers.rendering:HumanRendering", "kwargs": {}},)
    ),
    "our recorder, which writes files": as_json(
        PENDULUM, wrappers=({"name": "R", "entry_point": "mfrl.collect.minari.recorder:Recorder", "kwargs": {}},)
    ),
    "our labels by another way": as_json(
        PENDULUM, wrappers=({"name": "L", "entry_point": "mfrl.envs.d4rl:gym.Wrapper", "kwargs": {}},)
    ),
    "a package to import first": json.dumps({"id": "mischief:Evil-v0"}),
    "no class at all": as_json("gymnasium"),
    "a number": as_json(3),
    "no description": "[]",
    "half a description": '{"id": "Pend',
    "no id": "{}",
}


@pytest.mark.parametrize("case", sorted(FOREIGN))
def test_what_a_file_names_is_not_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mischief.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("os.system", None)
    with pytest.raises(EnvError):
        EnvSpec("x", "minari", gym_spec=FOREIGN[case]).make()
    assert [path.name for path in tmp_path.iterdir()] == ["mischief.py"]


def test_a_wrapper_that_writes_files_and_a_class_from_elsewhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"that writes files": "would write files", "that opens a window": "would open a window"}
    for wrapper, sentence in refused.items():
        with pytest.raises(EnvError, match=sentence):
            read_spec(FOREIGN[f"a wrapper {wrapper}"])
    with pytest.raises(EnvError, match=r"mfrl\.collect\.minari\.recorder:Recorder"):
        read_spec(FOREIGN["our recorder, which writes files"])
    foreign = type("Foreign", (gym.Env,), {"__module__": "mischief"})
    monkeypatch.setattr("gymnasium.envs.registration.Foreign", foreign, raising=False)
    with pytest.raises(EnvError, match=r"trust=\[mischief\]"):
        read_spec(as_json("gymnasium.envs.registration:Foreign"))


def test_a_trusted_package_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "homemade.py").write_text(
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\nclass Mine(PendulumEnv): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = as_json("homemade:Mine", max_episode_steps=5)
    with pytest.raises(EnvError, match=r"trust=\[homemade\]"):
        read_spec(text)
    assert type(EnvSpec("x", "minari", gym_spec=text, trust=("homemade",)).make().unwrapped).__name__ == "Mine"
    with pytest.raises(EnvError, match="install the package"):
        read_spec(as_json("homemode.part:Mine"), ("homemode",))


def test_a_dependency_that_gymnasium_misses_is_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gymnasium's own box2d environments do where Box2D is missing."""
    (tmp_path / "boxed.py").write_text(
        "from gymnasium.error import DependencyNotInstalled\nraise DependencyNotInstalled('run `pip install boxes`')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvError, match=r"'boxed:Walker' cannot be imported: run `pip install boxes`"):
        read_spec(as_json("boxed:Walker"), ("boxed",))


def test_descriptions_of_older_gymnasium_versions_are_read() -> None:
    old = {
        "id": "Pendulum-v1",
        "entry_point": PENDULUM,
        "max_episode_steps": 150.0,
        "order_enforce": True,
        "autoreset": False,
        "apply_api_compatibility": False,
        "disable_env_checker": False,
        "kwargs": {"g": 5.0, "render_mode": "human"},
        "additional_wrappers": [],
        "vector_entry_point": "os:system",
    }
    env = EnvSpec("x", "minari", gym_spec=json.dumps(old)).make()
    assert env.spec.max_episode_steps == 150
    assert env.unwrapped.g == 5.0
    assert env.unwrapped.render_mode is None


def test_recorded_wrappers_are_built_again() -> None:
    env = gym.wrappers.ClipReward(gym.make("Pendulum-v1"), min_reward=-0.5)
    again = EnvSpec("x", "minari", gym_spec=env.spec.to_json()).make()
    again.reset(seed=0)
    assert again.step(np.ones(1, np.float32))[1] == -0.5


def test_an_environment_without_a_time_limit_is_refused_for_evaluation() -> None:
    spec = EnvSpec("x", "minari", gym_spec=as_json(PENDULUM))
    endless = gym.make("Pendulum-v1", max_episode_steps=-1)
    for refused in (spec.check, spec.make, lambda: Signature.of(endless)):
        with pytest.raises(EnvError, match="no time limit"):
            refused()


def test_worker_processes_build_it_from_the_same_few_words() -> None:
    spec = spec_of("pen-human")
    with VectorEnv(spec, 2, workers=1) as workers, VectorEnv(spec, 2, workers=0) as here:
        for env in (workers, here):
            env.reset([0, 1], [3, 4])
        actions = np.full((2, 24), 0.3, np.float32)
        ours, theirs = workers.step(actions), here.step(actions)
    np.testing.assert_array_equal(ours.observations, theirs.observations)
    np.testing.assert_array_equal(ours.rewards, theirs.rewards)


def test_the_keys_rule() -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    space = spaces.Dict(b=box, a=box, c=box)
    assert vector_keys(space, None) == ("a", "b", "c")
    assert vector_keys(space, ["c", "a"]) == ("c", "a")
    assert vector_keys(box, None) is None
    for wanted, sentence in ((["d"], "no entry 'd'"), (["a", "a"], "twice")):
        with pytest.raises(EnvError, match=sentence):
            vector_keys(space, wanted)
    with pytest.raises(EnvError, match="no dictionary"):
        vector_keys(box, ["a"])


def test_the_packages_notice_is_answered_and_other_words_are_not_hidden() -> None:
    script = (
        "import farama_notifications as f\n"
        "f.notifications.setdefault('gymnasium_robotics', {})['1.4.2.other'] = 'something else'\n"
        "from mfrl.envs.minari import register_robotics\n"
        "register_robotics()\n"
        "print(f.notifications['gymnasium_robotics'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "AdroitHand" not in done.stderr
    assert "something else" in done.stdout


def test_mazes_leave_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec_of("antmaze-umaze").make()
    EnvSpec("x", "minari", gym_spec=write_spec("PointMaze_UMaze-v3")).make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("task", "episodes", "points"), [("door", 6, 0.1), ("hammer", 6, 0.03), ("relocate", 6, 0.15)])
def test_random_actions_return_what_d4rl_has_for_them(task: str, episodes: int, points: float) -> None:
    """The zero of the normalised score; the package's own rewards are 0.05 (hammer) to 0.4 points off."""
    spec = spec_of(f"{task}-human")
    low, high = spec.reference_returns
    env = spec.make()
    env.action_space.seed(0)
    total = 0.0
    for seed in range(episodes):
        env.reset(seed=seed)
        truncated = False
        while not truncated:
            _, reward, _, truncated, _ = env.step(env.action_space.sample())
            total += reward
    assert 100.0 * (total / episodes - low) / (high - low) == pytest.approx(0.0, abs=points)
