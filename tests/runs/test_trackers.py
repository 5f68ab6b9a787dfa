"""Trackers: a run has one record in each, with the numbers of its own files, however it ends and goes on."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import sqlite3
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from processes import Command
from tiny import TOY, mfrl
from wandb.proto import wandb_internal_pb2

from mfrl.app.train import train
from mfrl.app.watch import StartedRun
from mfrl.errors import ConfigError, MfrlError
from mfrl.runs.folder import RunFolder
from mfrl.runs.jobs import FINISHED
from mfrl.runs.loggers import tag
from mfrl.runs.trackers import MLflowRun

compose = partial(tiny.compose, "train")

WANDB = ["logger=[csv,wandb]", "logger.wandb.mode=offline"]
BOTH = ["logger=[csv,wandb,mlflow]", "logger.wandb.mode=offline"]
Numbers = dict[tuple[str, int], float]


def run(runs: Path, *overrides: str) -> dict[str, Any]:
    given = [*TOY, f"runs={runs}", f"run_dir={runs}/run", *overrides]
    return train(compose(*given), given)


def own_numbers(folder: Path) -> Numbers:
    """What metrics.csv has, by tag and update."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (tag(name), int(row["updates"])): float(value)
        for row in rows
        for name, value in row.items()
        if name != "updates" and value != ""
    }


def records(path: Path) -> list[wandb_internal_pb2.Record]:
    """The content of an offline file of W&B's: protocol buffers in LevelDB's log format, behind a header of 7 bytes."""
    data, found, parts, place = path.read_bytes(), [], b"", 7
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def offline(folder: Path) -> list[list[wandb_internal_pb2.Record]]:
    """What each attempt of a run has left in W&B's offline folders, the first attempt first."""
    return [records(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def numbers_of(attempt: list[wandb_internal_pb2.Record]) -> Numbers:
    found = {}
    for record in attempt:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = items["_step"]
            assert items["trainer/global_step"] == step
            found |= {(key, step): value for key, value in items.items() if not key.startswith(("_", "trainer/"))}
    return found


def mlflow(runs: Path) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("mfrl")
    return client, client.search_runs([experiment.experiment_id])


def numbers_in(client: MlflowClient, record: Run) -> Numbers:
    found = [m for key in record.data.metrics for m in client.get_metric_history(record.info.run_id, key)]
    assert max(Counter((m.key, m.step) for m in found).values()) == 1, "a number was logged twice"
    return {(m.key, m.step): m.value for m in found}


def assert_same(found: Numbers, expected: Numbers) -> None:
    def steady(numbers: Numbers) -> Numbers:
        return {key: value for key, value in numbers.items() if not key[0].startswith("perf/")}

    assert steady(found).keys() == steady(expected).keys()
    assert all(math.isclose(value, expected[key]) for key, value in steady(found).items())


def attempt_id(attempt: list[wandb_internal_pb2.Record]) -> str:
    (found,) = {r.run.run_id for r in attempt if r.WhichOneof("record_type") == "run"}
    return found


def stop_halfway(folder: Path) -> None:
    """Leave a finished run as a kill after update 12 of 24 leaves one, with numbers of later updates logged."""
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "update=12.ckpt").replace(folder / "checkpoints" / "last.ckpt")


def resume(folder: Path, *overrides: str) -> None:
    given = [f"resume={folder}", *overrides]
    train(compose(*given), given)


def in_a_process(folder: Path, *overrides: str) -> None:
    """Train in a process of its own, which W&B's service ends with."""
    done = mfrl("train", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    runs = tmp_path_factory.mktemp("tracked")
    in_a_process(runs, *TOY, *WANDB, f"runs={runs}", f"run_dir={runs}/run", "checkpoint.keep_all=true")
    return runs / "run"


@pytest.fixture
def halfway(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, stopped halfway."""
    folder = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    stop_halfway(folder)
    return folder


def test_wandb_has_the_settings_and_the_numbers_of_the_run(finished: Path) -> None:
    (attempt,) = offline(finished)
    assert_same(numbers_of(attempt), own_numbers(finished))
    settings = {item.key: item.value_json for r in attempt for item in r.config.update}
    settings |= {item.key: item.value_json for r in attempt for item in r.run.config.update}
    assert settings["batch_size"] == "8"
    assert settings["provenance.source"] == '"generated"'
    assert [r.exit.exit_code for r in attempt if r.WhichOneof("record_type") == "exit"] == [0]
    assert json.loads((finished / "trackers.json").read_text()) == {"wandb": attempt_id(attempt)}


def test_a_resumed_run_goes_on_in_the_same_record_of_wandb(halfway: Path) -> None:
    in_a_process(halfway.parent, f"resume={halfway}", *WANDB)
    expected = own_numbers(halfway)
    first, second = offline(halfway)
    assert attempt_id(first) == attempt_id(second)
    assert_same(numbers_of(first), expected)
    assert_same(numbers_of(second), {key: value for key, value in expected.items() if key[1] > 12})


@pytest.mark.slow
def test_mlflow_has_the_settings_and_the_numbers_of_the_run_however_often_it_goes_on(tmp_path: Path) -> None:
    folder, store = tmp_path / "run", f"logger.mlflow.database={tmp_path}/mlflow.db"
    run(tmp_path, "logger=[csv,mlflow]", "checkpoint.keep_all=true")
    client, (record,) = mlflow(tmp_path)
    assert_same(numbers_in(client, record), own_numbers(folder))
    assert record.data.params["variant.name"] == "residual"
    assert record.data.params["provenance.source"] == "generated"
    assert record.info.status == "FINISHED"
    assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": record.info.run_id}
    stop_halfway(folder)
    resume(folder, "logger=[csv,mlflow]", store)
    resume(folder, "logger=[csv,mlflow]", store, "updates=30")
    client, (record,) = mlflow(tmp_path)
    assert_same(numbers_in(client, record), own_numbers(folder))
    assert max(step for _, step in own_numbers(folder)) == 30
    assert (record.data.params["updates"], record.data.tags["updates"]) == ("24", "30")
    assert record.info.status == "FINISHED"
    with pytest.raises(MfrlError, match=r"another.db.*trackers.json"):
        resume(folder, "logger=mlflow", f"logger.mlflow.database={tmp_path}/another.db", "updates=36")


@pytest.mark.parametrize(("name", "pip"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_told_before_there_is_a_folder(
    name: str, pip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as Python notes a module that cannot be imported
    with pytest.raises(ConfigError, match=f"logger={name} needs .*pip install .*{pip}"):
        run(tmp_path, f"logger={name}")
    assert not (tmp_path / "run").exists()


def test_an_address_with_a_password_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.mlflow\.tracking_uri holds a password.*MLFLOW_TRACKING_URI"):
        run(tmp_path, "logger=mlflow", "logger.mlflow.tracking_uri='postgresql://me:word@tracking/runs'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["{", '{"wandb": "../../elsewhere"}', "[]"])
def test_a_damaged_record_of_ids_is_told(content: str, halfway: Path) -> None:
    (halfway / "trackers.json").write_text(content)
    with pytest.raises(MfrlError, match=r"trackers.json is damaged"):
        resume(halfway, *WANDB)


@pytest.mark.slow
def test_numbers_wait_while_the_store_is_not_to_be_had(tmp_path: Path) -> None:
    logger = MLflowRun(tmp_path, "mfrl", tmp_path / "mlflow.db")
    logger.log_hyperparams({"a+b": 1})
    other = sqlite3.connect(tmp_path / "mlflow.db")
    other.execute("ALTER TABLE metrics RENAME TO elsewhere")
    other.commit()
    with pytest.warns(UserWarning, match="wait for the next attempt"):
        logger.log_metrics({"train/q": 1.0}, 6)
    with warnings.catch_warnings(action="error"):
        logger.log_metrics({"train/q": 1.5}, 9)  # not asked again at once: each attempt holds up training
    other.execute("ALTER TABLE elsewhere RENAME TO metrics")
    other.commit()
    logger.log_metrics({"train/q": 2.0}, 12)
    logger.close(FINISHED)
    client, (record,) = mlflow(tmp_path)
    assert numbers_in(client, record) == {("train/q", 6): 1.0, ("train/q", 9): 1.5, ("train/q", 12): 2.0}
    assert record.data.params == {"a_b": "1"}


def test_a_record_that_cannot_be_closed_is_a_warning_and_the_next_one_is_closed(tmp_path: Path) -> None:
    closed = []

    class Failing(MLflowRun):
        def close(self, status: str) -> None:
            closed.append(status)
            raise OSError("no space")

    loggers = {name: Failing(tmp_path, "mfrl", tmp_path / "mlflow.db") for name in ("one", "other")}
    started = StartedRun(OmegaConf.create(), [], RunFolder(tmp_path), None, {}, loggers, "collected", 0.0)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="no space"):
        started.close(FINISHED)
    assert closed == [FINISHED] * 2


@pytest.mark.slow
def test_each_member_of_a_pack_has_a_record_of_its_own(tmp_path: Path) -> None:
    folders = "run_dir=runs/seed${seed}"
    done = mfrl("train", "seeds=2", *TOY, *BOTH, "logger.wandb.name=s${seed}", "runs=runs", folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 members, " in done.stderr
    client, found = mlflow(tmp_path / "runs")
    ids = {json.loads((tmp_path / f"runs/seed{seed}/trackers.json").read_text())["mlflow"]: seed for seed in (0, 1)}
    assert {record.info.run_id for record in found} == {*ids}
    for record in found:
        folder = tmp_path / f"runs/seed{ids[record.info.run_id]}"
        assert record.info.status == "FINISHED"
        assert record.data.tags["mlflow.runName"] == f"runs/{folder.name}"
        assert_same(numbers_in(client, record), own_numbers(folder))
        (attempt,) = offline(folder)
        assert_same(numbers_of(attempt), own_numbers(folder))
        assert {r.run.display_name for r in attempt if r.run.display_name} == {f"s{folder.name[-1]}"}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, "KILLED"), (signal.SIGINT, "KILLED"), (9, "RUNNING")])
def test_a_run_that_is_stopped_goes_on_in_the_same_record(how: int, status: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    given = [*TOY, *BOTH, "runs=runs", "run_dir=runs/run", "existing=continue", "updates=900", "checkpoint.every=60"]
    command = Command(["train", *given, "log.every=60", "eval.every=450"], tmp_path)
    try:
        command.wait_until((runs / "run/checkpoints/last.ckpt").exists)
        command.signal(how, group=how != 9)  # a terminal and a cluster reach W&B's own process too
        command.end()
    finally:
        command.close()
    client, (record,) = mlflow(runs)
    assert record.info.status == status
    done = mfrl("train", *given, "log.every=60", "eval.every=450", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    client, (record,) = mlflow(runs)
    assert record.info.status == "FINISHED"
    expected = own_numbers(runs / "run")
    assert_same(numbers_in(client, record), expected)
    first, second = offline(runs / "run")
    (record_id,) = {path.name.rpartition("-")[2] for path in (runs / "run").glob("wandb/offline-run-*")}
    assert attempt_id(second) == record_id  # the first attempt's file may be empty: W&B writes after a while
    kept = numbers_of(first) | numbers_of(second)
    if status == "KILLED":
        assert [r.exit.exit_code for r in first if r.WhichOneof("record_type") == "exit"] == [1]
        assert_same(kept, expected)
    else:  # what W&B had not written when it was killed is lost
        assert_same(kept, {key: value for key, value in expected.items() if key in kept})
        assert max(step for _, step in kept) == 900


@pytest.mark.slow
def test_jobs_side_by_side_share_a_store_that_none_has_made(tmp_path: Path) -> None:
    given = ["-m", *TOY, "logger=mlflow", "runs=runs", "run_dir=runs/seed${seed}", "seed=0,1"]
    done = tiny.program("train", *given, "hydra/launcher=parallel", "+jobs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, found = mlflow(tmp_path / "runs")
    assert [record.info.status for record in found] == ["FINISHED"] * 2
