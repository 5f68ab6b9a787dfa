"""docs/your_data.md does what it says: its blocks run as a user would run them, and its errors are those one meets."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from minari.data_collector import EpisodeBuffer
from pages import DOCS, run_page
from tiny import WITHOUT_FIGURES, compose

from mfrl.app.train import train
from mfrl.errors import MfrlError
from mfrl.runs.targets import build

PAGE = (DOCS / "your_data.md").read_text(encoding="utf-8")
SMALLER = {
    "EPISODES = 60": "EPISODES = 3",
    "updates=3000 eval.every=1000": f"updates=2 eval.every=2 {WITHOUT_FIGURES}",
    "updates=1000 eval.every=500": f"updates=2 eval.every=2 {WITHOUT_FIGURES}",
    "eval.episodes=10": "eval.episodes=1",
    "episodes=20": "episodes=1",
}


def results(folder: Path) -> list[dict]:
    """Of the two runs of the page."""
    return [json.loads((folder / "runs" / name / "result.json").read_text()) for name in ("pendulum", "robot")]


def test_the_page_runs_at_a_small_size(tmp_path: Path) -> None:
    run_page("your_data.md", tmp_path, SMALLER)
    pendulum, robot = results(tmp_path)
    assert pendulum["dataset"] == "my/pendulum-v0"
    assert {"eval/return", "eval/normalized_score"} <= pendulum["final"].keys()
    assert robot["dataset"] == "my/robot-v0"
    assert "eval/return" not in robot["final"]


@pytest.mark.slow
def test_the_page_as_it_stands_learns_to_swing_the_pendulum_up(tmp_path: Path) -> None:
    run_page("your_data.md", tmp_path)
    pendulum, _ = results(tmp_path)
    assert pendulum["final"]["eval/return"] > -700, "the logged episodes return -960 on average"


def episode(steps: int = 50, observations: int | None = None) -> EpisodeBuffer:
    rng = np.random.default_rng(0)
    return EpisodeBuffer(
        observations=rng.standard_normal((steps + 1 if observations is None else observations, 3), np.float32),
        actions=rng.uniform(-2, 2, (steps, 1)).astype(np.float32),
        rewards=rng.standard_normal(steps).tolist(),
        terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True] * (steps > 0),
    )


def gap() -> EpisodeBuffer:
    made = episode()
    made.observations[7, 1] = np.nan
    return made


def too_far() -> EpisodeBuffer:
    made = episode()
    made.actions[3] = 2.5
    return made


def two_logs() -> EpisodeBuffer:
    made = episode()
    made.truncations[2] = True
    return made


OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(-2.0, 2.0, (1,), np.float32)
REFUSED = {
    "a name mistyped": {"dataset": "my/pendulm-v0"},
    "no version in the id": {"dataset": "my/pendulum"},
    "as many observations as actions": {"episode": lambda: episode(50, 50)},
    "a gap in the log": {"episode": gap},
    "an action out of bounds": {"episode": too_far},
    "actions without bounds": {"actions": Box(-np.inf, np.inf, (1,), np.float32)},
    "discrete actions": {"actions": Discrete(2)},
    "an end inside an episode": {"episode": two_logs},
    "an environment that observes something else": {"overrides": ["env.gym_id=MountainCarContinuous-v0"]},
    "no environment, and evaluation in one": {"overrides": ["evaluation=simulator"]},
    "a class from a package not trusted": {"overrides": ["env.gym_id=my_robot:Reach-v0"]},
}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_refused_is_said_as_the_page_quotes_it(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {wrong} |"))
    quoted = re.findall(r"`([^`]+)`", row.split("|")[2])
    case = REFUSED[wrong]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    actions = case.get("actions", ACTIONS)
    made = case.get("episode", episode)()
    if isinstance(actions, Discrete):
        made = EpisodeBuffer(**{**vars(made), "actions": np.zeros(50, np.int64)})
    minari.create_dataset_from_buffers("my/pendulum-v0", [made], observation_space=OBSERVATIONS, action_space=actions)

    settings = [f"env.dataset={case.get('dataset', 'my/pendulum-v0')}", "network=small", "updates=1"]
    settings += case.get("overrides", ["evaluation=held_out"])
    cfg = compose("train", "env=minari/dataset", *settings)
    with pytest.raises(MfrlError) as error:
        train(cfg, settings)
    assert quoted
    for part in quoted:
        assert part in str(error.value)


def test_every_refusal_of_the_page_is_tried() -> None:
    table = PAGE.split("## What is refused")[1]
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:] == list(REFUSED)


MY_ROBOT = """
import gymnasium
import numpy as np

class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.full(3, action[0], np.float32), 0.0, False, False, {"success": False}

gymnasium.register("Reach-v0", "my_robot:Reach", max_episode_steps=10)
"""


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("named", ["by the user", "by the dataset"])
def test_an_environment_of_ones_own_is_built_when_its_package_is_trusted(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_robot.py").write_text(MY_ROBOT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    if named == "by the user":
        recorded, settings = (
            {"observation_space": OBSERVATIONS, "action_space": ACTIONS},
            ["env.gym_id=my_robot:Reach-v0"],
        )
    else:
        importlib.import_module("my_robot")
        recorded, settings = {"env": "Reach-v0", "eval_env": "Reach-v0"}, []
    minari.create_dataset_from_buffers("my/reach-v0", [episode(), episode()], **recorded)
    settings += ["env=minari/dataset", "env.dataset=my/reach-v0"]
    trusting, wary = (compose("train", *settings, *more) for more in (["trust=[my_robot]"], []))
    with pytest.raises(MfrlError, match="my_robot"):
        build(wary.data).setup()
    data = build(trusting.data)
    data.setup()
    env = data.env.make()
    env.reset(seed=0)
    assert env.step(np.ones(1, np.float32))[0].tolist() == [2.0, 2.0, 2.0], "an action of 1 is the upper bound"
