"""Images of a collected episode by OGBench and gymnasium alone; imports no more than that takes."""

from __future__ import annotations

import gymnasium
import numpy as np

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import environment_seed, episode_rng
from mfrl.collect.ogbench.manipspace import ManipspaceCollector


def replay(settings: GenerationSettings) -> np.ndarray:
    """Stacks of 3 along the first training episode of seed 0, ``(steps + 1, 3, 64, 64, 3)``.

    Only the actions are ours, in full precision; the images are those of OGBench's own environment.
    """
    collector = ManipspaceCollector(settings)
    actions = collector._attempt(episode_rng(0, "train", 0))["actions"]
    env = gymnasium.make(settings.env_id, terminate_at_goal=False, mode="data_collection", disable_env_checker=True)
    env.reset(seed=0)  # as every simulator of ours begins: compiled
    env.observation_space = env.observation_space  # else every step renders twice
    env = gymnasium.wrappers.FrameStackObservation(env, 3)
    stacks = [env.reset(seed=environment_seed(episode_rng(0, "train", 0)))[0]]
    return np.stack(stacks + [env.step(action)[0] for action in actions])
