"""The labels of steps made online are those that the data have for the same steps, transition by transition."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import DATASET
from tiny import tiny_critic, trainer

from mfrl.algorithms.sac import SAC
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.minari import MinariData
from mfrl.data.module import OfflineData
from mfrl.data.ogbench import OGBenchData
from mfrl.data.ogbench_source import Simulator
from mfrl.data.replay import Journal
from mfrl.data.scratch import Scratch
from mfrl.envs import d4rl, ogbench
from mfrl.learning.online import JOURNAL, Online
from mfrl.learning.training import Training
from mfrl.networks.gaussian import SquashedGaussianMLP
from mfrl.settings import OnlineSettings

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


class Witness(gymnasium.Wrapper):
    """A maze whose episodes begin beside the goal; it notes what happens."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        core: Any = env.unwrapped
        task = core.task_infos[core._reward_task_id - 1]
        task["init_ij"] = task["goal_ij"]
        self.steps: list[dict[str, Any]] = []

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.observation, info = self.env.reset(**options)
        return self.observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        happened = {"observation": self.observation, "action": action, "qpos": state_of(self)["qpos"]}
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        happened |= {"next_observation": self.observation, "next_qpos": state_of(self)["qpos"]}
        self.steps.append(happened | {"ended": terminated or truncated, "truncated": truncated})
        return self.observation, reward, terminated, truncated, info


@pytest.mark.parametrize("maze", ["pointmaze", "antmaze"])
def test_the_online_phase_stores_the_steps_that_were_made_with_the_labels_of_the_data(
    maze: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the file and in the ring, of which updates take their batches, across the ends of episodes."""
    lanes, steps, scale = 2, 160, 2.0 if maze == "pointmaze" else 1.0
    data: OfflineData
    if maze == "pointmaze":
        data = OGBenchData(DATASET, data_dir=str(data_dir), reward_scale=scale, updates=0)
    else:
        data = Scratch("antmaze-medium-singletask-v0", updates=0)
    data.setup()
    simulator, build, witnesses = Simulator(data.env.env_id), ogbench.make, []
    simulator.env.reset()

    def beside_the_goal(*names: str, **options: Any) -> Witness:
        witnesses.append(Witness(build(*names, **options)))
        return witnesses[-1]

    monkeypatch.setattr(ogbench, "make", beside_the_goal)
    monkeypatch.setattr(gymnasium.spec(data.env.env_id), "max_episode_steps", 15)
    settings = OnlineSettings(steps=steps, num_envs=lanes, workers=0, start_after=120, random_steps=100)
    actor = partial(SquashedGaussianMLP, hidden=[16])
    algorithm = SAC(data.spec, actor=actor, critic=tiny_critic, updates=settings.updates)
    algorithm.go_online(0, settings.updates)
    training = Training(algorithm, 8)
    training.online = online = Online(settings, [algorithm], [tmp_path], data, 8, 0, pytest.fail)
    trainer().fit(training, data)
    online.close()

    stepped = [witness.steps for witness in witnesses if witness.steps]
    happened = [step for together in zip(*stepped, strict=True) for step in together]
    assert (len(stepped), len(happened)) == (lanes, steps)
    made = {name: np.stack([step[name] for step in happened]) for name in happened[0]}
    rewards, masks = simulator.label({"qpos": made["qpos"]})
    later, _ = simulator.label({"qpos": made["next_qpos"]})
    simulator.close()
    assert made["ended"].sum() > made["truncated"].sum() > lanes  # by success and by the limit of time
    assert (rewards != later).any()  # and so a label of the wrong state would show
    made |= {"reward": scale * rewards, "mask": masks}

    journal = Journal(tmp_path / JOURNAL, data.spec)
    (records,) = journal.read(online.players[0].journal.count, online.players[0].journal.checksum)
    for lane in range(lanes):
        own = records[records["lane"] == lane]
        ended = made["ended"][lane::lanes]
        # Behind the last state of an episode in which an action was taken comes the one in which it ended.
        acts = np.insert(np.ones(len(ended), np.bool_), np.flatnonzero(ended) + 1, False)
        np.testing.assert_array_equal(own["acts"], acts)
        for name in ("observation", "action", "reward", "mask"):
            np.testing.assert_array_equal(own[name][acts], made[name][lane::lanes].astype(np.float32), err_msg=name)
        last = made["next_observation"][lane::lanes][ended].astype(np.float32)
        np.testing.assert_array_equal(own["observation"][~acts], last)

    batch = online.players[0].ring.gather(torch.arange(steps), discount=0.9)
    mean, std = np.array(data.spec.observation_mean), np.array(data.spec.observation_std)
    for stored, wanted in (
        (batch.observations, (made["observation"] - mean) / std),
        (batch.next_observations, (made["next_observation"] - mean) / std),
        (batch.actions, made["action"].clip(-1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP)),
        (batch.rewards, made["reward"]),
        (batch.masks, made["mask"]),
        (batch.discounts, 0.9 * made["mask"]),
    ):
        np.testing.assert_allclose(stored.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_d4rl_s_antmaze_is_labelled_by_where_a_step_ends_and_shifted() -> None:
    data = MinariData("D4RL/antmaze/medium-play-v1", reward_shift=-1.0, goal=[4.0, 4.0])
    data._goal_place = slice(0, 2)
    positions = np.array([[4.0, 4.0], [4.4, 4.2], [4.4, 4.4], [0.0, 0.0]])
    rewards, terminated = data.labels(positions, np.ones(4), np.zeros(4, bool))
    near = np.linalg.norm(positions - 4.0, axis=1) <= d4rl.GOAL_RADIUS
    assert near.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(rewards, near - 1.0)
    np.testing.assert_array_equal(terminated, near)
