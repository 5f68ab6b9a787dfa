"""Runs whose policies are loaded and exported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from tiny import compose

from mfrl.app.train import train

KEYS = ("joints", "goal")


def logged(env_id: str, dataset: str, root: Path) -> None:
    """Three episodes of random actions as a Minari dataset."""
    env, episodes = gymnasium.make(env_id), []
    for number in range(3):
        env.action_space.seed(number)
        seen, actions, rewards, over = [env.reset(seed=number)[0]], [], [], False
        while not over:
            actions.append(env.action_space.sample())
            observation, reward, _, over, _ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
        steps = len(rewards)
        episodes.append(
            EpisodeBuffer(
                observations={key: np.stack([one[key] for one in seen]) for key in seen[0]},
                actions=np.stack(actions),
                rewards=rewards,
                terminations=steps * [False],
                truncations=[*(steps - 1) * [False], True],
            )
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(dataset, episodes, env=env_id, eval_env=env_id)


@pytest.fixture(scope="session")
def arm_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on an environment of one's own, by the names of their algorithms."""
    root = tmp_path_factory.mktemp("arm")
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("arm")  # which registers the environment

    (root / "datasets").mkdir()
    logged("Arm-v0", "my/arm-v0", root / "datasets")
    for algo in ("bc", "meanflowql"):
        changes = [
            "env=minari/dataset",
            "env.dataset=my/arm-v0",
            f"env.observation_keys=[{','.join(KEYS)}]",
            "network=small",
            f"algo={algo}",
            "trust=[arm]",
            f"data_dir={root / 'datasets'}",
            f"run_dir={root / algo}",
            "batch_size=8",
            "updates=2",
            "eval.every=2",
            "eval.episodes=4",
            "eval.num_envs=2",
            "eval.workers=0",
            "logger=csv",
            "accelerator=cpu",
        ]
        train(compose("train", *changes), changes)
    return {algo: root / algo for algo in ("bc", "meanflowql")}
