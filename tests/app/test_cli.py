"""The command line's answers: one sentence for whoever mistyped, nothing half-written for whoever pressed Ctrl-C."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import Command, shorten_episodes
from tiny import WITHOUT_FIGURES, compose, mfrl

from mfrl.app.overrides import Composer
from mfrl.app.presets import methods
from mfrl.app.refusals import check_overrides
from mfrl.app.tasks import choose
from mfrl.collect.ogbench.runner import collect
from mfrl.data.ogbench_download import download
from mfrl.errors import CollectError, ConfigError, DataError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("network=null", "network=null.*dit.*toy.*network="),
        ("network=small,null", "network=null.*small"),
        ("experiment=null", "experiment="),
        ("env=3", "env=3.*d4rl/.*minari/.*ogbench/.*toy/"),
        ("~env", "~env"),
        ("network@x=small", "network@x"),
        ("cube-single-play-task2", r"env=ogbench/cube-single-play env\.task=2"),
        ("=3", "=3.*KEY=VALUE"),
        ("log={evry:3}", r"log\.evry.*log\.every"),
        ("log=3", r"log\.every"),
        ("eval=null", r"eval\.every, eval\.episodes"),
        ("algo.alpha=abc", r"algo\.alpha=abc.*10\.0"),
        ("seed=-1", "seed=-1.*from 0"),
        ("env=d4rl/pen-human env.task=2", r"env\.task=2.*D4RL/pen/human-v2"),
        ("collect=true", "collect=True.*mfrl collect"),
        ("experiment=quickstart ++collect.episods=3", "episods.*pointmaze-medium-explore-v0.*episodes"),
        ("env=toy/grid collect={seed:0}", "collect.*toy-grid"),
    ],
)
def test_an_override_that_cannot_be_is_answered_in_our_words(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_overrides("train", overrides.split())


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


@pytest.mark.parametrize(
    "overrides",
    [
        "experiment=quickstart seed=3 algo={alpha:2} network.critic.hidden=[8] trainer.precision=32 run_dir=x",
        "env=toy/grid seed=3 algo=fql updates=${batch_size} algo.actor_average=null",
        "++collect.episodes=3 seed=3",  # which Hydra does
    ],
)
def test_values_changed_in_what_is_composed_are_those_that_hydra_composes(overrides: str) -> None:
    given, config = overrides.split(), OmegaConf.to_container
    assert config(compose("train", *given)) == config(Composer("train")(given))
    changed = compose("train", *given)
    changed.seed = 4
    assert compose("train", *given).seed == 3  # of each its own


def test_an_experiments_collection_takes_every_setting_of_its_collector(tmp_path: Path) -> None:
    small = ["network=small", "updates=2", "batch_size=4", "eval.every=2", "eval.episodes=1", "eval.num_envs=1"]
    folders = [f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/run"]
    collection = "collect={episodes: 3, episode_steps: 21, workers: 1}"
    given = ["experiment=quickstart", WITHOUT_FIGURES, "eval.workers=0", *small, collection, *folders]
    done = mfrl("train", *given, prepare=shorten_episodes)
    assert done.returncode == 0, done.stderr
    record = (tmp_path / "data" / "pointmaze-medium-explore-v0.provenance.json").read_text()
    assert '"episodes": 3' in record
    assert '"seed": 0' in record  # the experiment's own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": "many"}, "episodes .*at least 1.*many"),
        ({"episodes": 1.5}, r"episodes .*1\.5"),
        ({"noise": "loud"}, "noise .*loud"),
        ({"workers": 0}, "workers .*at least 1.*0"),
        ({"seed": -1}, "seed .*at least 0.*-1"),
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
    assert re.search(f"(?i){policy}.*null, random.*ckpt:", " ".join(done.stderr.split()))


def test_what_ogbench_does_not_publish_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfrl.data.ogbench_download.DOWNLOAD_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"OGBench publishes.*collect"):
        download("pointmaze-medium-explore-v0", tmp_path, mirrors=())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run_dir=/proc/mine", "run_dir=/proc/mine"),
        ("accelerator=gpuu", "accelerator=gpuu"),
        ("trainer.accelerator=gpuu", "trainer.accelerator=gpuu"),
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
    assert not methods(task.name)
    (task,) = choose(["pointmaze-medium-explore-task1"])
    assert task.default


@pytest.mark.parametrize("env", ["ogbench/pointmaze-large-navigate", "minari/pointmaze-large"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_collection_that_is_stopped_leaves_nothing(env: str, number: int, tmp_path: Path) -> None:
    command = begin_collecting(env, tmp_path)
    command.signal(number)
    assert command.end() == 128 + number
    assert "Traceback" not in command.said
    assert ("interrupted" in command.said) == (number == signal.SIGINT)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_collection_left_is_removed_by_the_next_and_what_one_at_work_has_is_not(tmp_path: Path) -> None:
    killed, at_work = (begin_collecting("minari/pointmaze-large", tmp_path, f"my/{n}-v0") for n in ("a", "b"))
    try:
        killed.signal(signal.SIGKILL)
        killed.end()
        assert len(list(tmp_path.glob(".collect-*"))) == 2
        done = mfrl("collect", "env=minari/dataset", "env.dataset=my/c-v0", "env.gym_id=Pendulum-v1", "policy=random",
                    "episodes=1", f"data_dir={tmp_path}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(list(tmp_path.glob(".collect-*"))) == 1
        assert at_work.process.is_alive()
    finally:
        at_work.signal(signal.SIGTERM)
        at_work.end()
    assert {path.name for path in tmp_path.iterdir()} == {"my"}


def test_a_run_stopped_before_a_checkpoint_is_due_is_saved(data_dir: Path, tmp_path: Path) -> None:
    overrides = [f"data_dir={data_dir}", f"run_dir={tmp_path}/run"]
    command = Command(["train", *overrides, "network=small", "log.every=1", "compile=false"], tmp_path)
    metrics = tmp_path / "run" / "metrics.csv"
    command.wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    command.signal(signal.SIGINT)
    command.end()
    assert f"mfrl train resume={tmp_path}/run" in command.said
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def begin_collecting(env: str, folder: Path, dataset: str | None = None) -> Command:
    """A collection of some minutes that has made its folder for what is unfinished."""
    named = [] if dataset is None else [f"dataset={dataset}", "policy=random", "steps=100000000"]
    alone = ["workers=1"] if env.startswith("ogbench") else []
    before = set(folder.glob(".collect-*"))
    command = Command(["collect", f"env={env}", f"data_dir={folder}", *named, *alone], folder.parent)
    command.wait_until(lambda: set(folder.glob(".collect-*")) - before)
    return command
