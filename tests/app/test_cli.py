"""The command line's answers: one sentence for whoever mistyped, nothing half-written for whoever pressed Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import COMMAND, mfrl

from mfrl.app.overrides import check_overrides
from mfrl.app.tasks import choose
from mfrl.catalogue import CollectError
from mfrl.collect.ogbench.runner import collect
from mfrl.data.download import download
from mfrl.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("network=null", "network=null must be one of dit, fql, mlp, small, toy; leave network= out"),
        ("network=small,null", "network=null must be one of"),
        ("experiment=null", "leave experiment= out for the default"),
        ("env=3", "env=3 must be one of d4rl/..., minari/..., ogbench/..., toy/..."),
        ("~env", "~env: a setting cannot be taken away"),
        ("network@x=small", "there is no setting 'network@x'"),
        ("cube-single-play-task2", "did you mean env=ogbench/cube-single-play env.task=2?"),
        ("=3", "'=3' cannot be read as KEY=VALUE"),
        ("log={evry:3}", "there is no setting 'log.evry' (did you mean log.every"),
        ("log=3", "would take away the settings log.every"),
        ("eval=null", "would take away the settings eval.every, eval.episodes"),
        ("algo.alpha=abc", "algo.alpha=abc must be a number, e.g. 10.0"),
        ("seed=-1", "seed=-1 must be a whole number from 0"),
        ("env=d4rl/pen-human env.task=2", "env.task=2: D4RL/pen/human-v2 has one task only"),
        ("collect=true", "collect=True must be null or settings of `mfrl collect`"),
        (
            "experiment=quickstart ++collect.episods=3",
            "is no setting of collecting pointmaze-medium-explore-v0 (did you",
        ),
        ("env=toy/grid collect={seed:0}", "there is nothing to collect of toy-grid"),
    ],
)
def test_an_override_that_cannot_be_is_answered_in_our_words(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides("train", overrides.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "algo={alpha:3} algo.time_steps=null",
        "algo.alpha=${batch_size}",
        "variant=custom variant.p=[0.5,0.5] variant.q=[1,2] variant.name=half",
        "experiment=study_cube collect=null",
        "sweep=reformulation experiment=toy",
    ],
)
def test_what_can_be_composed_is_not_refused(overrides: str) -> None:
    check_overrides("train", overrides.split())


def test_an_experiments_collection_takes_every_setting_of_its_collector(tmp_path: Path) -> None:
    small = ["network=small", "updates=2", "batch_size=4", "eval.every=2", "eval.episodes=1", "eval.num_envs=1"]
    given = ["collect={episodes: 3, episode_steps: 21}", f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/run"]
    done = mfrl("train", "experiment=quickstart", *small, *given)
    assert done.returncode == 0, done.stderr
    record = (tmp_path / "data" / "pointmaze-medium-explore-v0.provenance.json").read_text()
    assert '"episodes": 3' in record
    assert '"seed": 0' in record  # the experiment's own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": "many"}, "episodes must be a whole number of at least 1, got many"),
        ({"episodes": 1.5}, "episodes must be a whole number"),
        ({"noise": "loud"}, "noise must be at least 0 and finite, got loud"),
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_a_collection_of_no_sense_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match=message):
        collect("pointmaze-medium-explore-v0", tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("policy", ["3", "true", "expert"])
def test_a_policy_that_nobody_knows_is_refused(policy: str, tmp_path: Path) -> None:
    done = mfrl("collect", "env=minari/pointmaze-umaze", f"policy={policy}", f"data_dir={tmp_path}")
    assert done.returncode == 1
    assert "is unknown; known are null, random and ckpt:PATH" in " ".join(done.stderr.split())


def test_what_ogbench_does_not_publish_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfrl.data.download.DOWNLOAD_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"none of the datasets that OGBench publishes.*; or collect it in"):
        download("pointmaze-medium-explore-v0", tmp_path, mirrors=())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run_dir=/proc/mine", "run_dir=/proc/mine cannot be made"),
        ("accelerator=gpuu", "accelerator=gpuu is not on this machine ("),
    ],
)
def test_what_the_machine_does_not_have_is_named(setting: str, message: str, data_dir: Path, tmp_path: Path) -> None:
    done = mfrl("train", "network=small", f"data_dir={data_dir}", f"run_dir={tmp_path}/run", setting)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_task_of_a_dataset_has_a_name() -> None:
    (task,) = choose(["visual-cube-single-play-task3"])
    assert task.overrides == "env=ogbench/visual-cube-single-play env.task=3"
    assert not task.presets
    (task,) = choose(["pointmaze-medium-explore-task1"])
    assert task.default


@pytest.mark.parametrize("env", ["ogbench/pointmaze-large-navigate", "minari/pointmaze-large"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_collection_that_is_stopped_leaves_nothing(env: str, number: int, tmp_path: Path) -> None:
    process = begin_collecting(env, tmp_path)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in text
    assert ("interrupted" in text) == (number == signal.SIGINT)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_collection_left_is_removed_by_the_next_and_what_one_at_work_has_is_not(tmp_path: Path) -> None:
    killed, at_work = (begin_collecting("minari/pointmaze-large", tmp_path, f"my/{n}-v0") for n in ("a", "b"))
    try:
        killed.kill()
        killed.communicate()
        assert len(list(tmp_path.glob(".collect-*"))) == 2
        done = mfrl("collect", "env=minari/dataset", "env.dataset=my/c-v0", "env.gym_id=Pendulum-v1", "policy=random",
                    "episodes=1", f"data_dir={tmp_path}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(list(tmp_path.glob(".collect-*"))) == 1
        assert at_work.poll() is None
    finally:
        at_work.terminate()
        at_work.communicate(timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {"my"}


def test_a_run_stopped_before_a_checkpoint_is_due_is_saved(data_dir: Path, tmp_path: Path) -> None:
    overrides = [f"data_dir={data_dir}", f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(
        [*COMMAND, "train", *overrides, "network=small", "log.every=1", "compile=false"],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.csv"
    wait_for(process, lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert f"go on with: mfrl train resume={tmp_path}/run" in " ".join(text.split())
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def begin_collecting(env: str, folder: Path, dataset: str | None = None) -> subprocess.Popen[str]:
    """A collection of some minutes that has made its first temporary file."""
    named = [] if dataset is None else [f"dataset={dataset}", "policy=random", "steps=100000000"]
    alone = ["workers=1"] if env.startswith("ogbench") else []
    before = set(folder.iterdir())
    process = subprocess.Popen(
        [*COMMAND, "collect", f"env={env}", f"data_dir={folder}", *named, *alone],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    wait_for(process, lambda: set(folder.iterdir()) - before)
    time.sleep(2.0)  # into the first episodes
    return process


def wait_for(process: subprocess.Popen[str], happened: Callable[[], object]) -> None:
    for _ in range(600):
        if happened():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened within a minute")
