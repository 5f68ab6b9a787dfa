"""The online phase: after offline updates and from scratch, alone and in a pack, interrupted and not."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import gymnasium
import hydra
import numpy as np
import pytest
import torch
from conftest import DATASET
from omegaconf import OmegaConf
from processes import shorten_episodes
from tiny import compose, mfrl

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.algorithms.sac import SAC
from mfrl.app.parts import build_algorithm
from mfrl.app.train import train
from mfrl.data.batch import Batch
from mfrl.data.ogbench import OGBenchData
from mfrl.data.replay import Journal
from mfrl.deploy.policy import load
from mfrl.errors import CheckpointError, ConfigError, RefusedRun
from mfrl.learning.online import Online
from mfrl.q_learning import Values
from mfrl.report.figures import learning_curves
from mfrl.report.groups import group_runs
from mfrl.report.summary import Bootstrap, per_group
from mfrl.report.tables import mean_and_std
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.load import load_algorithm
from mfrl.runs.read import find_runs
from mfrl.settings import OnlineSettings
from mfrl.system.paths import CONFIG_DIR

pytestmark = pytest.mark.usefixtures("short_episodes")

SHORT = [
    "network.critic.hidden=[16]",
    "batch_size=8",
    "log.every=6",
    "checkpoint.every=12",
    "checkpoint.keep_all=true",
    "eval.every=12",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.workers=0",
    "accelerator=cpu",
    "logger=csv",
]
#: From data and on.
ONWARD = [
    f"env=ogbench/{DATASET}",
    "experiment=quickstart",
    "collect=null",
    "network.actor.width=16",
    "updates=12",
    "online.steps=24",
    *SHORT,
]
#: From nothing.
SCRATCH = [
    "env=gym/any",
    "env.gym_id=Pendulum-v1",
    "env.max_episode_steps=10",
    "algo=sac",
    "updates=0",
    "online.steps=40",
    "online.start_after=10",
    "online.random_steps=8",
    *SHORT,
]

#: Of any algorithm, through both phases.
BOTH = [
    f"env=ogbench/{DATASET}",
    "network=mlp",
    "network.actor.hidden=[16]",
    *SHORT,
    "updates=4",
    "online.steps=6",
    "online.start_after=0",
    "online.num_envs=2",
    "online.workers=0",
    "log.every=3",
    "checkpoint.every=7",
    "eval.every=10",
    "eval.episodes=1",
    "eval.num_envs=1",
]


def algorithm_of(name: str) -> type[Algorithm]:
    """The class that ``conf/algo/NAME.yaml`` names, or that the file does which it builds on, as rlpd does on sac."""
    settings = OmegaConf.load(CONFIG_DIR / "algo" / f"{name}.yaml")
    target = settings.algo.get("_target_")
    return hydra.utils.get_class(target) if target else algorithm_of(settings.defaults[0])


ALGORITHMS = sorted(path.stem for path in CONFIG_DIR.glob("algo/*.yaml"))
LEARNS_VALUES = [name for name in ALGORITHMS if issubclass(algorithm_of(name).Settings, Values)]


def run(run_dir: Path, overrides: list[str], *more: str) -> dict:
    changes = [*overrides, f"run_dir={run_dir}", *more]
    return train(compose("train", *changes), changes)


def resume(run_dir: Path, *overrides: str) -> dict:
    changes = [f"resume={run_dir}", "logger=csv", *overrides]
    return train(compose("train", *changes), changes)


def back_to(path: Path, update: int, copy: Path) -> Path:
    """A copy of a finished run as it was at a checkpoint, but for what it has logged since."""
    shutil.copytree(path, copy)
    (copy / "result.json").unlink()
    os.replace(copy / "checkpoints" / f"update={update}.ckpt", copy / "checkpoints" / "last.ckpt")
    return copy


def assert_same(a: Path, b: Path) -> None:
    """Two runs have the same weights, moments, replay, evaluations and scalars, to the last bit."""
    one, other = (load_checkpoint(path / "checkpoints" / "last.ckpt") for path in (a, b))

    def flat(value: object, at: str = "") -> dict:
        if isinstance(value, dict):
            return {k: v for name, part in value.items() for k, v in flat(part, f"{at}.{name}").items()}
        if isinstance(value, list | tuple):
            return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{at}.{i}").items()}
        return {at: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}

    for part in ("state_dict", "learner", "online", "window"):
        assert flat(one[part]) == flat(other[part])
    assert (a / "replay.bin").read_bytes() == (b / "replay.bin").read_bytes()
    lines = [[json.loads(line) for line in (p / "eval.jsonl").read_text().splitlines()] for p in (a, b)]
    one, other = ([{k: v for k, v in line.items() if k != "seconds"} for line in of_a_run] for of_a_run in lines)
    assert one == other
    rows = [list(csv.DictReader((p / "metrics.csv").read_text().splitlines())) for p in (a, b)]
    kept = [name for name in rows[0][0] if not name.startswith("perf/")]
    assert [[row[name] for name in kept] for row in rows[0]] == [[row[name] for name in kept] for row in rows[1]]


@pytest.fixture(scope="module")
def onward(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("online") / "onward"
    run(path, [*ONWARD, f"data_dir={data_dir}"], "online.num_envs=2", "checkpoint.every=6")
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("online") / "scratch"
    run(path, SCRATCH, "checkpoint.every=7")
    return path


def test_both_phases_are_evaluated_logged_and_kept(onward: Path) -> None:
    result = json.loads((onward / "result.json").read_text())
    assert result["updates"] == 36
    assert [json.loads(x)["updates"] for x in (onward / "eval.jsonl").read_text().splitlines()] == [12, 24, 36]
    rows = list(csv.DictReader((onward / "metrics.csv").read_text().splitlines()))
    steps = {int(row["updates"]): row["online/steps"] for row in rows if row["train/critic_loss"]}
    assert steps == {6: "", 12: "", 18: "6.0", 24: "12.0", 30: "18.0", 36: "24.0"}
    assert (onward / "checkpoints" / "update=12.ckpt").is_file()
    assert "online" not in load_checkpoint(onward / "checkpoints" / "update=12.ckpt")


def test_online_the_rate_of_the_actor_is_its_floor(onward: Path) -> None:
    rows = list(csv.DictReader((onward / "metrics.csv").read_text().splitlines()))
    rates = {int(row["updates"]): float(row["train/actor_lr"]) for row in rows if row["train/actor_lr"]}
    assert rates[6] > rates[12]
    assert rates[12] == rates[24] == rates[36] == pytest.approx(0.05 * 1e-3)


def test_a_report_has_the_score_of_both_phases_and_marks_where_the_second_begins(onward: Path) -> None:
    grouping = group_runs(find_runs([onward]), metric="eval/length")
    (group,) = grouping.groups
    lines = [json.loads(x) for x in (onward / "eval.jsonl").read_text().splitlines()]
    assert group.offline_values is not None
    assert group.offline_values.tolist() == [lines[0]["eval/length"]]
    (row,) = per_group(grouping, Bootstrap())
    assert mean_and_std(row).startswith(f"{lines[0]['eval/length']:.4g} → ")
    (axes,) = learning_curves([group], Bootstrap()).axes
    assert any(list(line.get_xdata()) == [12, 12] for line in axes.lines)
    assert any(text.get_text() == "online →" for text in axes.texts)


@pytest.mark.parametrize("update", [12, 18, 30])
def test_a_run_that_goes_on_from_any_checkpoint_ends_as_the_uninterrupted_one(
    onward: Path, update: int, tmp_path: Path
) -> None:
    again = back_to(onward, update, tmp_path / "again")
    if update == 12:
        (again / "replay.bin").unlink()  # it is of later
    resume(again)
    assert_same(onward, again)


@pytest.mark.parametrize("update", [7, 21])
def test_so_does_one_that_began_from_nothing(scratch: Path, update: int, tmp_path: Path) -> None:
    again = back_to(scratch, update, tmp_path / "again")
    resume(again)
    assert_same(scratch, again)


@pytest.mark.parametrize(
    "name",
    # The tests above do so with MeanFlowQL, and with SAC, which RLPD is too.
    [
        pytest.param(name, marks=pytest.mark.slow if algorithm_of(name) in (MeanFlowQL, SAC) else ())
        for name in LEARNS_VALUES
    ],
)
def test_every_algorithm_that_learns_values_goes_online_and_on_from_a_checkpoint(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    result = run(whole, [f"algo={name}", *BOTH, f"data_dir={data_dir}"])
    assert result["updates"] == 10
    again = back_to(whole, 7, tmp_path / "again")
    resume(again)
    assert_same(whole, again)


@pytest.mark.parametrize("name", sorted({*ALGORITHMS} - {*LEARNS_VALUES}))
def test_every_algorithm_that_imitates_is_refused_online(name: str, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{algorithm_of(name).__name__} imitates.*online\.steps"):
        run(tmp_path / "run", [f"algo={name}", *BOTH, f"data_dir={data_dir}"])
    assert not (tmp_path / "run").exists()


def test_what_begins_from_nothing_is_evaluated_before_its_first_step(scratch: Path) -> None:
    evaluated = [json.loads(line) for line in (scratch / "eval.jsonl").read_text().splitlines()]
    assert [evaluation["updates"] for evaluation in evaluated] == [0, 12, 24, 30]
    result = json.loads((scratch / "result.json").read_text())
    assert result["online"]["eval/return"] == evaluated[0]["eval/return"]


def test_episodes_under_way_are_played_again_and_not_dropped(scratch: Path, tmp_path: Path) -> None:
    again = back_to(scratch, 21, tmp_path / "again")
    state = load_checkpoint(again / "checkpoints" / "last.ckpt")["online"]
    assert state["lanes"][0]["length"] == 1  # 31 steps in episodes of 10
    resume(again)
    algorithm, _ = load_algorithm(again)
    ends = [
        i
        for block in Journal(again / "replay.bin", algorithm.spec).read(
            44, load_checkpoint(again / "checkpoints" / "last.ckpt")["online"]["checksum"]
        )
        for i in np.flatnonzero(~block["acts"])
    ]
    assert ends == [10, 21, 32, 43]


def test_an_offline_run_goes_online_afterwards(data_dir: Path, onward: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, [*ONWARD, f"data_dir={data_dir}"], "online.steps=0", "checkpoint.every=6")
    with pytest.raises(RefusedRun, match=r"online\.steps"):
        resume(path)
    result = resume(path, "online.steps=24", "online.num_envs=2")
    assert result["updates"] == 36
    assert (path / "replay.bin").read_bytes() == (onward / "replay.bin").read_bytes()
    with pytest.raises(RefusedRun, match="updates=13"):
        resume(path, "updates=13", "online.steps=48")
    resume(path, "online.steps=26")
    assert load_checkpoint(path / "checkpoints" / "last.ckpt")["online"]["transitions"] == 26
    with pytest.raises(CheckpointError, match=r"online\.num_envs"):
        resume(path, "online.steps=28", "online.num_envs=1")


def test_each_member_of_a_pack_has_its_interaction(onward: Path, data_dir: Path, tmp_path: Path) -> None:
    pack = ["train", *ONWARD, f"data_dir={data_dir}", "online.num_envs=2", "checkpoint.every=6"]
    arguments = [*pack, "seed=0,1", "pack=2", f"run_dir={tmp_path}/seed${{seed}}", "-m"]
    assert (done := mfrl(*arguments, cwd=tmp_path, prepare=shorten_episodes)).returncode == 0, done.stderr
    one, two = ((tmp_path / f"seed{seed}") for seed in (0, 1))
    records = [load_checkpoint(path / "checkpoints" / "last.ckpt")["online"] for path in (one, two)]
    assert [record["transitions"] for record in records] == [24, 24]
    assert (one / "replay.bin").read_bytes() != (two / "replay.bin").read_bytes()
    # Rounding alone tells a member from a run of its own.
    alone, member = (Journal(path / "replay.bin", load_algorithm(path)[0].spec).record for path in (onward, one))
    a, b = (np.fromfile(path / "replay.bin", record) for path, record in ((onward, alone), (one, member)))
    np.testing.assert_allclose(a["observation"], b["observation"], atol=1e-4)
    np.testing.assert_allclose(a["action"], b["action"], atol=1e-3)


def test_overlapped_the_newest_transition_is_missing_and_the_rest_as_it_was(scratch: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, SCRATCH, "online.overlap=true", "online.workers=1", "checkpoint.every=7")
    state = load_checkpoint(path / "checkpoints" / "last.ckpt")["online"]
    assert state["transitions"] == 40
    # The first actions are chosen before any update.
    spec = load_algorithm(path)[0].spec
    a, b = (np.fromfile(p / "replay.bin", Journal(p / "replay.bin", spec).record) for p in (scratch, path))
    assert (a[:11] == b[:11]).all()
    assert not (a == b).all()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["updates=0", "online.steps=0"], "nothing to do"),
        (["online.steps=7", "online.num_envs=2"], r"online\.steps=7"),
        (["online.steps=10", "online.start_after=10"], r"online\.start_after=10"),
        (["online.capacity=0"], r"online\.capacity=0"),
        (["online.capacity=4", "online.num_envs=4"], r"online\.capacity=4.*num_envs=4"),
        (["online.balanced=1"], r"online\.balanced=1"),
        (["online.alpha=-1"], r"online\.alpha=-1"),
    ],
)
def test_senseless_settings_are_refused_before_training(
    overrides: list[str], named: str, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        run(tmp_path / "run", [*ONWARD, f"data_dir={data_dir}"], *overrides)
    assert not (tmp_path / "run").exists()


def test_what_was_learnt_from_nothing_is_loaded_and_acts_in_the_environments_units(scratch: Path) -> None:
    policy, env = load(scratch), gymnasium.make("Pendulum-v1")
    assert (policy.low.tolist(), policy.high.tolist()) == ([-2.0], [2.0])
    assert env.action_space.contains(policy(env.reset(seed=0)[0]))


def test_what_has_no_data_or_no_alpha_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(ConfigError, match="updates=5"):
        run(path, SCRATCH, "updates=5")
    with pytest.raises(ConfigError, match=r"online\.balanced"):
        run(path, SCRATCH, "online.balanced=true")
    with pytest.raises(ConfigError, match=r"no alpha.*online\.alpha"):
        run(path, SCRATCH, "online.alpha=1")
    assert not path.exists()


def test_balanced_batches_are_half_data_and_half_interaction(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    changes = [f"env=ogbench/{DATASET}", "algo=rlpd", "network.critic.hidden=[16]", f"data_dir={data_dir}", *SHORT]
    result = run(path, changes, "online.steps=30", "online.start_after=6", "online.capacity=20")
    assert result["updates"] == 24
    state = load_checkpoint(path / "checkpoints" / "last.ckpt")["online"]
    assert state["transitions"] == 30


def test_the_data_leave_one_by_one_where_the_ends_of_episodes_have_filled_the_ring(
    data_dir: Path, tmp_path: Path
) -> None:
    def rows(batch: Batch) -> list[bytes]:
        return [row.tobytes() for row in torch.cat([batch.observations, batch.actions], dim=1).numpy()]

    steps, capacity = 50, 40
    data = OGBenchData(DATASET, data_dir=str(data_dir))
    data.setup()
    algorithm = build_algorithm(compose("train", f"env=ogbench/{DATASET}", "algo=sac", *SHORT), data.spec)
    settings = OnlineSettings(steps=steps, random_steps=steps, capacity=capacity)
    online, ring_was_full_first = Online(settings, [algorithm], [tmp_path], data, 1024, 0, pytest.fail), False
    before = shorten_episodes(4)
    try:
        for chunk in online.chunks(0, steps, steps, ()):
            for made, batch in enumerate(chunk, start=1):
                ring, kept = online.players[0].ring, max(capacity - made, 0)
                assert ring.count == made
                known = rows(data.train[torch.arange(len(data.train) - kept, len(data.train))])
                known += rows(ring[torch.arange(ring.first, ring.count)])
                assert {*rows(batch)} == {*known}  # each row of those was drawn, and no other one
                ring_was_full_first |= ring.first > 0 and kept > 0
    finally:
        online.close()
        shorten_episodes(before)
    assert ring_was_full_first
