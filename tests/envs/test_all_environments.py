"""The 73 tasks of the benchmark, from the name on the command line to an environment that steps."""

from __future__ import annotations

from functools import cache
from itertools import product

import gymnasium
import numpy as np
import pytest
from tiny import compose

from mfrl.catalogue import benchmark, default_task, others, singletask_id
from mfrl.envs.minari import register_robotics
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import Signature, VectorEnv
from mfrl.runs.targets import build

# Numbers in an observation and an action, and steps of an episode, as the two benchmarks define them.
STATES = {
    "antmaze-large-navigate": (29, 8, 1000),
    "antmaze-giant-navigate": (29, 8, 1000),
    "humanoidmaze-medium-navigate": (69, 21, 2000),
    "humanoidmaze-large-navigate": (69, 21, 2000),
    "antsoccer-arena-navigate": (42, 8, 1000),
    "cube-single-play": (28, 5, 200),
    "cube-double-play": (37, 5, 500),
    "scene-play": (40, 5, 750),
    "puzzle-3x3-play": (55, 5, 500),
    "puzzle-4x4-play": (83, 5, 500),
}
PIXELS = {
    "visual-cube-single-play": 200,
    "visual-cube-double-play": 500,
    "visual-scene-play": 750,
    "visual-puzzle-3x3-play": 500,
    "visual-puzzle-4x4-play": 500,
}
ANTMAZE = {
    "antmaze-umaze": (29, 8, 700),
    "antmaze-umaze-diverse": (29, 8, 700),
    "antmaze-medium-play": (29, 8, 1000),
    "antmaze-medium-diverse": (29, 8, 1000),
    "antmaze-large-play": (29, 8, 1000),
    "antmaze-large-diverse": (29, 8, 1000),
}
HANDS = {"pen": (45, 24, 100), "door": (39, 28, 200), "hammer": (46, 26, 200), "relocate": (39, 30, 200)}
ADROIT = {f"{hand}-{data}": HANDS[hand] for hand, data in product(HANDS, ("human", "cloned", "expert"))}

TASKS = [
    *((f"ogbench/{name}", task) for name, task in product(STATES, (1, 2, 3, 4, 5))),
    *((f"ogbench/{name}", 1) for name in PIXELS),
    *((f"d4rl/{name}", None) for name in (*ANTMAZE, *ADROIT)),
]
EXPECTED = {
    **{f"ogbench/{name}": sizes for name, sizes in STATES.items()},
    **{f"ogbench/{name}": ((3, 64, 64, 3), 5, steps) for name, steps in PIXELS.items()},
    **{f"d4rl/{name}": sizes for name, sizes in (ANTMAZE | ADROIT).items()},
}
SIZES = {task.env: (task.observation, task.action) for task in (*benchmark(), *others())}


def kind(env: str) -> str:
    """What its simulator is called: datasets of one simulator differ in nothing that is built."""
    suite, _, name = env.partition("/")
    if suite == "ogbench":
        return singletask_id(name)
    return "-".join(name.split("-")[: 2 if "maze" in name else 1])


#: In the gate, one environment of each kind: but of those with images, which differ from others as `test_tasks` has it
#: and take seconds to build, one in all.
ONE_OF_EACH = [
    *{kind(env): env for env in reversed(SIZES) if "/visual-" not in env and not env.startswith("minari/")}.values(),
    "ogbench/visual-cube-single-play",
]


@cache
def named(env: str, task: int | None) -> EnvSpec:
    """What the configuration of that name evaluates in, without any data being there."""
    return build(compose("train", f"env={env}", *([] if task is None else [f"env.task={task}"])).data).env


def check(env: str, task: int | None) -> None:
    spec, (observation, action_dim) = named(env, task), SIZES[env]
    steps = EXPECTED[env][2] if env in EXPECTED else None
    if spec.observes_pixels:
        with VectorEnv(spec, 1, workers=1, render=True) as envs:
            check_signature(envs.signature, (spec.frames, *observation), action_dim, steps)
            first = envs.reset([0], [0])
            assert first.any(), "a black image"
            after = envs.step(np.zeros((1, action_dim), np.float32))
            np.testing.assert_array_equal(after.observations[0, 1], first[0, 2], "the newest image is the last")
            assert np.isfinite(after.rewards).all()
        return
    simulator = spec.make()
    try:
        check_signature(Signature.of(simulator), observation, action_dim, steps)
        space = simulator.action_space
        assert (space.low == -1).all()
        assert (space.high == 1).all()
        space.seed(0)
        state, _ = simulator.reset(seed=0)
        if spec.suite == "ogbench" and task is None:
            assert simulator.unwrapped._reward_task_id == default_task(env.partition("/")[2])
        for _ in range(3):
            assert simulator.observation_space.contains(state)
            assert np.isfinite(state).all()
            state, reward, terminated, truncated, info = simulator.step(space.sample())
            assert np.isfinite(reward)
            assert not terminated
            assert not truncated
            assert not info["success"]
    finally:
        simulator.close()


def check_signature(signature: Signature, observation: tuple[int, ...], action_dim: int, steps: int | None) -> None:
    assert signature.observation_shape == observation
    assert signature.action_dim == action_dim
    assert steps is None or signature.max_episode_steps == steps


def test_there_are_73_of_the_sizes_that_the_benchmarks_define() -> None:
    assert len(set(TASKS)) == 73
    for env, (observation, action_dim, _) in EXPECTED.items():
        shape = observation[1:] if isinstance(observation, tuple) else (observation,)
        assert SIZES[env] == (shape, action_dim)


@pytest.mark.parametrize("env", ONE_OF_EACH)
def test_an_environment_of_each_kind_steps(env: str) -> None:
    check(env, None)


@pytest.mark.parametrize("maze", ["UMaze", "Medium", "Large"])
def test_point_mazes_have_the_sizes_of_the_data_collected_in_them(maze: str) -> None:
    register_robotics()
    env = gymnasium.make(f"PointMaze_{maze}-v3")
    parts = [env.observation_space[key] for key in ("observation", "desired_goal")]  # of a goal that moves
    sizes = ((sum(part.shape[0] for part in parts),), env.action_space.shape[0])
    assert SIZES[f"minari/pointmaze-{maze.lower()}"] == sizes
    env.close()


def test_what_the_data_are_called_changes_nothing_of_the_environment() -> None:
    for env in EXPECTED:
        (tested,) = (one for one in ONE_OF_EACH if kind(one) == kind(env)) if "/visual-" not in env else (env,)
        assert named(env, None) == named(tested, None)
        assert EXPECTED[env] == EXPECTED.get(tested, EXPECTED[env])


@pytest.mark.slow
@pytest.mark.parametrize(("env", "task"), TASKS)
def test_every_environment_steps(env: str, task: int | None) -> None:
    check(env, task)
