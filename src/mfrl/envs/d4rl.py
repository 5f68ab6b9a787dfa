"""The original D4RL benchmark's rewards and terminations, for Minari's datasets and gymnasium-robotics' environments.

One rule labels the data (arrays of transitions) and the environment (one transition at a time), so that a policy is
evaluated by the labels it was trained on. docs/d4rl.md has the comparison. Sources: Farama-Foundation/D4RL,
``d4rl/hand_manipulation_suite/*_v0.py`` and ``scripts/generation/relabel_antmaze_rewards.py``.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from mfrl.errors import EnvError, did_you_mean, require

#: D4RL subtracts this much of the distance from hand to object; gymnasium-robotics 1.2.1 to 1.4.2 add it.
HAND_WEIGHT = 0.1
#: D4RL counts the pen as dropped if its centre is below this height.
PEN_DROPPED = 0.075
#: Distance from the goal, in the simulator's length unit, within which D4RL labels an ant as there.
GOAL_RADIUS = 0.5

#: How many numbers the task of each rule observes.
OBSERVATION_DIM = {"pen": 45, "door": 39, "hammer": 46, "relocate": 39}
RULES = tuple(OBSERVATION_DIM)


def check_rule(rule: str) -> None:
    """Refuse a rule that is not in ``RULES``.

    Raises:
        ConfigError: the message has similar names.
    """
    near = did_you_mean(str(rule), RULES)
    require("env.rule", rule in RULES, rule, f"one of {', '.join(RULES)}{near}")


def adroit_labels(
    rule: str, next_observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """D4RL's dense rewards and terminations from those of gymnasium-robotics 1.2.1 to 1.4.2.

    ``door``, ``hammer`` and ``relocate`` count the distance from hand to object with D4RL's sign. ``pen`` ends when
    the pen is dropped.

    Args:
        rule: one of ``RULES``.
        next_observations: ``(n, observation_dim)``, after the action.
        rewards, terminated: ``(n,)``, as the environment gives them.

    Returns:
        rewards and terminations ``(n,)``.
    """
    if rule == "pen":
        return rewards, terminated | (next_observations[:, 26] < PEN_DROPPED)
    return rewards - 2.0 * HAND_WEIGHT * hand_distance(rule, next_observations), terminated


def evidence_of_sign(rule: str, next_observations: np.ndarray, rewards: np.ndarray) -> float:
    """Whether recorded rewards add the hand's distance (positive) or subtract it (negative); 0 if they do not tell.

    The answer is exact for ``relocate`` while the ball lies on the table, when the reward has no other term. For
    ``door`` while it is closed, all other terms are known except a small penalty of velocities, so that it takes many
    steps. The other terms of ``hammer`` are not observed, and ``pen`` has no term of the hand's distance.
    """
    if rule == "relocate":
        term = HAND_WEIGHT * hand_distance(rule, next_observations)
        alone = np.isclose(np.abs(rewards), term, rtol=0.0, atol=1e-5)
        return float(np.sign(rewards[alone]).sum())
    if rule == "door":
        term, hinge = HAND_WEIGHT * hand_distance(rule, next_observations), next_observations[:, 28]
        rest = rewards + 0.1 * (hinge - 1.57) ** 2
        return float((np.abs(rest + term) - np.abs(rest - term))[hinge < 0.2].sum())
    return 0.0


def adds_hand_distance(rule: str, core: Any) -> bool:
    """Whether an environment adds the hand's distance to the reward; D4RL, and perhaps a later package, subtracts it.

    The function makes one step of the simulator as it was built, where no bonus is paid. The next reset undoes it.

    Args:
        rule: any but ``pen``, which has no such term.
        core: the bare environment of that task.

    Raises:
        EnvError: the reward neither adds nor subtracts it, e.g. a sparse reward or another task's.
    """
    observation, reward, *_ = core.step(np.zeros(core.action_space.shape))
    others = _without_hand(rule, observation, core.data)
    term = HAND_WEIGHT * hand_distance(rule, observation[None])[0]
    if np.isclose(reward, others + term, rtol=0.0, atol=1e-6):
        return True
    if np.isclose(reward, others - term, rtol=0.0, atol=1e-6):
        return False
    raise EnvError(
        f"env.rule={rule} expects the dense reward of that Adroit task: a first step should earn {others + term:g} "
        f"(gymnasium-robotics 1.2.1 to 1.4.2) or {others - term:g} (D4RL), and earned {reward:g}"
    )


def _without_hand(rule: str, observation: np.ndarray, data: Any) -> float:
    """A reward without a bonus, and without the term of the hand's distance."""
    if rule == "door":
        return -0.1 * (observation[28] - 1.57) ** 2 - 1e-5 * np.sum(data.qvel**2)
    if rule == "hammer":
        head, nail, goal = (data.site(name).xpos for name in ("tool", "S_target", "nail_goal"))
        swing = 1e-2 * np.linalg.norm(data.qvel)
        return float(-np.linalg.norm(head - nail) - 10.0 * np.linalg.norm(nail - goal) - swing)
    return 0.0


def hand_distance(rule: str, observations: np.ndarray) -> np.ndarray:
    """Distance ``(n,)`` from the palm to the handle, the hammer or the ball, computed from observations."""
    x = observations
    offset = {"door": x[:, 35:38], "hammer": x[:, 33:36] - x[:, 36:39], "relocate": x[:, 30:33]}[rule]
    return np.linalg.norm(offset, axis=-1)


def goal_labels(next_positions: np.ndarray, goal: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """D4RL's labels of antmaze: a step that ends within ``GOAL_RADIUS`` of the goal has reward 1 and terminates.

    Args:
        next_positions: ``(n, 2)``, after the action.
        goal: ``(x, y)``.

    Returns:
        rewards and terminations ``(n,)``.
    """
    near = np.linalg.norm(next_positions - np.asarray(goal), axis=-1) <= GOAL_RADIUS
    return near.astype(np.float64), near


class AdroitLabels(gym.Wrapper, RecordConstructorArgs):
    """An Adroit environment with the rewards and terminations of :func:`adroit_labels`, whatever its own are.

    Raises:
        ConfigError: there is no such rule.
        EnvError: the environment is not of that task, or its reward is neither the package's nor D4RL's.
    """

    def __init__(self, env: gym.Env, rule: str) -> None:
        check_rule(rule)
        if env.observation_space.shape != (OBSERVATION_DIM[rule],):
            raise EnvError(f"env.rule={rule} is for {OBSERVATION_DIM[rule]} numbers, not {env.observation_space}")
        RecordConstructorArgs.__init__(self, rule=rule)
        gym.Wrapper.__init__(self, env)
        self.rule = rule
        self.departs = rule == "pen" or adds_hand_distance(rule, env.unwrapped)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self.departs:
            return observation, reward, terminated, truncated, info
        rewards, ends = adroit_labels(self.rule, observation[None], np.array([reward]), np.array([terminated]))
        return observation, float(rewards[0]), bool(ends[0]), truncated, info
