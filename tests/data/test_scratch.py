"""Environments without a dataset: named, checked, stepped and evaluated in."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ogbench.online_locomotion.wrappers import DMCHumanoidXYWrapper, GymXYWrapper
from tiny import compose
from torch import Tensor

from mfrl.app import collect, tasks
from mfrl.app.refusals import check_overrides
from mfrl.catalogue import ONLINE, TasksError
from mfrl.data.scratch import Scratch
from mfrl.envs.evaluation import Evaluator
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import Signature, VectorEnv
from mfrl.errors import CollectError, ConfigError, EnvError
from mfrl.runs.targets import build


class Push:
    """One action for all."""

    num_candidates = 1

    def __init__(self, action_dim: int, value: float = 0.3) -> None:
        self.action_dim, self.value = action_dim, value

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return torch.full((len(observations), self.action_dim), self.value)


def named(*overrides: str) -> Scratch:
    """The data of a configuration, looked at."""
    data = build(compose("train", *overrides).data)
    data.setup()
    return data


# ---- any environment of Gymnasium


class Wide(gymnasium.Env):
    """Shows what it is told to do, in two dimensions at a time; its bounds differ from one another."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
    action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros((2, 2)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.stack([action, 2.0 * action]), float(action.sum()), False, False, {}


class Narrow(Wide):
    action_space = spaces.Box(-1.0, np.inf, (2,), np.float32)


class Grid(Wide):
    action_space = spaces.Box(-1.0, 1.0, (2, 2), np.float32)


gymnasium.register("Wide-v0", f"{__name__}:Wide", max_episode_steps=5)
gymnasium.register("Narrow-v0", f"{__name__}:Narrow", max_episode_steps=5)
gymnasium.register("Grid-v0", f"{__name__}:Grid", max_episode_steps=5)
gymnasium.register("Unlimited-v0", f"{__name__}:Wide")
OURS = __name__.partition(".")[0]


def ours(name: str, **settings: Any) -> EnvSpec:
    return EnvSpec.without_data(name, trust=(OURS,), **settings)


def test_pendulum_is_named_and_evaluated_in() -> None:
    data = named("env=gym/any", "env.gym_id=Pendulum-v1")
    assert (data.spec.observation_dim, data.spec.action_dim, data.dataset) == (3, 1, "Pendulum-v1")
    assert data.provenance()["source"] == "interaction"
    assert (data.action_bounds, data.observation_shapes) == (([-2.0], [2.0]), [[3]])
    with Evaluator(data.env, num_envs=2, workers=0) as evaluator:
        result = evaluator.run(Push(1), 3)
    assert result.lengths.tolist() == [200] * 3  # cut off by the time limit
    assert result.successes is None
    assert (result.returns > -2000.0).all()
    assert (result.returns < 0.0).all()


def test_actions_are_rescaled_to_the_bounds_and_observations_are_one_vector() -> None:
    with VectorEnv(ours("Wide-v0"), 1, workers=0) as env:
        assert (env.signature.observation_shape, env.signature.action_dim) == ((4,), 2)
        env.reset([0], [0])
        for action, meant in (([-1, -1], [-2, 0]), ([0, 0], [0, 5]), ([1, 1], [2, 10]), ([0.5, -0.5], [1, 2.5])):
            step = env.step(np.array([action], np.float32))
            np.testing.assert_allclose(step.observations, [[*meant, *(2.0 * np.array(meant))]])
            assert step.rewards == sum(meant)
        last = env.step(np.zeros((1, 2), np.float32))
        assert (last.truncated.tolist(), last.terminated.tolist()) == ([True], [False])


def test_arguments_and_the_time_limit_are_those_of_the_settings() -> None:
    data = named("env=gym/any", "env.gym_id=Pendulum-v1", "+env.gym_kwargs.g=2.5", "env.max_episode_steps=7")
    env = data.env.make()
    assert (env.unwrapped.g, env.spec.max_episode_steps) == (2.5, 7)


def test_entries_of_a_dictionary_are_chosen() -> None:
    maze = ["env=gym/any", "env.gym_id=PointMaze_UMaze-v3"]
    assert named(*maze, "env.observation_keys=[observation, desired_goal]").spec.observation_dim == 6
    assert named(*maze).spec.observation_dim == 8
    assert named(*maze).env.observation_keys == ("achieved_goal", "desired_goal", "observation")
    assert named(*maze).observation_shapes == [[2], [2], [4]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pendulum-v0", "Pendulum-v0.*did you mean Pendulum-v1"),
        ("CartPole-v1", "Discrete.*continuous"),
        ("Narrow-v0", "finite bounds"),
        ("Grid-v0", "a vector of continuous actions"),
        ("FrozenLake-v1", "continuous"),
        ("Unlimited-v0", r"no time limit.*env\.max_episode_steps=1000$"),
        ("nowhere:Nothing-v0", r"nowhere.*trust=\[nowhere\]"),
        ("cube-single-v0", "another goal.*cube-single-singletask-v0"),
    ],
)
def test_where_no_policy_can_act_a_sentence_says_why(name: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        ours(name).make()


def test_a_missing_package_is_answered_with_gymnasiums_own_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "Box2D":
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvError, match=r'pip install "?gymnasium\[box2d\]'):
        EnvSpec.without_data("BipedalWalker-v3").make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_episode_steps": 0}, "env.max_episode_steps=0"),
        ({"max_episode_steps": True}, "env.max_episode_steps=true"),
    ],
)
def test_settings_out_of_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ours("Wide-v0", **settings)


def test_an_environment_of_ogbench_is_built_as_ogbench_has_it() -> None:
    assert ours("ogbench:cube-single-singletask-task2-v0") == EnvSpec("cube-single-singletask-task2-v0")
    with pytest.raises(ConfigError, match=r"env\.max_episode_steps.*OGBench"):
        ours("cube-single-singletask-v0", max_episode_steps=10)


# ---- OGBench's environments of its experts

SIZES = {"online-ant-xy": (29, 8, 1000), "online-antball": (42, 8, 200), "online-humanoid-xy": (69, 21, 1000)}


@pytest.mark.parametrize("name", SIZES)
def test_ogbenchs_online_environments_have_its_sizes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo notes there what it thinks of the humanoid's description
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    env = named(f"env=ogbench/{name}").env.make()
    signature, size = Signature.of(env), SIZES[name]
    assert ((signature.observation_shape[0], signature.action_dim), signature.max_episode_steps) == (size[:2], size[2])
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert not list(tmp_path.glob("*.xml"))
    assert {f"ogbench/{name}" for name in SIZES} == ONLINE.keys()


def test_the_ant_draws_a_new_direction_every_100_steps_and_is_paid_for_following_it() -> None:
    np.random.seed(0)  # noqa: NPY002 - which the package draws from
    env = EnvSpec("online-ant-xy-v0").make()
    assert (type(env), env.resample_interval) == (GymXYWrapper, 100)
    humanoid = EnvSpec("online-humanoid-xy-v0").make()
    assert (type(humanoid), humanoid.resample_interval) == (DMCHumanoidXYWrapper, 200)
    env.action_space.seed(0)
    before, _ = env.reset(seed=0)
    env.unwrapped._terminate_when_unhealthy = False
    shown = [before[-2:]]
    for _ in range(250):
        position = env.unwrapped.data.qpos[:2].copy()
        after, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert not terminated
        assert not truncated
        assert reward == pytest.approx((info["xy"] - position) @ shown[-1])
        np.testing.assert_allclose(np.linalg.norm(after[-2:]), 1.0)
        shown.append(after[-2:])
    changes = [t for t in range(250) if (shown[t] != shown[t + 1]).any()]
    assert changes == [99, 199]


def test_the_ants_episodes_are_a_function_of_their_seeds_in_any_process() -> None:
    spec, actions = EnvSpec("online-ant-xy-v0"), np.random.default_rng(0).uniform(-1, 1, (120, 2, 8)).astype(np.float32)

    def played(workers: int) -> list[np.ndarray]:
        np.random.seed(workers)  # noqa: NPY002 - must not matter
        with VectorEnv(spec, 2, workers) as env:
            observed = [env.reset([0, 1], [5, 6])]
            active = np.ones(2, np.bool_)
            for action in actions:
                step = env.step(action, active)
                active &= ~step.terminated
                observed.append(step.observations)
        return observed

    np.testing.assert_array_equal(played(0), played(1))


def test_a_fallen_ant_ends_the_episode_and_the_time_limit_cuts_it_off() -> None:
    env = EnvSpec("online-ant-xy-v0").make()
    env.reset(seed=0)
    core = env.unwrapped
    qpos = core.data.qpos.copy()
    qpos[2] = 1.5
    core.set_state(qpos, core.data.qvel)
    *_, terminated, truncated, _ = env.step(np.zeros(8, np.float32))
    assert (terminated, truncated) == (True, False)
    spec = EnvSpec("online-ant-xy-v0")
    with Evaluator(spec, num_envs=1, workers=0) as evaluator:
        result = evaluator.run(Push(8, 0.0), 1)
    assert result.lengths.tolist() == [1000]  # it stands still for as long as it may
    assert result.successes is None
    assert "eval/success" not in result.summary()


def test_the_ant_with_a_ball_reports_success_and_needs_no_display() -> None:
    with VectorEnv(EnvSpec("online-antball-v0"), 1, workers=1) as env:  # where OpenGL is disabled
        env.reset([0], [0])
        step = env.step(np.zeros((1, 8), np.float32))
    assert (step.told.tolist(), step.success.tolist()) == ([True], [False])


def test_the_directed_ant_is_filmed() -> None:
    with VectorEnv(EnvSpec("online-ant-xy-v0"), 1, workers=1, render=True) as env:
        env.reset([0], [0])
        (frame,) = env.render([0])
    assert frame.shape == (256, 256, 3)
    assert frame.std() > 1.0


# ---- the commands


def test_they_compose_on_the_command_line() -> None:
    for arguments in (["env=gym/any", "env.gym_id=Pendulum-v1"], ["env=ogbench/online-ant-xy"]):
        check_overrides("train", arguments)
        cfg = compose("train", *arguments)
        assert (cfg.env.suite, cfg.data.gym_id) == ("gym", cfg.env.gym_id)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("env=gym/any", r"env\.gym_id must be given"),
        ("env=ogbench/online-ant", "ogbench/online-ant-xy"),
        ("env=ogbench/online-ant-xy env.task=2", r"env\.task"),
        ("env=ogbench/online-ant-xy collect={seed:0}", "nothing to collect of online-ant-xy"),
    ],
)
def test_what_they_do_not_have_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_overrides("train", overrides.split())


def test_where_there_is_nothing_to_collect_the_way_to_a_dataset_is_told() -> None:
    cfg = compose("collect", "env=gym/any", "env.gym_id=Pendulum-v1")
    with pytest.raises(ConfigError, match=r"Pendulum-v1 has no dataset.*env=minari/dataset.*gym_id=Pendulum-v1"):
        collect.collect(cfg, ["env=gym/any"])
    from mfrl.collect.minari.runner import collect as collect_minari

    with pytest.raises(CollectError, match=r"online-ant-xy-v0.*registry"):
        collect_minari("my/ant-v0", policy="random", env=EnvSpec("online-ant-xy-v0"), episodes=1)


@pytest.mark.parametrize("name", ["online-ant-xy", "online-ant-xy-v0", "ogbench/online-ant-xy"])
def test_the_list_of_tasks_says_how_they_are_trained_in(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TasksError, match=r"no data.*mfrl train env=ogbench/online-ant-xy"):
        tasks.choose([name])
    tasks.main(["--all"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert all(choice in last for choice in (*ONLINE, "gym/any"))
