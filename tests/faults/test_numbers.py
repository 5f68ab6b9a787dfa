"""No wrong number without a word: what an environment, a dataset or a training gone wild gives is refused or told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import hydra
import minari
import numpy as np
import pytest
import torch
from conftest import DATASET
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minari.data_collector import EpisodeBuffer
from omegaconf import OmegaConf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import MINARI, SPEC, WITH_FIGURES, algorithm, batch, compose, tiny_critic, tiny_mlp
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.app.fetch import fetch_missing
from mfrl.app.report import report
from mfrl.app.train import train
from mfrl.callbacks.explosions import Explosions
from mfrl.collect.minari.runner import collect
from mfrl.data.minari import MinariData
from mfrl.data.ogbench import OGBenchData
from mfrl.data.storage import _room
from mfrl.envs import minari as minari_envs
from mfrl.envs.evaluation import Evaluation, Evaluator
from mfrl.envs.spec import EnvSpec
from mfrl.errors import ConfigError, DataError, DivergedError, MfrlError
from mfrl.learning.training import Training
from mfrl.networks.critic import StateValue
from mfrl.networks.gaussian import GaussianMLP
from mfrl.randomness import generator
from mfrl.reformulation import Reformulation
from mfrl.report.groups import group_runs
from mfrl.runs.arguments import arguments_of
from mfrl.runs.read import FINISHED, Run
from mfrl.settings import CHOICES, RANGES
from mfrl.system.files import write_json
from mfrl.system.paths import CONFIG_DIR

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # no author, no permalink

#: Those that configurations name, by their class's name.
ALGORITHMS = {
    target.rpartition(".")[-1]: hydra.utils.get_class(target)
    for path in sorted(CONFIG_DIR.glob("algo/*.yaml"))
    if (target := OmegaConf.load(path).algo.get("_target_"))  # rlpd is sac with other settings
}

# ---- an environment that can be odd in one way at a time

TELLS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "nothing": lambda reached: {},
    "success": lambda reached: {"success": reached},
    "is_success": lambda reached: {"is_success": np.float32(reached)},
    "array": lambda reached: {"success": np.array([reached])},
    "numpy": lambda reached: {"success": np.bool_(reached)},
    "only when reached": lambda reached: {"success": True} if reached else {},
    "null": lambda reached: {"success": None},
    "text": lambda reached: {"success": "no"},
    "several": lambda reached: {"is_success": np.array([reached, False])},
    "half": lambda reached: {"success": 0.5},
    "nan": lambda reached: {"success": float("nan")},
}


class Odd(gym.Env):
    """A place on a line, moved by the action for ten steps; it refuses actions outside its bounds, as some do.

    Args:
        tells: one of ``TELLS``; what is reached is a place above 0.
        wraps: rewards and flags come as arrays of one number.
        spoilt: ``observation`` or ``reward``: NaN from the third step on.
        reward_size: of the reward, where several numbers are given instead of one.
    """

    def __init__(self, tells: str = "nothing", wraps: bool = False, spoilt: str = "", reward_size: int = 1) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(np.float32(-0.6), np.float32(1.6), (1,), np.float32)
        self.tells, self.wraps, self.spoilt, self.reward_size = tells, wraps, spoilt, reward_size
        self.taken: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, Any, Any, dict]:
        assert self.action_space.contains(action), f"{action!r} is outside of {self.action_space}"
        self.taken.append(action)
        self.steps += 1
        self.place += 0.1 * float(action[0])
        spoilt = self.steps >= 3
        reward = float("nan") if spoilt and self.spoilt == "reward" else -abs(self.place - 1.0)
        observation = self._observe()
        if spoilt and self.spoilt == "observation":
            observation[1] = np.nan
        outcome = [reward, False, self.steps == 10]
        if self.wraps:
            outcome = [np.array([value]) for value in outcome]
        if self.reward_size > 1:
            outcome[0] = np.full(self.reward_size, reward)
        return (observation, *outcome, TELLS[self.tells](self.place > 0))

    def _observe(self) -> np.ndarray:
        return np.array([self.place, self.steps], np.float32)


gym.register("Odd-v0", entry_point="faults.test_numbers:Odd", max_episode_steps=100)
TRUST = ("faults",)


def odd(**kwargs: Any) -> EnvSpec:
    return EnvSpec("Odd-v0", "minari", gym_spec=minari_envs.write_spec("Odd-v0", kwargs), trust=TRUST)


class Extreme:
    """Acts at either bound in turn."""

    action_dim, num_candidates = 1, 1

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return 1.0 - 2.0 * (observations[:, 1:] % 2)


def evaluate(**kwargs: Any) -> Evaluation:
    with Evaluator(odd(**kwargs), num_envs=2, workers=0) as evaluator:
        return evaluator.run(Extreme(), 3)


# ---- data and runs

SMALL = [*MINARI, "env.dataset=odd/odd-v0", f"trust=[{TRUST[0]}]"]


def make_dataset(root: Path, monkeypatch: pytest.MonkeyPatch, env: str | None = "Odd-v0", **changes: Any) -> Path:
    """``odd/odd-v0``: four episodes of ten steps at random; what is given replaces fields of the first."""
    rng = np.random.default_rng(0)

    def episode(**changes: Any) -> EpisodeBuffer:
        whole = {
            "observations": rng.standard_normal((11, 2)).astype(np.float32),
            "actions": rng.uniform(-0.6, 1.6, (10, 1)).astype(np.float32).clip(np.float32(-0.6), np.float32(1.6)),
            "rewards": rng.uniform(-1, 0, 10).tolist(),
            "terminations": [False] * 10,
            "truncations": [False] * 9 + [True],
        }
        return EpisodeBuffer(**whole | changes)

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    made_up = Odd()
    buffers = [episode(**changes), *(episode() for _ in range(3))]
    recorded = (
        {"env": env} if env else {"observation_space": made_up.observation_space, "action_space": made_up.action_space}
    )
    minari.create_dataset_from_buffers("odd/odd-v0", buffers, algorithm_name="random", **recorded)
    return root


def run(root: Path, run_dir: Path, *overrides: str, console: Console | None = None) -> dict[str, Any]:
    changes = [*SMALL, f"data_dir={root}", f"run_dir={run_dir}", *overrides]
    if any(override.startswith("resume=") for override in overrides):
        changes = list(overrides)
    return train(compose("train", *changes), changes, console or Console(quiet=True))


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}, which is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# ---- actions stay inside


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    numbers = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    size = draw(st.integers(1, 3))
    ends = np.array(
        draw(st.lists(st.lists(numbers, min_size=2, max_size=2, unique=True), min_size=size, max_size=size))
    )
    ends = np.sort(ends.astype(dtype), axis=1)
    return spaces.Box(ends[:, 0], ends[:, 1], dtype=dtype)


@given(space=boxes(), share=st.floats(-1, 1), kind=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=300, deadline=None)
@example(  # where even the mean of the bounds leaves them
    spaces.Box(1.9944843831512364, 1.9944843831512367, (1,), np.float64), 0.00532679283105777, np.float64
)
def test_scaled_actions_reach_the_bounds_exactly_and_never_leave_them(
    space: spaces.Box, share: float, kind: type
) -> None:
    low, middle, high = (minari_envs.to_bounds(np.full(space.shape, a, kind), space) for a in (-1.0, share, 1.0))
    np.testing.assert_array_equal(low, space.low)
    np.testing.assert_array_equal(high, space.high)
    assert space.contains(middle)
    assert middle.dtype == space.dtype


def test_an_environment_that_checks_its_actions_gets_its_bounds() -> None:
    env = minari_envs.make(odd().gym_spec, None, TRUST)
    env.reset(seed=0)
    for action in (-1.0, 1.0, np.nextafter(np.float32(1), np.float32(0))):
        env.step(np.array([action], np.float32))
    assert [float(a[0]) for a in env.unwrapped.taken[:2]] == [np.float32(-0.6), np.float32(1.6)]
    assert evaluate().lengths.tolist() == [10, 10, 10]


# ---- success, where it is told


@pytest.mark.parametrize("tells", ["success", "is_success", "array", "numpy", "only when reached"])
def test_success_is_read_in_every_form_that_has_one_meaning(tells: str) -> None:
    result = evaluate(tells=tells)
    # Three episodes that begin in places of their own, of which some come above 0: the same in every form.
    assert result.successes is not None
    assert result.successes.tolist() == evaluate(tells="success").successes.tolist()
    assert 0.0 < result.summary()["eval/success"] <= 1.0


@pytest.mark.parametrize("tells", ["nothing", "null"])
def test_where_nothing_tells_of_success_none_is_reported(tells: str) -> None:
    seen = []
    with Evaluator(odd(tells=tells), num_envs=2, workers=0) as evaluator:
        result = evaluator.run(Extreme(), 3, progress=lambda *progress: seen.append(progress))
    assert result.successes is None
    assert list(result.summary()) == ["eval/return", "eval/length"]
    assert "successes" not in result.to_json_dict()
    assert {success for _, _, success in seen} == {None}


@pytest.mark.parametrize(("tells", "shown"), [("text", "'no'"), ("several", "array"), ("half", "0.5"), ("nan", "nan")])
def test_what_is_no_truth_value_is_refused(tells: str, shown: str) -> None:
    with pytest.raises(MfrlError, match=r"info\['(is_)?success'\] of Odd-v0 is .*must be a truth value") as refused:
        evaluate(tells=tells)
    assert shown in str(refused.value)


def test_a_run_whose_environment_tells_nothing_shows_no_column_of_it_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    console = Console(record=True, width=200, force_terminal=False, file=io.StringIO())
    result = run(root, tmp_path / "run", WITH_FIGURES, console=console)
    assert result["final"].keys() == result["mean_of_last_three"].keys() == {"eval/return", "eval/length"}
    assert result["warnings"] == []
    for line in lines(tmp_path / "run" / "eval.jsonl"):
        assert not [key for key in line if "success" in key]
    assert "success" not in console.export_text().lower()
    assert "success" not in (tmp_path / "run" / "metrics.csv").read_text()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert not [tag for tag in events.Tags()["scalars"] if "success" in tag]
    *_, chosen = events.Tensors("custom_scalars__config__")  # the last is shown
    assert b"eval/return" in chosen.tensor_proto.string_val[0]
    assert b"success" not in chosen.tensor_proto.string_val[0]

    shown = Console(record=True, width=200, file=io.StringIO())
    report([tmp_path / "run"], out=tmp_path / "report", console=shown)
    texts = [
        shown.export_text(),
        *(path.read_text() for path in (tmp_path / "report").glob("*.*") if path.suffix != ".png"),
    ]
    assert not [text for text in texts if "success" in text]
    assert any("return" in text for text in texts)


def test_an_environment_that_tells_of_successes_only_is_averaged_over_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfrl.app.results import final_scores
    from mfrl.runs.folder import RunFolder

    path = tmp_path / "eval.jsonl"
    each = [{"updates": k, "eval/return": float(k), "episodes": 1} for k in (1, 2, 3)]
    each[2]["eval/success"] = 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in each))
    scores = final_scores(RunFolder(tmp_path))
    assert scores["final"] == {"eval/return": 3.0, "eval/success": 1.0}
    assert scores["mean_of_last_three"] == {"eval/return": 2.0}


def test_a_report_never_averages_successes_with_returns(tmp_path: Path) -> None:
    # An environment that tells of a success only where there is one: the first seed had one, the second had none.
    def finished(seed: int, **scores: float) -> Run:
        return Run(
            tmp_path / str(seed),
            FINISHED,
            config={"seed": seed, "algo_name": "bc", "env.suite": "minari"},
            result={"env": "Odd-v0", "dataset": "odd/odd-v0"},
            provenance={"source": "unrecorded"},
            evaluations=[{"updates": 8, "episodes": 2, "eval/return": -3.0 - seed, **scores}],
        )

    told, silent = finished(0, **{"eval/success": 1.0}), finished(1)
    (group,) = group_runs([told, silent]).groups
    assert group.metric.name == "eval/return"
    assert group.values.tolist() == [-3.0, -4.0]
    (group,) = group_runs([told]).groups
    assert (group.metric.name, group.values.tolist()) == ("eval/success", [100.0])


# ---- what environments give


@pytest.mark.parametrize(("spoilt", "what"), [("observation", "an observation"), ("reward", "a reward")])
def test_nan_from_an_environment_is_blamed_on_it(spoilt: str, what: str) -> None:
    with pytest.raises(
        MfrlError, match=f"Odd-v0 gave {what} that is not finite, in evaluation episode 0 after 3 steps"
    ):
        evaluate(spoilt=spoilt)


@pytest.mark.parametrize("spoilt", ["observation", "reward"])
def test_nan_while_collecting_is_blamed_on_the_environment_and_leaves_nothing(spoilt: str, tmp_path: Path) -> None:
    with pytest.raises(MfrlError, match=f"Odd-v0 gave an? {spoilt} that is not finite, in episode 0 after [23] steps"):
        collect(
            "odd/made-v0", tmp_path, policy="random", env=odd(spoilt=spoilt), episodes=1, trust=TRUST, progress=False
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_nan_reward_ends_a_run_without_a_result_or_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    with pytest.raises(MfrlError, match="Odd-v0 gave a reward that is not finite"):
        run(root, tmp_path / "run", "+env.gym_kwargs.spoilt=reward")
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "eval.jsonl").exists()


def test_arrays_of_one_number_are_rewards_and_flags_as_good_as_any(tmp_path: Path) -> None:
    plain, wrapped = evaluate(), evaluate(wraps=True)
    np.testing.assert_array_equal(plain.returns, wrapped.returns)
    np.testing.assert_array_equal(plain.lengths, wrapped.lengths)
    for name, wraps in (("odd/plain-v0", False), ("odd/wrapped-v0", True)):
        collect(name, tmp_path, policy="random", env=odd(wraps=wraps), episodes=3, trust=TRUST, progress=False)
    plain, wrapped = (MinariData(f"odd/{name}-v0", str(tmp_path), trust=TRUST) for name in ("plain", "wrapped"))
    for data in (plain, wrapped):
        data.setup()
    for field in ("observations", "actions", "rewards", "masks", "starts"):
        assert torch.equal(getattr(plain.train, field), getattr(wrapped.train, field)), field


def test_a_reward_of_several_numbers_is_refused() -> None:
    with pytest.raises(MfrlError, match=r"the reward of Odd-v0 is array\(.*must be one number"):
        evaluate(reward_size=2)


def test_json_never_holds_what_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "good.json", {"a": 1.0})
    for value in (float("nan"), float("inf")):
        with pytest.raises(MfrlError, match=r"bad\.json is not written: it would hold a number that is not finite"):
            write_json(tmp_path / "bad.json", {"a": [value]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json"]


# ---- an end inside an episode


@pytest.mark.parametrize("field", ["truncations", "terminations"])
def test_an_end_inside_an_episode_of_a_minari_dataset_is_refused_by_name(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [False, False, True] + [False] * 7
    root = make_dataset(tmp_path, monkeypatch, env=None, **{field: ends})
    data = MinariData("odd/odd-v0", str(root), cache=False)
    with pytest.raises(DataError, match=f"odd/odd-v0: episode 0, field '{field}' is true at step 2 of 10"):
        data.setup()


@pytest.mark.parametrize("field", ["timeouts", "truncations", "terminations"])
def test_whatever_marks_an_end_in_an_npz_ends_the_trajectory_there(field: str, tmp_path: Path, data_dir: Path) -> None:
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{DATASET}-v0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    cut, rows = 40, len(arrays["terminals"])
    assert not arrays["terminals"][: cut + 1].any()
    arrays[field] = np.arange(rows) == cut
    np.savez(path, **arrays)
    data = OGBenchData(DATASET, data_dir=str(tmp_path), cache=False)
    data.setup()
    whole = OGBenchData(DATASET, data_dir=str(data_dir), cache=False)
    whole.setup()
    assert set(whole.train.starts.tolist()) - set(data.train.starts.tolist()) == {cut}

    np.savez(path, **arrays | {field: np.full(rows, 2)})
    with pytest.raises(DataError, match=f"field '{field}' holds values other than 0 and 1"):
        OGBenchData(DATASET, data_dir=str(tmp_path), cache=False).setup()
    np.savez(path, **arrays | {field: np.zeros((rows, 1), bool)})
    with pytest.raises(DataError, match=f"field '{field}' has shape"):
        OGBenchData(DATASET, data_dir=str(tmp_path), cache=False).setup()


# ---- explosions that stay finite


def test_an_exploded_run_is_warned_about_on_the_screen_in_its_result_and_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    screen = Console(record=True, width=200, file=io.StringIO())
    result = run(
        root, tmp_path / "run", "algo.critic_lr=100", "algo.actor_lr=10", "algo.actor_warmup=0", console=screen
    )
    of_q, of_flow = (
        next(text for text in result["warnings"] if text.startswith(kind)) for kind in ("Q was", "flow_loss was")
    )
    assert "rewards can add up to -" in of_q
    assert "training has blown up" in of_flow
    assert "a larger algo.alpha or algo.clip_targets=true" in of_q
    shown = screen.export_text()
    assert shown.count("warning Q was") >= 1
    assert "warning flow_loss was" in shown
    assert json.loads((tmp_path / "run" / "result.json").read_text())["warnings"] == result["warnings"]

    told = Console(record=True, width=400, file=io.StringIO())
    report([tmp_path / "run"], out=tmp_path / "report", console=told)
    for text in (
        told.export_text(),
        (tmp_path / "report" / "report.md").read_text(),
        (tmp_path / "report" / "runs.csv").read_text(),
    ):
        assert of_q in text
    # What was seen before a break is not forgotten.
    again = run(root, tmp_path / "run", f"resume={tmp_path / 'run'}", "updates=12", f"trust=[{TRUST[0]}]")
    assert [text.split(" was ")[0] for text in again["warnings"]] == [
        text.split(" was ")[0] for text in result["warnings"]
    ]


def test_values_of_the_data_s_own_actions_are_watched_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    result = run(root, tmp_path / "run", "algo=iql", "algo.critic_lr=100", "network.critic.hidden=[16]")
    of_q = next(text for text in result["warnings"] if text.startswith("Q was"))
    assert "Try a smaller learning rate" in of_q
    assert "clip_targets" not in of_q, "which IQL does not have"


def test_sound_training_is_not_warned_about() -> None:
    watch = Explosions()
    sound = {"q": -3.0, "q_min": -210.0, "q_max": 150.0, "policy_q": 0.0, "target": -1.0, "q_loss": 9e9}
    sound |= {"flow_loss": 1.2, "critic_loss": 39_000.0, "bound_loss": 3.0, "nll_loss": -40.0}
    assert watch.check(1, sound, (-200.0, 0.0)) == []
    assert watch.check(2, {"q_max": 9.0, "flow_loss": 999.0}, (0.0, 1e-6)) == []
    assert watch.check(3, {"nll_loss": 900.0}, None) == []
    assert watch.check(4, {"v": -190.0, "value_loss": 9_000.0, "critic_loss": 5_000.0}, (-200.0, 0.0)) == []


def test_each_kind_of_explosion_is_told_once_and_kept_at_its_worst() -> None:
    watch = Explosions()
    assert [text[:17] for text in watch.check(5, {"v": 300.0}, (-200.0, 0.0))] == ["Q was 300 at upda"]
    assert watch.check(6, {"q_min": -30_000.0, "flow_loss": 9e6}, (-200.0, 0.0))[0].startswith("flow_loss was 9e+06")
    assert watch.check(7, {"q_max": 400.0, "flow_loss": 2000.0}, (-200.0, 0.0)) == []
    assert watch.warnings[0].startswith("Q was -3e+04 at update 6")
    assert watch.warnings[1].startswith("flow_loss was 9e+06 at update 6")
    other = Explosions()
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert other.warnings == watch.warnings
    assert other.check(8, {"q_max": 500.0}, (-200.0, 0.0)) == []


def test_one_absurd_observation_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observations = np.zeros((11, 2), np.float32) + np.linspace(-1, 1, 11, dtype=np.float32)[:, None]
    for folder, value in (("absurd", 1e30), ("sound", 100.0)):
        observations[3, 1] = value
        root = make_dataset(tmp_path / folder, monkeypatch, env=None, observations=observations)
        for normalize in (True, False):
            data = MinariData("odd/odd-v0", str(root), cache=False, normalize=normalize, val_fraction=0.0)
            data.setup()
            if folder == "sound":
                assert data.warnings == []
            else:
                (warning,) = data.warnings
                assert "odd/odd-v0: feature 1 of the observations has deviation" in warning
                assert "one is 1e+30" in warning


def test_an_absurd_entry_of_an_npz_is_told_too(tmp_path: Path, data_dir: Path) -> None:
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{DATASET}-v0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["observations"][7, 0] = 1e20
    np.savez(path, **arrays)
    data = OGBenchData(DATASET, data_dir=str(tmp_path), cache=False)
    data.setup()
    assert any("feature 0 of the observations has deviation" in text for text in data.warnings)


# ---- a policy that is no number


class NaNCritic(MeanFlowQL):
    """Its critics are NaN after the fourth update; the actor's actions stay finite."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register_buffer("updates_made", torch.tensor(0.0))

    def critic_loss(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().critic_loss(*arguments)
        return torch.where(self.updates_made == 3, float("nan"), 1.0) * loss, metrics

    def after(self, k: Tensor, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().after(k, metrics) | {"updates_made": k + 1.0}


def test_an_evaluation_with_a_critic_of_nan_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    critic = ("algo._target_=faults.test_numbers.NaNCritic", "algo.num_candidates=3", "log.every=3")
    with pytest.raises(
        DivergedError, match=r"update 4: parameters are not finite \(critic\S* and 11 more.*not recorded"
    ):
        run(root, tmp_path / "run", *critic)  # six of the critic, as many of its average, none of the actor
    assert not (tmp_path / "run" / "eval.jsonl").exists()
    assert "eval/" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_a_checkpoint_is_spoken_of_only_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    wild = ("algo.critic_lr=1e38", "algo.actor_lr=1e38", "algo.actor_warmup=0")
    with pytest.raises(DivergedError, match="No checkpoint had been written yet") as told:
        run(root, tmp_path / "none", *wild, "log.every=8", "eval.every=8")
    assert "good checkpoint" not in str(told.value)
    with pytest.raises(DivergedError, match=r"parameters are not finite .*; no checkpoint is written"):
        run(root, tmp_path / "first", *wild, "log.every=100", "eval.every=100", "checkpoint.every=4")
    assert not list((tmp_path / "first").rglob("*.ckpt"))


# ---- settings and the machine


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_number_has_a_range_and_every_name_its_choices(name: str) -> None:
    kinds = {key: kind.split(" |")[0] for key, kind in arguments_of(ALGORITHMS[name]).items()}
    numbers = {key for key, kind in kinds.items() if kind in ("int", "float")}
    assert {"updates", "seed", "actor_lr"} <= numbers
    assert numbers <= RANGES.keys(), f"no range in mfrl/settings.py: {numbers - RANGES.keys()}"
    names = {key for key, kind in kinds.items() if kind == "str"}
    assert names <= CHOICES.keys(), f"no choices in mfrl/settings.py: {names - CHOICES.keys()}"


def build(name: str, **changes: Any) -> Algorithm:
    made = {
        "spec": SPEC,
        "actor": GaussianMLP if name == "GaussianBC" else tiny_mlp,
        "critic": tiny_critic,
        "value": partial(StateValue, hidden=[16]),
        "reformulation": Reformulation(1.0, -1.0),
        "updates": 10,
    }
    kind = ALGORITHMS[name]
    known = arguments_of(kind)
    return kind(**{key: value for key, value in (made | changes).items() if key in known or key in changes})


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return {True: "true", None: "null"}[value] if value is True or value is None else str(value)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nan_and_negative_numbers_are_refused_by_name_whatever_the_setting(name: str) -> None:
    build(name)
    known = arguments_of(ALGORITHMS[name]).keys()
    for setting in known & RANGES.keys():
        negative = () if setting == "target_entropy" else (-5, -3.0)  # which is negative as a rule
        for value in (float("nan"), *negative, True):
            with pytest.raises(ConfigError, match=f"{setting}={typed(value)}"):
                build(name, **{setting: value})
    for setting in known & CHOICES.keys():
        for value in ("meen", None, 1):
            with pytest.raises(ConfigError, match=f"{setting}={typed(value)}"):
                build(name, **{setting: value})
    with pytest.raises(TypeError, match="actor_rl"):
        build(name, actor_rl=1e-3)


def test_precisions_that_spoil_clipping_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    for precision in ("16-mixed", "64-true", "bf16-true"):
        with pytest.raises(ConfigError, match=rf"trainer\.precision={precision}.*32-true.*bf16-mixed"):
            run(root, tmp_path / "run", f"trainer.precision={precision}")
    assert not (tmp_path / "run").exists()
    assert run(root, tmp_path / "run", "trainer.precision=bf16-mixed")["updates"] == 8


@pytest.mark.parametrize("epochs", ["0", "-1", "5", "null"])
def test_a_run_is_one_epoch(epochs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", monkeypatch)
    with pytest.raises(ConfigError, match=rf"trainer\.max_epochs={epochs}.*updates="):
        run(root, tmp_path / "run", f"trainer.max_epochs={epochs}")
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_put_where_they_are_missing_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = OGBenchData(DATASET, data_dir=str(tmp_path / "file" / "below"))
    cfg = compose("train", "download=true")
    with pytest.raises(DataError, match=r"is not in .*below, and cannot be put there \(Not a directory\).*data_dir="):
        fetch_missing(cfg, data, Console(quiet=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_mapped_files_take_half_of_what_is_free_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    before = _room(device)
    held = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert before - _room(device) >= held.nbytes // 2 - (1 << 26)


def test_what_is_said_of_the_generator_s_bits_is_true() -> None:
    def draw(seed: int) -> Tensor:
        return torch.rand(4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(5), draw(5 + 2**32))
    assert not torch.equal(draw(5), draw(5 + 2**31))
    for purpose in ("batch", "update"):
        assert not torch.equal(torch.rand(4, generator=generator(0, purpose, 0)), draw(0))


class Dropping(nn.Module):
    """A network with dropout in front, which notes in which mode it was called."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__()
        self.inner, self.dropout, self.modes = tiny_mlp(*sizes, **options), nn.Dropout(0.5), []

    def forward(self, observations: Tensor, actions: Tensor, time: Any) -> Tensor:
        self.modes.append(self.training)
        return self.inner(observations, self.dropout(actions), time)


def test_policies_act_and_losses_are_held_out_without_dropout_and_training_goes_on_with_it() -> None:
    module = Training(algorithm(actor=Dropping).float(), 8)
    actor, critic = module.algorithm.actor, module.algorithm.critic
    critic.eval()  # whoever froze a part finds it frozen
    b = batch(8, dtype=torch.float32)
    with module.aside():
        policy = module.policy()
        noise = policy.sample_noise((2, 8, 2), torch.Generator().manual_seed(0))
        first, again = policy.act(b.observations, noise), policy.act(b.observations, noise)
        losses, same = module.held_out(b), module.held_out(b)
    assert torch.equal(first, again)
    assert losses == same
    assert set(actor.network.modes) == {False}
    assert actor.training
    assert actor.network.dropout.training
    assert not critic.training
