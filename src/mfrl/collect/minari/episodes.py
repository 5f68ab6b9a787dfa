"""Runs, checks and records the episodes of a Minari dataset, one after another."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mfrl
from mfrl.collect.minari.files import check_room
from mfrl.collect.minari.plan import Plan, box_of_actions, build
from mfrl.collect.minari.policies import Behaviour, Uniform, Waypoints
from mfrl.collect.writing import progress_bar
from mfrl.envs import outcome
from mfrl.envs.vector import global_state_kept
from mfrl.errors import CollectError
from mfrl.randomness import derived_seed
from mfrl.system import signals

if TYPE_CHECKING:
    import gymnasium


def record(plan: Plan, dataset: str, seed: int, progress: bool) -> list[int]:
    """Run all episodes of a plan, and write the dataset into Minari's current folder of datasets.

    Args:
        plan: what acts where, and for how long.
        dataset: the Minari id.
        seed: seed of the dataset.
        progress: show a progress bar.

    Returns:
        the lengths of the episodes.

    Raises:
        CollectError: a number is not finite, or the disk is nearly full.
        EnvError: see :func:`run_episode`.
    """
    from mfrl.collect.minari.recorder import Recorder

    lengths: list[int] = []
    recorder = Recorder(plan.env)
    total = plan.episodes or plan.steps
    assert total is not None, "a plan has one of the two"
    unit = "episodes" if plan.steps is None else "steps"
    with closing(recorder), progress_bar(progress, unit) as bar, global_state_kept():
        task = bar.add_task(dataset, total=total, rate="")
        started = time.perf_counter()
        for episode in count():
            signals.obey()
            done = len(lengths) if plan.steps is None else sum(lengths)
            rate = sum(lengths) / (time.perf_counter() - started)
            bar.update(task, completed=done, rate=f"{rate:,.0f} transitions/s")
            if done >= total:
                break
            check_room(Path(recorder.datasets_path), done / total)
            max_steps = sys.maxsize if plan.steps is None else plan.steps - done
            lengths.append(len(run_episode(recorder, plan.behaviour, seed, episode, max_steps)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Minari would like an e-mail address
            made = recorder.create_dataset(
                dataset,
                eval_env=_gym_spec(plan.eval_spec),
                algorithm_name=plan.algorithm,
                author="mfrl",
                code_permalink=f"mfrl {mfrl.__version__}, mfrl.collect.minari.runner",
                description=plan.description,
            )
        if plan.reference_episodes:
            made.storage.update_metadata(reference_scores(plan.eval_spec, plan.reference_episodes, seed))
    return lengths


def run_episode(
    env: gymnasium.Env, behaviour: Behaviour, seed: int, episode: int, max_steps: int = sys.maxsize
) -> list[float]:
    """Run one episode of at most ``max_steps`` steps. Its random numbers depend on (seed, episode) alone.

    Returns:
        the rewards.

    Raises:
        CollectError: an action, an observation or a reward is not finite.
        EnvError: a reward is not one number, or ``terminated`` or ``truncated`` is no boolean.
    """
    name = outcome.name_of(env)
    episode_seed = derived_seed(seed, "collection episode", episode) % 2**31
    np.random.seed(episode_seed)  # noqa: NPY002 - OGBench draws from the global generator
    env.action_space.seed(episode_seed)
    behaviour.begin(episode)
    observation, _ = env.reset(seed=episode_seed)
    rewards: list[float] = []

    def check(what: str, value: Any) -> None:
        if not _is_finite(value):
            where = f"in episode {episode} after {len(rewards)} steps"
            raise CollectError(f"{name} gave {what} that is not finite, {where}")

    check("an observation", observation)
    while len(rewards) < max_steps:
        action = behaviour.action(observation).astype(env.action_space.dtype)
        if not np.isfinite(action).all():
            raise CollectError(f"The action of episode {episode}, step {len(rewards)} is not finite: {action}")
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(outcome.number(reward, f"the reward of {name}"))
        check("an observation", observation)
        check("a reward", rewards[-1])
        flags = {"terminated": terminated, "truncated": truncated}
        if any(outcome.truth(value, f"{flag!r} of {name}") for flag, value in flags.items()):
            break
    return rewards


def _is_finite(tree: Any) -> bool:
    """Whether every number in an observation, which may be nested, is finite."""
    if isinstance(tree, dict | tuple):
        return all(map(_is_finite, tree.values() if isinstance(tree, dict) else tree))
    return bool(np.isfinite(tree).all())


def reference_scores(eval_spec: str, episodes: int, seed: int) -> dict[str, Any]:
    """Mean returns of random actions and of the controller without noise, by the names that Minari gives them."""
    with closing(build(eval_spec)) as env:
        means = {
            name: float(np.mean([sum(run_episode(env, who, seed, k)) for k in range(episodes)]))
            for name, who in (
                ("ref_min_score", Uniform(box_of_actions(env), seed)),
                ("ref_max_score", Waypoints(env, 0.0, seed)),
            )
        }
    return means | {"num_episodes_average_score": episodes}


def _gym_spec(gym_spec: str) -> Any:
    from gymnasium.envs.registration import EnvSpec as GymSpec

    return GymSpec.from_json(gym_spec)
