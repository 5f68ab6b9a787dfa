"""Sweeps: jobs side by side, each in its folder, done once; and what TensorBoard's tabs read of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import hydra
import pytest
import tiny
import torch
from conftest import DATASET
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from tiny import COMMAND, ENVIRONMENT, MAZE, TOY, WITH_FIGURES, WITHOUT_FIGURES, mfrl

from mfrl.app.report import main as report
from mfrl.app.sweep import attempt
from mfrl.app.train import train
from mfrl.app.watch import worker_setting
from mfrl.errors import ConfigError
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.folder import RunFolder
from mfrl.runs.jobs import COLUMNS, FAILED, FINISHED, changed_settings, common_folder, refuse_shared_folders
from mfrl.runs.read import find_runs
from mfrl.system.paths import CONFIG_DIR

SIMULATED = [
    *MAZE,
    "updates=12",
    "checkpoint.every=12",
    "eval.every=12",
    "eval.episodes=1",
    "eval.num_envs=1",
]


compose = partial(tiny.compose, "train")


def run(folder: Path, *overrides: str) -> dict:
    """A toy run that does only what is missing."""
    changes = [*TOY, f"run_dir={folder}", "existing=continue", *overrides]
    return train(compose(*changes), changes)


def resume(folder: Path, *overrides: str) -> dict:
    changes = [f"resume={folder}", WITHOUT_FIGURES, *overrides]
    return train(compose(*changes), changes)


PAIRS = [(variant, seed) for variant in ("residual", "velocity") for seed in (0, 1)]
ERROR_FILE = "error.txt"
TRAIN = [*COMMAND, "train"]


def sweep(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return mfrl("train", "sweep=reformulation", "jobs=2", *overrides, cwd=cwd, timeout=600)


def written(folder: Path) -> dict[Path, int]:
    """When each result was written."""
    return {path.parent: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


@pytest.fixture(scope="module")
def simulated(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two of the sweep's variants with two of its seeds, in the simulator: the folder, and what was said."""
    cwd = tmp_path_factory.mktemp("sweep")
    settings = [f"data_dir={data_dir}", "variant=residual,velocity", "seed=0,1", "runs=all my runs", WITH_FIGURES]
    done = sweep(cwd, *SIMULATED, *settings)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in cwd.iterdir()} == {"all my runs"}
    return cwd / "all my runs" / "reformulation" / DATASET, done.stderr


# ---- a sweep as it is started


def test_a_sweep_runs_its_jobs_each_in_a_folder_of_its_own(simulated: tuple[Path, str]) -> None:
    root, said = simulated
    runs = find_runs([root])
    assert [run.status for run in runs] == ["finished"] * 4
    expected = {f"meanflowql-{v}-quickstart-batch_size_8-hidden_16-width_16/seed{s}" for v, s in PAIRS}
    assert {str(run.path.relative_to(root)) for run in runs} == expected
    assert {(run.variant, run.seed) for run in runs} == set(PAIRS)
    assert all(run.config["threads"] == 1 and run.config["eval.workers"] is None for run in runs)
    assert "4 finished" in said
    assert "\n  0 residual seed 0 │ update        12   success" in said
    assert "Trainer" not in said  # nothing of Lightning's
    assert re.search(r"^[1-3]/4 done(, left about \d+ (s|min))?$", said, re.M)
    assert [line for line in said.splitlines() if len(line) > COLUMNS and "/" not in line] == []
    assert [path.name for path in root.parent.iterdir() if path != root] == ["multirun.yaml"]


def test_the_report_reads_a_sweep(simulated: tuple[Path, str], tmp_path: Path) -> None:
    report([str(simulated[0]), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "residual" in text
    assert "velocity" in text


def test_a_job_that_fails_loses_no_other_and_is_all_that_is_done_again(tmp_path: Path) -> None:
    changes = [*TOY, "jobs=1", "variant=residual", "seed=0,1", "run_dir=runs/s${seed}"]
    with RunFolder(tmp_path / "runs" / "s0").locked():
        done = sweep(tmp_path, *changes)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search("another process.*runs/s0", done.stderr)
    assert "1 failed, 1 finished" in done.stderr
    assert "the same command again does only what is missing" in done.stderr
    before = written(tmp_path)
    assert [folder.name for folder in before] == ["s1"]
    assert not (tmp_path / "runs" / "s0" / ERROR_FILE).exists()  # nothing went wrong in the run that is there

    done = sweep(tmp_path, *changes)
    assert done.returncode == 0, done.stderr
    assert "1 finished, 1 skipped" in done.stderr
    assert {folder.name for folder in written(tmp_path)} == {"s0", "s1"}
    assert before.items() <= written(tmp_path).items()
    assert not list(tmp_path.rglob(ERROR_FILE))


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("algo.actor_lr=-1", r"algo\.actor_lr=-1 .*"),
        ("+trainer.strategy=ddp9", r"\w+: .*ddp9.* \(see {folder}/error.txt\)"),
    ],
)
def test_what_went_wrong_is_one_line_and_a_file(override: str, note: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = [*TOY, f"run_dir={folder}", override]
    outcome = attempt(compose(*changes), changes, own_process=False)
    assert (outcome.status, outcome.folder) == (FAILED, folder)
    assert re.fullmatch(note.format(folder=folder), outcome.note)
    assert "Traceback" in (folder / ERROR_FILE).read_text()
    again = attempt(compose(*changes), changes, own_process=False)
    assert again.folder == tmp_path / "run-2"  # existing=new

    changes = [*TOY, f"run_dir={folder}", "existing=continue"]
    if "trainer" in override:  # it had come as far as writing its settings down
        shutil.rmtree(folder)
    assert attempt(compose(*changes), changes, own_process=False).status == FINISHED
    assert not (folder / ERROR_FILE).exists()


@pytest.mark.parametrize("change", ["algo.actor_lr=0.002", "updates=12"])
def test_a_job_that_is_refused_leaves_the_run_that_is_there(change: str, whole: tuple[Path, dict], copy: Path) -> None:
    changes = [*TOY, f"run_dir={copy}", "existing=continue", change]
    outcome = attempt(compose(*changes), changes, own_process=False)
    assert outcome.status == FAILED
    assert change.partition("=")[0] in outcome.note
    with RunFolder(copy).locked():
        (copy / "result.json").unlink()
        outcome = attempt(compose(*TOY, *changes[-3:-1]), changes[:-1], own_process=False)
    assert "another process is training" in outcome.note
    assert not (copy / ERROR_FILE).exists()
    (copy / "result.json").write_text(json.dumps(whole[1]))
    changes = [f"resume={copy}", "seed=3"]
    assert attempt(compose(*changes), changes, own_process=False).status == FAILED
    assert [found.status for found in find_runs([copy])] == ["finished"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=reformulation", "resume=x"], "resume="),
        (["sweep=reformulation", "jobs=0"], "jobs=0.*at least 1.*-1"),
        (["sweep=reformulation", "jobs=x"], "jobs=x.*at least 1.*-1"),
        (["sweep=reformulation", "hydra.sweeper.params.variant=residuall"], "residuall.*residual"),
    ],
)
def test_a_sweep_that_cannot_start_is_answered_in_one_sentence(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = mfrl("train", *TOY, *overrides, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert re.search(message, " ".join(done.stderr.split()))
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("error.txt"))


def test_the_parallel_launcher_serves_without_a_sweep_file() -> None:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", ["hydra/launcher=parallel"], return_hydra_config=True)
        assert cfg.hydra.launcher.n_jobs == -1
        cfg = hydra.compose("train", ["sweep=reformulation", "jobs=3"], return_hydra_config=True)
        assert cfg.hydra.launcher.n_jobs == 3


def test_jobs_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    done = sweep(tmp_path, *TOY, "variant=residual", "seed=0", "updates=12,24")
    assert done.returncode == 1
    assert re.search("2 jobs.*runs/reformulation", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_job(tmp_path: Path) -> None:
    changes = [*TOY, "variant=residual", "seed=0,1", "run_dir=runs/s${seed}", "updates=240", "eval.every=240"]
    command = [*TRAIN, "sweep=reformulation", "jobs=2", *changes]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT)
    while process.poll() is None and not list(tmp_path.rglob("last.ckpt")):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(pid for pid in children if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "a process was killed from outside" in said
    assert {folder.name for folder in written(tmp_path)} == {"s0", "s1"}


# ---- only what is missing


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished run that kept the checkpoint halfway."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    return path, run(path, "checkpoint.keep_all=true", WITH_FIGURES)


@pytest.fixture
def copy(whole: tuple[Path, dict], tmp_path: Path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "run")


def stop_halfway(folder: Path) -> None:
    """As a run is left that was killed after update 12 of 24."""
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "update=12.ckpt").replace(folder / "checkpoints" / "last.ckpt")


def scores(result: dict) -> dict:
    return {key: result[key] for key in ("final", "mean_of_last_three", "updates")}


def evaluated(folder: Path) -> list[int]:
    return [json.loads(line)["updates"] for line in (folder / "eval.jsonl").read_text().splitlines()]


def test_what_is_finished_is_not_done_again(whole: tuple[Path, dict], capsys: pytest.CaptureFixture[str]) -> None:
    path, result = whole
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file() and p.name != ".lock"}
    assert run(path) == result
    assert "finished before" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_what_was_interrupted_goes_on_to_the_same_end(whole: tuple[Path, dict], copy: Path) -> None:
    stop_halfway(copy)
    assert scores(run(copy)) == scores(whole[1])
    a, b = (load_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (whole[0], copy))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert evaluated(copy) == evaluated(whole[0]) == [0, 12, 24]


def test_a_run_killed_before_its_last_evaluation_only_evaluates(whole: tuple[Path, dict], copy: Path) -> None:
    (copy / "result.json").unlink()
    lines = (copy / "eval.jsonl").read_text().splitlines(keepends=True)
    (copy / "eval.jsonl").write_text("".join(lines[:-1]))
    checkpoint = copy / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    assert scores(run(copy)) == scores(whole[1])
    assert evaluated(copy) == [0, 12, 24]
    assert checkpoint.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", '{"updates": 24, "fin', "[]"])
def test_half_a_result_is_none(content: str, whole: tuple[Path, dict], copy: Path) -> None:
    (copy / "result.json").write_text(content)
    assert scores(run(copy)) == scores(whole[1])
    assert scores(json.loads((copy / "result.json").read_text())) == scores(whole[1])


def test_without_a_checkpoint_a_run_begins_anew(whole: tuple[Path, dict], copy: Path) -> None:
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    (copy / ERROR_FILE).write_text("as it was left")
    assert scores(run(copy, WITH_FIGURES)) == scores(whole[1])
    assert evaluated(copy) == [0, 12, 24]
    steps = [event.step for event in multiplexer(copy).Tensors(".", "eval/w2")]
    assert steps == [0, 12, 24]  # the earlier attempt's curves are gone
    assert not (copy / ERROR_FILE).exists()


def test_other_settings_are_refused_with_the_key(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"algo\.actor_lr=0\.001.*0\.002"):
        run(copy, "algo.actor_lr=0.002")
    with pytest.raises(ConfigError, match=r"variant\.name=residual.*velocity"):
        run(copy, "variant=velocity")
    (copy / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run(copy)


def test_a_setting_that_came_later_and_is_off_is_no_other_setting(whole: tuple[Path, dict], copy: Path) -> None:
    config = OmegaConf.load(copy / "config.yaml")
    assert config.collect is None
    assert config.variant.instant_share is None
    del config["collect"], config["threads"], config.algo["target_clip"]
    del config.variant["instant_share"], config.algo.reformulation["instant_share"]
    OmegaConf.save(config, copy / "config.yaml")
    with pytest.raises(ConfigError, match=r"algo\.target_clip=None"):
        run(copy)
    config.algo.target_clip = OmegaConf.load(whole[0] / "config.yaml").algo.target_clip
    OmegaConf.save(config, copy / "config.yaml")
    assert run(copy) == whole[1]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", ["updates=36", "eval.every=6", "eval.samples=32", "eval.seed=7"])
def test_length_and_evaluation_stay_what_they_were(change: str, finished: bool, copy: Path) -> None:
    if not finished:
        stop_halfway(copy)
    key, _, value = change.partition("=")
    with pytest.raises(ConfigError, match=rf"{key}=\d+.*\b{value}\b"):
        run(copy, change)


def test_what_leaves_the_numbers_alone_may_change(whole: tuple[Path, dict], copy: Path) -> None:
    stop_halfway(copy)
    assert scores(run(copy, "log.every=12", "chunk=3", "checkpoint.every=6")) == scores(whole[1])


def test_length_and_evaluation_change_with_resume(copy: Path) -> None:
    assert resume(copy, "updates=36", "log.every=12", "++eval.samples=32")["updates"] == 36
    assert evaluated(copy) == [0, 12, 24, 36]
    assert OmegaConf.load(copy / "config.yaml").eval.samples == 32
    with pytest.raises(ConfigError, match=r"updates=36.*24"):
        run(copy)


@pytest.mark.parametrize("change", ["eval.episodes=5", "++eval.sampels=32", "eval={episodes:5}"])
def test_a_resumed_run_has_the_evaluation_of_its_environment(change: str, copy: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{re.split('[=:{]', change)[-2].rpartition('.')[2]}.*every, samples, seed"):
        resume(copy, change, "updates=36")


def test_a_toy_is_resumed_from_the_command_line(copy: Path) -> None:
    done = mfrl("train", f"resume={copy}", "updates=36", "eval.samples=32")
    assert done.returncode == 0, done.stderr
    assert OmegaConf.load(copy / "config.yaml").eval.samples == 32


def test_threads_are_kept_to_when_a_run_goes_on(tmp_path: Path) -> None:
    path, before = tmp_path / "run", torch.get_num_threads()
    try:
        run(path, "threads=1", "updates=6")
        torch.set_num_threads(2)
        resume(path, "updates=12")
        assert torch.get_num_threads() == 1
        resume(path, "updates=18", "threads=2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        run(tmp_path)


def test_a_run_that_another_process_trains_is_reported(copy: Path) -> None:
    with RunFolder(copy).locked(), pytest.raises(ConfigError, match="another process is training"):
        run(copy)


def test_existing_has_two_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"existing=overwrite.*new.*continue"):
        run(tmp_path, "existing=overwrite")


# ---- names, threads


def named(*overrides: str) -> str:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", ["sweep=reformulation", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        return changed_settings()
    finally:
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["variant=velocity", "seed=3", "updates=7", "eval.every=2", "jobs=2", "data_dir=x"], ""),
        (["algo.num_candidates=5", "algo.alpha=3", "experiment=quickstart"], "-quickstart-alpha_3-num_candidates_5"),
        (["experiment=quickstart", "algo.alpha=3", "algo.num_candidates=5"], "-quickstart-alpha_3-num_candidates_5"),
        (["network.actor.width=8", "network.critic.hidden=[1,2]"], "-hidden_1_2-width_8"),
        (["eval.seed=1", "data.seed=2", "algo.seed=3"], "-algo.seed_3-data.seed_2"),
        (["+algo.extra=1", "algo.q_aggregation=min"], "-extra_1-q_aggregation_min"),
    ],
)
def test_a_folder_is_named_after_what_was_changed(overrides: list[str], name: str) -> None:
    assert named(*overrides) == name


def test_two_jobs_never_share_a_folder() -> None:
    refuse_shared_folders([Path("a/b"), Path("a/c")])
    with pytest.raises(ConfigError, match=r"2 jobs.*a/b"):
        refuse_shared_folders([Path("a/b"), Path("a/c"), Path("a/b")])


def test_the_folder_of_a_sweep_is_the_innermost_that_holds_all_jobs() -> None:
    assert common_folder([Path("r/e/v/seed0")]) == Path("r/e/v")
    assert common_folder([Path("r/e/v/seed0"), Path("r/e/v/seed1")]) == Path("r/e/v")
    assert common_folder([Path("r/e/v/seed0"), Path("r/e/w/seed0")]) == Path("r/e")
    assert common_folder([Path("a"), Path("b")]) == Path()


@pytest.mark.parametrize(
    ("threads", "workers", "expected"),
    [(1, "null", {"workers": 0}), (2, "null", {"workers": 2}), (1, "3", {}), ("null", "null", {})],
)
def test_threads_hold_for_the_simulator(threads: int | str, workers: str, expected: dict[str, int]) -> None:
    assert worker_setting(compose(f"threads={threads}", f"eval.workers={workers}")) == expected
    assert worker_setting(compose("experiment=toy", f"threads={threads}")) == {}


def test_threads_must_be_a_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads=0"):
        run(tmp_path, "threads=0")


# ---- TensorBoard, read as its plugins read it


def multiplexer(folder: Path) -> EventMultiplexer:
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    return runs


def tensorboard(folder: Path) -> TBContext:
    runs = multiplexer(folder)
    provider = MultiplexerDataProvider(runs, str(folder))
    return TBContext(data_provider=provider, multiplexer=runs, logdir=str(folder))


def hparams_table(folder: Path) -> dict[str, tuple[dict, dict]]:
    """The HParams tab: for every run its settings, in the order of the columns, and its metrics."""
    request, plugin = context.RequestContext(), backend_context.Context(tensorboard(folder))
    experiment = get_experiment.Handler(request, plugin, "", api_pb2.GetExperimentRequest()).run()
    ask = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=[api_pb2.STATUS_SUCCESS])
    for column in experiment.hparam_infos:
        ask.col_params.add().hparam = column.name
    for column in experiment.metric_infos:
        ask.col_params.add().metric.CopyFrom(column.name)
    rows = list_session_groups.Handler(request, plugin, "", ask).run().session_groups
    return {
        row.name: (
            {
                column.name: getattr(value, value.WhichOneof("kind"))
                for column in experiment.hparam_infos
                for value in [row.hparams[column.name]]
                if value.WhichOneof("kind")
            },
            {metric.name.tag: metric.value for metric in row.metric_values},
        )
        for row in rows
    }


def test_the_hparams_tab_compares_the_runs_of_a_sweep(simulated: tuple[Path, str]) -> None:
    table = hparams_table(simulated[0])
    assert len(table) == 4
    for folder, (settings, metrics) in table.items():
        result = json.loads((simulated[0] / folder / "result.json").read_text())
        # TensorBoard shows five columns, sorted by name, those marked as differing before the others.
        names = [name.strip() for name in settings]
        assert names[:5] == ["variant", "seed", "env", "algo.alpha", "batch_size"], "the last one was overridden"
        assert list(settings.values())[:4] == [result["variant"], result["seed"], DATASET, result["alpha"]]
        assert settings["algo.target_candidates"] == "null", "a default is said too"
        assert settings["network.actor.width"] == 16
        assert next(iter(metrics)) == "score"
        assert metrics["score"] == pytest.approx(result["mean_of_last_three"]["eval/success"])
        assert metrics["eval/return"] == pytest.approx(result["final"]["eval/return"])
    assert len({tuple(settings) for settings, _ in table.values()}) == 1, "a run without a column is drawn nowhere"


def test_a_run_that_goes_on_has_one_line_in_the_hparams_tab(copy: Path) -> None:
    result = resume(copy, "updates=36", WITH_FIGURES)
    ((settings, metrics),) = hparams_table(copy).values()
    assert settings["updates"] == 36
    assert metrics["score"] == metrics["eval/w2"] == pytest.approx(result["final"]["eval/w2"], rel=1e-6)


def patterns(chart: dict) -> list[str]:
    if "margin" in chart:
        return [f"^{tag}$" for series in chart["margin"]["series"] for tag in series.values()]
    return chart["multiline"]["tag"]


def charts(folder: Path) -> dict[str, dict[str, set[str]]]:
    """The Custom Scalars tab: for every category and chart the curves it finds in the first run."""
    everything = tensorboard(folder)
    everything.plugin_name_to_instance = {"scalars": ScalarsPlugin(everything)}
    plugin, request = CustomScalarsPlugin(everything), context.RequestContext()
    name = min(everything.multiplexer.Runs())
    return {
        category["title"]: {
            chart["title"]: {
                curve
                for tag in patterns(chart)
                for curve in plugin.scalars_impl(request, name, tag, "")["tag_to_events"]
            }
            for chart in category["chart"]
        }
        for category in json.loads(plugin.layout_impl(request, ""))["category"]
    }


def test_the_custom_scalars_tab_groups_the_curves_of_a_simulated_run(simulated: tuple[Path, str]) -> None:
    found = charts(simulated[0])
    assert found["evaluation"]["success"] == {"eval/success"}
    assert found["critic"]["critic loss"] == {"train/critic_loss"}
    assert found["held out"]["critic loss"] == {"val/critic_loss"}
    (band,) = [curves for curves in found["critic"].values() if len(curves) > 1]
    assert band == {"train/q", "critic/q_min", "critic/q_max"}
    assert found["actor"]["actions out of bounds"] == {"actor/out_of_bounds"}
    assert found["speed"]["updates per second"] == {"perf/updates_per_second"}
    assert all(curves for category in found.values() for curves in category.values()), "a chart of nothing"
    policy = [chart for category in found.values() for chart, curves in category.items() if "critic/policy_q" in curves]
    assert policy == ["Q of the policy"], "once, with one sign"


def test_the_custom_scalars_tab_groups_the_curves_of_a_toy_run(whole: tuple[Path, dict]) -> None:
    found = charts(whole[0])
    assert {"eval/w2", "eval/w2_floor"} in found["evaluation"].values()
    assert found["evaluation"]["mode coverage"] == {"eval/mode_coverage"}
    assert found["evaluation"]["actions out of bounds"] == {"eval/out_of_bounds"}
    assert found["actor"]["flow loss"] == {"train/flow_loss"}
    assert found["held out"]["flow loss"] == {"val/flow_loss"}
    assert "critic" not in found
    assert all(curves for category in found.values() for curves in category.values()), "a chart of nothing"
