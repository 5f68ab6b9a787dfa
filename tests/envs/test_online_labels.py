"""The labels of steps made online are those that the data have for the same steps, transition by transition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mfrl.data.minari import MinariData
from mfrl.data.ogbench import OGBenchData
from mfrl.data.ogbench_source import Simulator
from mfrl.envs import d4rl, ogbench

STEPS = 60


def towards_success(env: Any, rng: np.random.Generator) -> None:
    """Put the environment into a state in which a part of its task, or all of it, is complete."""
    core = env.unwrapped
    if hasattr(core, "set_agent_ball_xy"):
        goal = np.asarray(core.cur_goal_xy)
        core.set_agent_ball_xy(goal + 3.0, goal + rng.uniform(-0.8, 0.8, 2))
    elif hasattr(core, "set_xy"):
        core.set_xy(core.cur_goal_xy + rng.uniform(-0.6, 0.6, 2))
    else:
        for i in range(getattr(core, "_num_cubes", 0)):
            if rng.random() < 0.7:
                core._data.joint(f"object_joint_{i}").qpos[:3] = core._data.mocap_pos[i]
        for i in range(len(getattr(core, "_cur_button_states", []))):
            if rng.random() < 0.7:
                core._cur_button_states[i] = core._target_button_states[i]
        if hasattr(core, "_cur_button_states"):
            core._apply_button_states()
        for name in ("drawer", "window"):
            if hasattr(core, f"_target_{name}_pos") and rng.random() < 0.7:
                core._data.joint(f"{name}_slide").qpos[0] = getattr(core, f"_target_{name}_pos")


def state_of(env: Any) -> dict[str, np.ndarray]:
    core = env.unwrapped
    state = {"qpos": (core.data if hasattr(core, "data") else core._data).qpos.copy()}
    if hasattr(core, "_cur_button_states"):
        state["button_states"] = np.array(core._cur_button_states)
    return state


@pytest.mark.parametrize(
    "dataset",
    [
        "pointmaze-medium-navigate",
        "antmaze-medium-navigate",
        "antsoccer-arena-navigate",
        "cube-double-play",
        "scene-play",
        "puzzle-3x3-play",
    ],
)
def test_ogbench_s_own_rewards_are_the_relabelled_ones(dataset: str) -> None:
    """A step's reward and end judge the state that the action was taken in, in both."""
    plain, sparse = (OGBenchData(dataset, sparse=sparse, reward_scale=2.0) for sparse in (False, True))
    env = ogbench.make(plain.env.env_id)
    simulator, rng = Simulator(plain.env.env_id), np.random.default_rng(0)
    states, rewards, ends = [], [], []
    env.action_space.seed(0)
    env.reset(seed=0)
    try:
        for t in range(STEPS):
            if t % 10 == 5:
                towards_success(env, rng)
                env.step(np.zeros(env.action_space.shape, np.float32))  # so that what was set is seen everywhere
            states.append(state_of(env))
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            rewards.append(reward), ends.append(terminated)
            if terminated or truncated:
                env.reset(seed=t)
        together = {name: np.stack([state[name] for state in states]) for name in states[0]}
        labelled, masks = simulator.label(together)
    finally:
        env.close()
        simulator.close()
    online = plain.labels(np.zeros((STEPS, 1)), np.array(rewards), np.array(ends))
    np.testing.assert_array_equal(online[0], 2.0 * labelled)
    np.testing.assert_array_equal(1.0 - online[1], masks)
    assert len(np.unique(labelled)) > 1  # something was complete at times
    np.testing.assert_array_equal(
        sparse.labels(np.zeros((STEPS, 1)), np.array(rewards), np.array(ends))[0], -2.0 * (labelled != 0.0)
    )


def test_d4rl_s_antmaze_is_labelled_by_where_a_step_ends_and_shifted() -> None:
    data = MinariData("D4RL/antmaze/medium-play-v1", reward_shift=-1.0, goal=[4.0, 4.0])
    data._goal_place = slice(0, 2)
    positions = np.array([[4.0, 4.0], [4.4, 4.2], [4.4, 4.4], [0.0, 0.0]])
    rewards, terminated = data.labels(positions, np.ones(4), np.zeros(4, bool))
    near = np.linalg.norm(positions - 4.0, axis=1) <= d4rl.GOAL_RADIUS
    assert near.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(rewards, near - 1.0)
    np.testing.assert_array_equal(terminated, near)
