"""The whole path in the real simulator: collect, train, look, evaluate, resume; and what stops it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATASET
from omegaconf import OmegaConf
from processes import Command, shorten_episodes
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import MAZE, SPEC, WITH_FIGURES, WITHOUT_FIGURES, compose, mfrl

from mfrl.app.checks import refuse_settings_of_another_algorithm
from mfrl.app.cli import COMMANDS
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.fetch import fetch_missing
from mfrl.app.parts import build_algorithm
from mfrl.app.results import final_scores, summarise
from mfrl.app.resume import refuse_other_data
from mfrl.app.train import train
from mfrl.callbacks.evaluation import action_samples
from mfrl.data.ogbench import OGBenchData
from mfrl.envs.evaluation import Evaluator
from mfrl.errors import CheckpointError, ConfigError, DataError, DivergedError, RefusedRun
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.folder import RunFolder
from mfrl.runs.load import load_algorithm, load_data
from mfrl.system.files import one_at_a_time
from mfrl.system.paths import CONFIG_DIR

pytestmark = pytest.mark.usefixtures("short_episodes")

TINY = [
    *MAZE,
    "algo.actor_lr_floor=1",  # a schedule that does not depend on how long the run is to be
    "updates=24",
    "checkpoint.every=12",
    "eval.every=12",
    "eval.episodes=3",
    "eval.num_envs=3",
    "eval.workers=0",
]


def run(data_dir: Path, run_dir: Path, *overrides: str) -> dict:
    changes = [*TINY, f"data_dir={data_dir}", f"run_dir={run_dir}", *overrides]
    return train(compose("train", *changes), changes)


def resume(run_dir: Path, *overrides: str) -> dict:
    changes = [f"resume={run_dir}", WITHOUT_FIGURES, *overrides]
    return train(compose("train", *changes), changes)


def weights(run_dir: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir / "checkpoints" / name)["state_dict"]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def without_seconds(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def reference(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished run that the tests compare with."""
    path = tmp_path_factory.mktemp("runs") / "reference"
    return path, run(data_dir, path, WITH_FIGURES)


def closing(data_dir: Path, run_dir: Path, *overrides: str) -> tuple[dict, str]:
    """A run's result and what it said on the screen."""
    changes = [*TINY, f"data_dir={data_dir}", f"run_dir={run_dir}", *overrides]
    out = io.StringIO()
    return train(compose("train", *changes), changes, Console(file=out, width=120)), out.getvalue()


def test_evaluations_on_the_way_have_fewer_episodes_than_the_last(data_dir: Path, tmp_path: Path) -> None:
    result, said = closing(data_dir, tmp_path / "run", "eval.interim_episodes=1", "eval.every=9")
    lines = without_seconds(tmp_path / "run")
    assert [(line["updates"], line["episodes"]) for line in lines] == [(9, 1), (18, 1), (24, 3)]
    assert lines[0]["seeds"] == lines[2]["seeds"][:1]  # the first of the same episodes
    assert result["episodes"] == 3
    assert "24 updates of batch 8, evaluated every 9 over 1 episodes, 3 at the end" in said
    resumed = resume(tmp_path / "run", "updates=30")
    assert resumed["episodes"] == 3
    assert [line["episodes"] for line in without_seconds(tmp_path / "run")] == [1, 1, 3, 1, 3]


def test_an_evaluation_on_the_way_is_no_longer_than_the_last(data_dir: Path, tmp_path: Path) -> None:
    _, said = closing(data_dir, tmp_path / "run", "eval.interim_episodes=10", "eval.episodes=2")
    assert [line["episodes"] for line in without_seconds(tmp_path / "run")] == [2, 2]
    assert "evaluated every 12 over 2 episodes\n" in said


@pytest.mark.parametrize("episodes", ["0", "1.5", "true"])
def test_a_number_of_episodes_on_the_way_that_is_none_is_refused(data_dir: Path, tmp_path: Path, episodes: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?i)eval\.interim_episodes={episodes}"):
        run(data_dir, tmp_path / "run", f"eval.interim_episodes={episodes}")
    assert not (tmp_path / "run").exists()


def test_the_closing_table_has_the_last_the_mean_of_three_and_the_best(data_dir: Path, tmp_path: Path) -> None:
    # Of lengths something is known here: an untrained policy reaches no goal.
    result, said = closing(data_dir, tmp_path / "run", "eval.every=6")
    assert result["best"] == {"eval/success": 0.0, "updates": 6, "episodes": 3}
    rows = dict(re.findall(r"│ (.*?) +│ (.*?) +│", said))
    assert rows["success, mean of last three"] == "0.00"
    assert rows["success, best"] == "0.00 at update 6 (3 episodes)"
    assert "depends on when one looks" not in said


def test_a_score_that_depends_on_when_one_looks_is_told(tmp_path: Path) -> None:
    path = RunFolder(tmp_path)
    scores = [(1000, 0.0), (2000, 0.5), (3000, 1.0), (4000, 0.75), (5000, 0.0)]
    lines = [{"updates": k, "eval/success": x, "eval/return": -9.0, "episodes": 4} for k, x in scores]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = final_scores(path)
    assert found["final"]["eval/success"] == 0.0
    assert found["mean_of_last_three"]["eval/success"] == pytest.approx(1.75 / 3)
    assert found["best"] == {"eval/success": 1.0, "updates": 3000, "episodes": 4}
    out = io.StringIO()
    rest = {"env": "maze", "algo": "a", "variant": "v", "seed": 0, "updates": 5000, "seconds": 60.0}
    rest |= {"updates_per_second": 40.0, "dataset": "d", "data": "collected", "warnings": []}
    summarise(Console(file=out, width=200), path, found | rest)
    said = "success (%): 0.0 at the end, 58.3 in the mean of the last three evaluations"
    assert said in out.getvalue()
    assert "depends on when one looks" in out.getvalue()


def test_a_run_folder_holds_everything_that_was_promised(reference: tuple[Path, dict]) -> None:
    path, result = reference
    names = {p.name for p in path.iterdir()}
    promised = {
        "config.yaml",
        "overrides.yaml",
        "provenance.json",
        "metrics.csv",
        "eval.jsonl",
        "result.json",
    }
    assert promised <= names
    assert (path / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((path / "result.json").read_text()) == result
    assert result["updates"] == 24
    assert OmegaConf.load(path / "config.yaml").updates == 24
    assert "updates=24" in OmegaConf.load(path / "overrides.yaml")
    provenance = json.loads((path / "provenance.json").read_text())
    assert provenance["source"] == "collected"
    assert {"sha256", "bytes"} <= set(provenance["files"][f"{DATASET}-v0.npz"])
    lines = without_seconds(path)
    assert [line["updates"] for line in lines] == [12, 24]
    assert len(lines[-1]["returns"]) == len(lines[-1]["successes"]) == 3
    assert result["final"]["eval/return"] == lines[-1]["eval/return"]


def test_a_run_collects_its_dataset_where_it_may_and_it_is_missing(tmp_path: Path) -> None:
    settings = "collect={episodes:2,val_episodes:1,episode_steps:21,workers:1,progress:false}"
    result = run(tmp_path / "data", tmp_path / "run", settings, "updates=6")
    assert (tmp_path / "data" / f"{DATASET}-v0.npz").is_file()
    assert result["data"] == "collected"


def test_a_run_goes_on_without_the_word_that_its_data_were_collected(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "run", "existing=continue", "collect={seed: 0}", "updates=4")
    first = (tmp_path / "run" / "result.json").read_bytes()
    run(data_dir, tmp_path / "run", "existing=continue", "updates=4")
    assert (tmp_path / "run" / "result.json").read_bytes() == first


def test_a_checkpoint_from_before_packs_goes_on(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "run", "updates=4")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    for key in ("pack", "runs", "jobs", "callbacks", "logger"):
        checkpoint["mfrl"]["config"].pop(key, None)
    torch.save(checkpoint, path)
    assert resume(tmp_path / "run", "updates=8")["updates"] == 8


def test_a_dataset_that_another_process_collects_is_waited_for(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("collected a second time")

    monkeypatch.setattr("mfrl.collect.ogbench.runner.collect", never)
    data = OGBenchData(DATASET, data_dir=str(tmp_path))
    cfg = OmegaConf.create({"env": {"suite": "ogbench"}, "collect": {}})
    waiting = threading.Thread(target=fetch_missing, args=(cfg, data, Console(quiet=True)))
    with one_at_a_time(tmp_path / f".{data.dataset}.lock"):
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        for path in data_dir.glob(f"{DATASET}*"):
            shutil.copy(path, tmp_path)
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    (tmp_path / f"{data.dataset}.npz").unlink()
    with pytest.raises(AssertionError, match="a second time"):
        fetch_missing(cfg, data, Console(quiet=True))


def test_metrics_go_to_csv_and_tensorboard_by_update(reference: tuple[Path, dict]) -> None:
    path, _ = reference
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["updates"]) for row in rows] == [6, 12, 18, 24]
    wanted = {
        "train/critic_loss",
        "train/flow_loss",
        "train/q",
        "train/alpha",
        "train/actor_lr",
        "train/critic_lr",
    }
    wanted |= {
        "train/actor_grad_norm",
        "perf/updates_per_second",
        "eval/success",
        "eval/return",
        "eval/length",
        "val/flow_loss",
    }
    assert wanted <= set(rows[1])
    events = EventAccumulator(str(path), size_guidance={"images": 0})
    events.Reload()
    # What users know by name is called the same in TensorBoard; the rest is grouped there by whose it is.
    tags = set(events.Tags()["scalars"])
    grouped = {"train/actor_lr": "actor/lr", "train/critic_lr": "critic/lr", "train/actor_grad_norm": "actor/grad_norm"}
    assert {grouped.get(name, name) for name in wanted} | {"critic/q_max", "actor/flow_error", "score"} <= tags
    assert {name.partition("/")[0] for name in tags} == {"actor", "critic", "eval", "perf", "score", "train", "val"}
    assert {name for name in tags if name.startswith("train/")} == {name for name in wanted & tags if "train" in name}
    assert len(events.Scalars("score")) == len(events.Scalars("eval/success")) == 2, "no chart of a single dot"
    assert [e.step for e in events.Scalars("train/critic_loss")] == [6, 12, 18, 24]
    assert float(rows[0]["train/critic_loss"]) == pytest.approx(events.Scalars("train/critic_loss")[0].value)
    assert sorted(events.Tags()["images"])[:3] == ["figures/paths", "figures/samples", "figures/value"]
    assert [e.step for e in events.Images("figures/paths")] == [12, 24]


def test_states_whose_actions_are_drawn_are_told_by_their_place_in_the_maze(reference: tuple[Path, dict]) -> None:
    algorithm, record = load_algorithm(reference[0])
    data = load_data(record)
    data.setup()
    *_, names = action_samples(algorithm.policy(), data.train, in_maze=True)
    places = np.array([[float(number) for number in re.findall(r"-?[\d.]+", name)] for name in names])
    states = np.load(Path(data.data_dir) / f"{data.dataset}.npz")["observations"][:, :2]
    assert len(places) == 4
    assert np.linalg.norm(states[:, None] - places, axis=-1).min(0).max() < 0.08, "rounded to one digit"
    *_, names = action_samples(algorithm.policy(), data.train)
    assert all(re.fullmatch(r"transition [\d,]+", name) for name in names)


@pytest.mark.parametrize(
    ("overrides", "by"),
    [
        (["experiment=study_pointmaze", "algo=gaussian_bc"], "experiment=study_pointmaze"),
        (["experiment=toy", "+algo.discount=0.9"], r"experiment=toy or \+algo.discount=0.9"),
    ],
)
def test_settings_of_another_algorithm_are_refused_before_any_data_is_collected(
    overrides: list[str], by: str, tmp_path: Path
) -> None:
    changes = [*overrides, f"run_dir={tmp_path / 'run'}", f"data_dir={tmp_path / 'data'}"]
    with pytest.raises(ConfigError, match=rf"algo\.discount.*{by}.*algo="):
        train(compose("train", *changes), changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algo", sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml")))
def test_every_algorithm_takes_its_own_settings(algo: str) -> None:
    refuse_settings_of_another_algorithm(compose("train", f"algo={algo}"), [])


def test_a_thread_of_its_own_leaves_the_simulator_no_processes(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = []

    class Recorded(Evaluator):
        def __init__(self, *settings: Any) -> None:
            super().__init__(*settings)
            workers.append(self.workers)

    monkeypatch.setattr("mfrl.callbacks.evaluation.Evaluator", Recorded)
    run(data_dir, tmp_path / "run", "updates=6", "threads=1", "eval.workers=null")
    assert workers == [0]
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").eval.workers is None


def test_the_same_command_twice_gives_the_same_numbers(
    reference: tuple[Path, dict], data_dir: Path, tmp_path: Path
) -> None:
    run(data_dir, tmp_path / "again")
    assert_equal(weights(reference[0]), weights(tmp_path / "again"))
    assert without_seconds(reference[0]) == without_seconds(tmp_path / "again")


def test_another_seed_gives_other_numbers(reference: tuple[Path, dict], data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "other", "seed=1")
    a, b = weights(reference[0]), weights(tmp_path / "other")
    assert not torch.equal(a["critic.network.head_weight"], b["critic.network.head_weight"])


@pytest.mark.parametrize("chunk", [1, 5])
def test_the_chunk_size_changes_nothing(
    chunk: int, reference: tuple[Path, dict], data_dir: Path, tmp_path: Path
) -> None:
    run(data_dir, tmp_path / "chunk", f"chunk={chunk}")
    assert_equal(weights(reference[0]), weights(tmp_path / "chunk"))


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    reference: tuple[Path, dict], data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "interrupted"
    run(data_dir, path, "checkpoint.keep_all=true", "algo.alpha_schedule=cosine")
    whole, evaluations, metrics = weights(path), without_seconds(path), (path / "metrics.csv").read_text()
    # Back to the middle: what came later is made again, not doubled.
    os.replace(path / "checkpoints" / "update=12.ckpt", path / "checkpoints" / "last.ckpt")
    result = resume(path)
    assert result["updates"] == 24
    assert_equal(whole, weights(path))
    assert without_seconds(path) == evaluations
    rows, again = (list(csv.DictReader(text.splitlines())) for text in (metrics, (path / "metrics.csv").read_text()))
    deterministic = [key for key in rows[0] if not key.startswith("perf/")]
    assert [[r[key] for key in deterministic] for r in rows] == [[r[key] for key in deterministic] for r in again]


def test_a_finished_run_can_be_given_more_updates(reference: tuple[Path, dict], data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "long", "updates=36")
    shutil.copytree(reference[0], tmp_path / "grown")
    with pytest.raises(ConfigError, match="updates="):
        resume(tmp_path / "grown")
    resume(tmp_path / "grown", "updates=36")
    overrides = list(OmegaConf.load(tmp_path / "grown" / "overrides.yaml"))
    assert "updates=24" in overrides
    assert overrides[-1] == "updates=36"
    assert_equal(weights(tmp_path / "long"), weights(tmp_path / "grown"))


def test_a_resumed_run_stays_the_same_experiment(reference: tuple[Path, dict]) -> None:
    for change in ("seed=3", "algo.alpha=5", "env.task=2", "variant=residual"):
        with pytest.raises(ConfigError, match=f"{change.partition('=')[0]} cannot change"):
            resume(reference[0], change, "updates=48")


def test_resuming_keeps_tensorboard_and_survives_a_line_cut_off_by_a_crash(
    reference: tuple[Path, dict], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(reference[0], path)
    with (path / "eval.jsonl").open("a") as file:
        file.write('{"updates": 36, "retu')
    resume(path, "updates=36", WITH_FIGURES)
    assert [line["updates"] for line in without_seconds(path)] == [12, 24, 36]
    events = EventAccumulator(str(path))
    events.Reload()
    assert [e.step for e in events.Scalars("eval/success")] == [12, 24, 36]
    assert [e.step for e in events.Scalars("train/q")] == [6, 12, 18, 24, 30, 36]


def test_an_evaluation_that_a_crash_prevented_is_made_up_for(reference: tuple[Path, dict], tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(reference[0], path)
    before = without_seconds(path)
    (path / "eval.jsonl").write_text(json.dumps(before[0]) + "\n")
    resume(path, "updates=36")
    assert without_seconds(path)[:2] == before


def test_two_processes_do_not_train_in_one_folder(reference: tuple[Path, dict], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    with RunFolder(tmp_path / "run").locked(), pytest.raises(ConfigError, match="another process"):
        resume(tmp_path / "run", "updates=36")


@pytest.mark.parametrize(
    "setting",
    [
        "chunk=0",
        "batch_size=0",
        "eval.every=0",
        "log.every=-1",
        "updates=0",
        "updates=x",
        "updates=true",
        "eval.device=gpu",
    ],
)
def test_values_no_run_can_be_made_of_are_refused(setting: str, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        run(data_dir, tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting", ["algo.alpha=null", "algo.tau=much", "algo.num_candidates=2.5", "algo.time_steps=x"]
)
def test_what_is_no_number_is_refused_by_name(setting: str, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(setting)):
        run(data_dir, tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_data_it_began_with(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "run", "updates=12")
    shutil.copytree(data_dir, tmp_path / "other")
    with np.load(tmp_path / "other" / f"{DATASET}-v0.npz") as file:
        fields = dict(file)
    fields["observations"][0] += 1.0
    np.savez(tmp_path / "other" / f"{DATASET}-v0.npz", **fields)
    with pytest.raises(ConfigError, match=f"{DATASET}-v0.npz"):
        resume(tmp_path / "run", f"data_dir={tmp_path / 'other'}", "updates=24")


@pytest.mark.parametrize(("now", "change"), [(["a", "b", "c"], "c was not there"), (["a"], "b has gone")])
def test_a_run_whose_data_have_other_files_now_is_not_resumed(now: list[str], change: str) -> None:
    files = {name: {"files": {key: {"sha256": key} for key in keys}} for name, keys in (("x", "ab"), ("y", now))}
    with pytest.raises(RefusedRun, match=change):
        refuse_other_data(files["x"], files["y"])


def test_a_run_is_resumed_with_its_data_kept_elsewhere(reference: tuple[Path, dict], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    result = resume(tmp_path / "run", "updates=30", "data.cache=false", "data.memory_gib=1")
    assert result["updates"] == 30


def test_a_loose_checkpoint_is_evaluated_but_not_resumed(reference: tuple[Path, dict], tmp_path: Path) -> None:
    shutil.copy(find_checkpoint(reference[0]), tmp_path / "loose.ckpt")
    with pytest.raises(CheckpointError, match="lies in no run folder"):
        resume(tmp_path / "loose.ckpt", "updates=48")
    assert load_algorithm(tmp_path / "loose.ckpt")[0].k == 24


def test_data_that_is_refused_leaves_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_alone_reproduces_the_runs_evaluation(reference: tuple[Path, dict], tmp_path: Path) -> None:
    path, _ = reference
    report = evaluate_checkpoint(compose("eval", f"ckpt={path}", f"out={tmp_path}"))
    last = without_seconds(path)[-1]
    for key in ("seeds", "returns", "successes", "lengths", "eval/return"):
        assert report[key] == last[key]
    written = json.loads((tmp_path / "evaluation-last-seed=1000-episodes=3.json").read_text())
    assert written["returns"] == last["returns"]


def test_the_policy_of_a_checkpoint_takes_raw_observations(reference: tuple[Path, dict]) -> None:
    module, record = load_algorithm(reference[0])
    assert record["env"]["env_id"] == "pointmaze-medium-singletask-v0"
    policy = module.policy()
    observations = torch.tensor([[0.0, 0.0], [8.0, 12.0]])
    noise = policy.sample_noise((4, 2, 2), torch.Generator().manual_seed(0))
    actions = policy.act(observations, noise)
    assert actions.shape == (2, 2)
    assert actions.abs().max() <= 1.0
    mean, std = torch.tensor(module.spec.observation_mean), torch.tensor(module.spec.observation_std)
    candidates = policy.candidates((observations - mean) / std, noise)
    assert all(any(torch.allclose(actions[b], c) for c in candidates[:, b]) for b in range(2))


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="last good"):
        run(
            data_dir,
            tmp_path / "diverged",
            "algo.critic_lr=1e30",
            "algo.clip_targets=false",
            "checkpoint.every=1",
        )
    state = weights(tmp_path / "diverged")
    assert all(bool(value.isfinite().all()) for name, value in state.items() if "alpha" not in name)
    assert not list((tmp_path / "diverged" / "checkpoints").glob(".*"))


VARIANTS = {
    "residual": ([1.0], [-1.0], [0.0]),
    "velocity": ([0.0], [1.0], [0.0]),
    "noise_residual": ([0.0], [-1.0], [1.0]),
    "time_residual": ([0.0, 1.0], [-1.0], [0.0]),
    "endpoint": ([1.0], [0.0, -1.0], [0.0]),
    "two_time_residual": ([1.0], [-1.0], [0.0]),
    "custom": ([0.5, 0.5], [-1.0], [0.0]),
}
OF_CUSTOM = ("variant.p=[0.5,0.5]", "variant.q=-1")


def test_every_variant_file_has_its_equation_here() -> None:
    assert {path.stem for path in (CONFIG_DIR / "variant").glob("*.yaml")} == set(VARIANTS)


def assert_reformulates(module: Any, variant: str) -> None:
    g = module.reformulation
    assert tuple(list(c.coefficients) for c in (g.p, g.q, g.s)) == VARIANTS[variant]
    assert g.two_times == (variant == "two_time_residual")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_yaml_file(variant: str) -> None:
    coefficients = OF_CUSTOM if variant == "custom" else ()
    cfg = compose("train", *TINY, f"variant={variant}", *coefficients)
    assert cfg.variant.name == variant
    assert_reformulates(build_algorithm(cfg, SPEC), variant)
    first, *_ = (CONFIG_DIR / "variant" / f"{variant}.yaml").read_text().splitlines()
    assert first.startswith("# g"), "a variant's file opens with its equation"


@pytest.mark.parametrize("variant", ["time_residual", "two_time_residual"])  # a list for a coefficient, and two times
def test_a_variant_is_in_its_checkpoint(variant: str, data_dir: Path, tmp_path: Path) -> None:
    result = run(data_dir, tmp_path / "run", f"variant={variant}", "updates=6", "eval.every=6")
    assert result["variant"] == variant
    assert_reformulates(load_algorithm(tmp_path / "run")[0], variant)


def test_a_variant_can_be_written_on_the_command_line(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "run", "variant.name=mine", "variant.p=[0.5,0.5]", "updates=6", "eval.every=6")
    module, _ = load_algorithm(tmp_path / "run")
    assert module.reformulation.p.coefficients == (0.5, 0.5)
    with pytest.raises(ConfigError, match="is zero at t = 1"):
        run(data_dir, tmp_path / "ill", "variant.q=[-1,1]")
    assert not (tmp_path / "ill").exists()


def test_a_run_never_writes_into_an_existing_folder(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    run(data_dir, tmp_path / "taken", "updates=6", "eval.every=6")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]
    assert (tmp_path / "taken-2" / "result.json").is_file()


# ---- checkpoints that must not be believed


def test_a_missing_checkpoint_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints/last\.ckpt"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_truncated_checkpoint_is_refused(reference: tuple[Path, dict], tmp_path: Path) -> None:
    whole = find_checkpoint(reference[0]).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        load_algorithm(tmp_path / "cut.ckpt")


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_nothing_pickled_in_a_checkpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mfrl": Exploit()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="plain data"):
        load_algorithm(tmp_path / "evil.ckpt")
    assert not (tmp_path / "exploited").exists()


FOREIGN = [
    "os.system",
    "mfrl.system.files.os.system",
    "mfrl.runs.folder.RunFolder.create",
    "builtins.exec",
    "pathlib.Path.write_text",
]


@pytest.mark.parametrize("target", FOREIGN)
@pytest.mark.parametrize("place", ["algo.actor", "network.actor", "network.critic", "algo.reformulation"])
def test_nothing_foreign_named_in_a_checkpoint_is_built(
    target: str, place: str, reference: tuple[Path, dict], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(find_checkpoint(reference[0]))
    group, name = place.split(".")
    checkpoint["mfrl"]["config"][group][name] = {"_target_": target, "_partial_": True}
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not a class of mfrl"):
        load_algorithm(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("place", ["network.actor", "data", "trainer", "env.datamodule"])
def test_resuming_builds_nothing_foreign_either(place: str, reference: tuple[Path, dict], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    config = OmegaConf.create(checkpoint["mfrl"]["config"])
    mark = tmp_path / "called"
    call = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(mark)]}}
    OmegaConf.update(config, place, "pathlib.Path.touch" if place == "env.datamodule" else call, merge=False)
    checkpoint["mfrl"]["config"] = OmegaConf.to_container(config, resolve=False)
    torch.save(checkpoint, path)
    if place == "trainer":  # never taken from a file: the run just goes on
        assert resume(tmp_path / "run", "updates=30")["updates"] == 30
    else:
        with pytest.raises(CheckpointError, match="not a class of mfrl"):
            resume(tmp_path / "run", "updates=30")
    assert not mark.exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_resuming_calls_nothing_that_an_accelerator_names(
    hidden: bool, reference: tuple[Path, dict], tmp_path: Path
) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    path, mark = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "called"
    call = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(mark)]}}
    checkpoint = load_checkpoint(path)
    checkpoint["mfrl"]["config"] |= {"accelerator": "${elsewhere}" if hidden else call, "elsewhere": call}
    torch.save(checkpoint, path)
    with pytest.raises(ConfigError, match="must be a name"):
        resume(tmp_path / "run", "updates=30")
    assert not mark.exists()


def test_weights_that_do_not_fit_are_refused(reference: tuple[Path, dict], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(find_checkpoint(reference[0]))
    checkpoint["mfrl"]["config"]["network"]["actor"]["width"] = 32
    torch.save(checkpoint, tmp_path / "misfit.ckpt")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_algorithm(tmp_path / "misfit.ckpt")


# ---- the command line


def test_the_commands_work_from_any_folder(data_dir: Path, tmp_path: Path) -> None:
    changes = [*TINY, WITH_FIGURES, f"data_dir={data_dir}", "run_dir=out", "updates=6"]
    done = mfrl("train", *changes, cwd=tmp_path, prepare=shorten_episodes)
    assert done.returncode == 0, done.stderr
    assert "success" in done.stderr
    assert "run folder" in done.stderr
    done = mfrl("eval", "ckpt=out", "episodes=2", cwd=tmp_path, prepare=shorten_episodes)
    assert done.returncode == 0, done.stderr
    written = tmp_path / "out" / "checkpoints" / "evaluation-last-seed=1000-episodes=2.json"
    assert len(json.loads(written.read_text())["returns"]) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"out"}  # Hydra leaves nothing of its own behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "train"),
        (["train", "algo.alhpa=3"], r"algo\.alhpa.*algo\.alpha"),
        (["train", "experiment=toy", "eval.episode=5"], r"eval\.episode\b.*eval\.samples"),
        (["train", "experiment=quickstart", "algo=flow_bc", "run_dir=run"], "experiment=quickstart.*algo=flow_bc"),
        (["train", "env=ogbench/cube-singel-play"], "ogbench/cube-singel-play.*ogbench/cube-single-play"),
        (["train", "variant=residuall"], "residuall.*residual"),
        (["train", "algo.q_aggregation=maen", "data_dir=DATA"], r"algo\.q_aggregation=maen.*\bmean"),
        (["train", "env.task=9", "data_dir=DATA"], r"env\.task=9.*1 to 5"),
        (["train", "env=ogbench/scene-play", "data_dir=DATA"], "mfrl collect env=ogbench/scene-play"),
        (["train", "-m", "network=small,smal"], r"smal\b.*small"),
        (["train", "resume='x[/y]'"], r"x\[/y\]"),
        (["eval"], "ckpt"),
        (["train", "variant=custom"], r"variant\.p, variant\.q"),
        (["eval", "ckpt=nowhere"], "nowhere"),
        (["collect", "env=ogbench/humanoidmaze-large-navigate", "data_dir=DATA"], "humanoidmaze-large-navigate-v0.npz"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(
    arguments: list[str], message: str, data_dir: Path, tmp_path: Path
) -> None:
    done = mfrl(*(a.replace("DATA", str(data_dir)) for a in arguments), cwd=tmp_path)
    text = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert re.search(message, text)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["eval", "--help"], ["collect", "--help"], ["train", "--cfg", "job"], ["--help"]]
)
def test_help_is_given(arguments: list[str], tmp_path: Path) -> None:
    done = mfrl(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 8


def test_the_help_of_every_command_is_a_page_in_our_words(tmp_path: Path) -> None:
    for command in COMMANDS:
        done = mfrl(command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"mfrl {command} ")
        assert max(map(len, done.stdout.splitlines())) <= 120
        assert len(done.stdout.splitlines()) < 60
    (tmp_path / "own" / "variant").mkdir(parents=True)
    (tmp_path / "own" / "variant" / "half.yaml").write_text("name: half\n")
    said = mfrl("train", "--config-dir", "own", "--help", cwd=tmp_path).stdout
    assert "half, noise_residual" in said, "names of the user's own folder"
    assert "ogbench/..." in said
    assert " _" not in said, "what only other files build on"


def test_a_sweep_makes_one_run_folder_per_job(data_dir: Path, tmp_path: Path) -> None:
    changes = [*TINY, f"data_dir={data_dir}", "run_dir=runs/alpha_${algo.alpha}", "updates=6", "algo.alpha=1,2"]
    done = mfrl("train", "-m", *changes, cwd=tmp_path, prepare=shorten_episodes)
    assert done.returncode == 0, done.stderr
    results = {p.parent.name: json.loads(p.read_text())["alpha"] for p in tmp_path.rglob("result.json")}
    assert results == {"alpha_1": 1, "alpha_2": 2}


def test_a_stopped_run_says_how_to_go_on(data_dir: Path, tmp_path: Path) -> None:
    endless = ["run_dir=out", "compile=false", "updates=100000", "checkpoint.every=6"]
    command = Command(["train", *TINY, f"data_dir={data_dir}", *endless], tmp_path)
    command.wait_until((tmp_path / "out" / "checkpoints" / "last.ckpt").exists)
    command.signal(signal.SIGTERM)
    assert command.end() == 128 + signal.SIGTERM
    assert "mfrl train resume=out" in command.said
