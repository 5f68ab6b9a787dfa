"""Minari's DataCollector as it is used here: without JAX, and with what a replay in the simulator needs.

Imports Minari, so it is imported where a collection begins and not before.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from minari import DataCollector, StepDataCallback
from minari.data_collector.episode_buffer import EpisodeBuffer

from mfrl.envs import outcome

Tree = dict[str, Any] | tuple[Any, ...] | list[np.ndarray]
"""The rows of an observation or of what is recorded with it: a list of arrays at every leaf."""


class Recorder(DataCollector):
    """Records every step of an environment, losslessly, as Minari's own collector does.

    Minari walks through dictionary observations with JAX, which nothing else here needs; this one needs no JAX.
    """

    _buffer: Any

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env, step_data_callback=TrueState, record_infos=True, jpeg_encoding=False)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**settings)
        first = self._buffer
        self._buffer = Rows(
            id=first.id,
            seed=first.seed,
            options=first.options,
            observations=rows(first.observations),
            actions=[],
            infos=rows(first.infos),
        )
        return observation, info

    def close(self) -> None:
        super().close()
        self._tmp_dir.cleanup()  # so that it does not warn about being cleaned up by chance


class Rows(EpisodeBuffer):
    """An episode that grows in place."""

    def add_step_data(self, step_data: dict[str, Any]) -> Rows:
        append(self.observations, step_data["observation"])
        append(self.actions, step_data["action"])
        append(self.infos, step_data["info"])
        self.rewards.append(step_data["reward"])
        self.terminations.append(step_data["terminated"])
        self.truncations.append(step_data["truncated"])
        return self


class TrueState(StepDataCallback):
    """Records beside each observation: ``success`` and, where there are such, the simulator's state and the goal.

    Rewards and flags are recorded as plain numbers, whatever the environment wraps them in.

    A maze that draws a new goal when one is reached returns one more observation with the old goal, while its next
    reward is already that of the new one (gymnasium-robotics, envs/maze/point_maze.py: ``update_goal`` comes last).
    What is recorded is the goal that the next step is rewarded for. ``success`` is of the step that led to the row.
    """

    def __call__(self, env: gymnasium.Env, obs: Any, info: dict[str, Any], **step: Any) -> dict[str, Any]:
        core: Any = env.unwrapped
        name = outcome.name_of(env)
        recorded: dict[str, Any] = {"success": bool(outcome.success(info, name))}
        if hasattr(getattr(core, "data", None), "qpos"):
            recorded |= {"qpos": core.data.qpos.copy(), "qvel": core.data.qvel.copy()}
        if hasattr(core, "get_env_state"):  # Adroit's has more than the joints: where the target or the board is
            recorded |= {name: np.array(value) for name, value in core.get_env_state().items()}
        if "obj_pos" in recorded:
            # AdroitHandRelocate gives the ball's place here, but takes where its joints start from: gymnasium-robotics
            # 1.4.2, envs/adroit_hand/adroit_relocate.py, get_env_state and set_env_state.
            recorded["obj_pos"] = core.model.body_pos[core.obj_body_id].copy()
        if hasattr(core, "_cur_button_states"):  # of OGBench's puzzles and scenes, part of their state
            recorded["button_states"] = np.array(core._cur_button_states)
        if isinstance(obs, dict) and "desired_goal" in obs and hasattr(core, "goal"):
            recorded["goal"] = np.array(core.goal)
            obs = obs | {"desired_goal": recorded["goal"]}
        data = super().__call__(env=env, obs=obs, info=recorded, **step)
        if step:  # not a reset
            data["reward"] = outcome.number(data["reward"], f"the reward of {name}")
            for flag in ("terminated", "truncated"):
                data[flag] = outcome.truth(data[flag], f"{flag!r} of {name}")
        return data


def rows(first: Any) -> Tree:
    """The beginning of a tree of rows."""
    if isinstance(first, dict):
        return {key: rows(value) for key, value in first.items()}
    if isinstance(first, tuple):
        return tuple(map(rows, first))
    return [np.array(first)]


def append(tree: Tree, row: Any) -> None:
    """Add a row to every leaf; it is copied."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            append(branch, row[key])
    elif isinstance(tree, tuple):
        for branch, value in zip(tree, row, strict=True):
            append(branch, value)
    else:
        tree.append(np.array(row))
