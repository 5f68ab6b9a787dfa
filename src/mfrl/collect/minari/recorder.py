"""Records episodes with Minari's DataCollector, without JAX and with the states that a replay needs.

This module imports Minari, which is slow, so other modules import it only when a collection starts.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from minari import DataCollector, StepDataCallback
from minari.data_collector.episode_buffer import EpisodeBuffer

from mfrl.envs import outcome

#: The rows of an observation, or of what is recorded with it. Every leaf is a list of arrays, one for each step.
Tree = dict[str, Any] | tuple[Any, ...] | list[np.ndarray]


class Recorder(DataCollector):
    """Records every step of an environment without loss, as Minari's own collector does.

    Minari's collector needs JAX for nested observations. This class does not need it.
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
        self._tmp_dir.cleanup()  # otherwise Python warns when it removes the folder at its end


class Rows(EpisodeBuffer):
    """An episode to which steps are added in place."""

    def add_step_data(self, step_data: dict[str, Any]) -> Rows:
        append(self.observations, step_data["observation"])
        append(self.actions, step_data["action"])
        append(self.infos, step_data["info"])
        self.rewards.append(step_data["reward"])
        self.terminations.append(step_data["terminated"])
        self.truncations.append(step_data["truncated"])
        return self


class TrueState(StepDataCallback):
    """Records with each observation ``success`` and, if the environment has them, the simulator's state and the goal.

    ``success`` belongs to the step that led to the observation. Rewards and flags are recorded as plain numbers, also
    where the environment returns arrays.

    A maze draws a new goal when the old one is reached. Its observation then still has the old goal, but its next
    reward is for the new one (gymnasium-robotics, envs/maze/point_maze.py: ``update_goal`` comes last). The recorded
    goal is the one that the next step is rewarded for.
    """

    def __call__(self, env: gymnasium.Env, obs: Any, info: dict[str, Any], **step: Any) -> dict[str, Any]:
        core: Any = env.unwrapped
        name = outcome.name_of(env)
        recorded: dict[str, Any] = {"success": bool(outcome.success(info, name))}
        if hasattr(getattr(core, "data", None), "qpos"):
            recorded |= {"qpos": core.data.qpos.copy(), "qvel": core.data.qvel.copy()}
        if hasattr(core, "get_env_state"):  # Adroit: besides the joints, the place of the target or of the board
            recorded |= {name: np.array(value) for name, value in core.get_env_state().items()}
        if "obj_pos" in recorded:
            # AdroitHandRelocate's get_env_state returns the ball's place, but its set_env_state expects the place where
            # the ball's joints start (gymnasium-robotics 1.4.2, envs/adroit_hand/adroit_relocate.py).
            recorded["obj_pos"] = core.model.body_pos[core.obj_body_id].copy()
        if hasattr(core, "_cur_button_states"):  # a part of the state of OGBench's puzzles and scenes
            recorded["button_states"] = np.array(core._cur_button_states)
        if isinstance(obs, dict) and "desired_goal" in obs and hasattr(core, "goal"):
            recorded["goal"] = np.array(core.goal)
            obs = obs | {"desired_goal": recorded["goal"]}
        data = super().__call__(env=env, obs=obs, info=recorded, **step)
        if step:  # empty after a reset
            data["reward"] = outcome.number(data["reward"], f"the reward of {name}")
            for flag in ("terminated", "truncated"):
                data[flag] = outcome.truth(data[flag], f"{flag!r} of {name}")
        return data


def rows(first: Any) -> Tree:
    """A tree of rows with one row."""
    if isinstance(first, dict):
        return {key: rows(value) for key, value in first.items()}
    if isinstance(first, tuple):
        return tuple(map(rows, first))
    return [np.array(first)]


def append(tree: Tree, row: Any) -> None:
    """Add a row to every leaf. The arrays are copied."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            append(branch, row[key])
    elif isinstance(tree, tuple):
        for branch, value in zip(tree, row, strict=True):
            append(branch, value)
    else:
        tree.append(np.array(row))
