"""Kills, signals and what they leave behind: nothing trained is lost, and a run that goes on ends as if undisturbed."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.abc import MetaPathFinder
from multiprocessing import active_children
from pathlib import Path

import pytest
import tiny
import torch
from conftest import DATASET
from processes import Command, processes_of_group
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import COMMAND, ENVIRONMENT, MAZE, WITH_FIGURES

from mfrl.app.checks import check_settings
from mfrl.app.train import train
from mfrl.envs import ogbench
from mfrl.errors import ConfigError, DivergedError
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.folder import RunFolder
from mfrl.runs.loggers import MetricsCSV
from mfrl.study.toys import ToyData
from mfrl.system import signals
from mfrl.system.files import NoLocks, one_at_a_time, replacing, temporary_folder, write_text

# What is logged is no divisor of what is saved, so that windows of logging are cut by checkpoints.
TOY = [*tiny.TOY, "updates=60", "log.every=7", "checkpoint.every=10", "eval.every=15"]
ENDLESS = [*TOY, "updates=1000000", "eval.every=1000000", "checkpoint.every=1000000"]
#: A run that learns from interaction alone: what it meets is written before what it has learned of it.
ONLINE = [
    "env=gym/any",
    "env.gym_id=Pendulum-v1",
    "env.max_episode_steps=25",
    "algo=sac",
    "network.critic.hidden=[8]",
    "updates=0",
    "online.steps=120",
    "online.num_envs=2",
    "online.start_after=20",
    "batch_size=8",
    "log.every=7",
    "checkpoint.every=10",
    "eval.every=30",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.workers=0",
    "accelerator=cpu",
]
SIMULATED = [
    *MAZE,
    "updates=12",
    "checkpoint.every=1000",
    "eval.every=6",
    "eval.episodes=200",
    "eval.num_envs=2",
    "eval.workers=2",
]
STARTED: list[subprocess.Popen[str]] = []
compose = partial(tiny.compose, "train")


def run(folder: Path, *overrides: str) -> dict:
    changes = [*TOY, f"run_dir={folder}", "existing=continue", *overrides]
    return train(compose(*changes), changes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "reference"
    run(path, WITH_FIGURES)
    return path


@pytest.fixture(autouse=True)
def no_group_goes_on() -> Iterator[None]:
    yield
    while STARTED:
        with suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def evaluations(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def saved_updates(path: Path) -> int:
    return load_checkpoint(path / "checkpoints" / "last.ckpt")["updates"]


def steps(path: Path, tag: str) -> set[int]:
    events = EventAccumulator(str(path))
    events.Reload()
    return {event.step for event in events.Scalars(tag)}


CURVES = ("eval/w2", "val/flow_loss", "train/flow_loss")


def assert_same_run(a: Path, b: Path, curves: Sequence[str] = ()) -> None:
    """Weights byte for byte, every evaluation, every number and TensorBoard's curves, and nothing half-written."""
    ours, theirs = (load_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (a, b))
    assert {name: t.numpy().tobytes() for name, t in ours.items()} == {
        name: t.numpy().tobytes() for name, t in theirs.items()
    }
    assert evaluations(a) == evaluations(b)
    assert rows(a) == rows(b)
    for tag in curves:
        assert steps(a, tag) == steps(b, tag)
    assert not list(b.rglob(".*.tmp*"))


def logged(path: Path, least: int = 1) -> Callable[[], bool]:
    """Whether so many rows of metrics are there."""
    return lambda: (path / "metrics.csv").exists() and len((path / "metrics.csv").read_text().splitlines()) > least


# ---- kills


def state(path: Path) -> tuple:
    """What changes while a run goes on, to kill it at one of the moments when files are written."""

    def of(file: Path) -> tuple[int, int]:
        try:
            return file.stat().st_mtime_ns, file.stat().st_size
        except OSError:
            return 0, 0

    temporary = sorted(p.name for folder in (path, path / "checkpoints") for p in folder.glob(".*.tmp*"))
    return temporary, *(of(path / name) for name in ("metrics.csv", "eval.jsonl", "checkpoints/last.ckpt"))


def kill_until_finished(path: Path, kills: int, overrides: list[str], seed: int = 0) -> int:
    """Start a run again and again, killed so many times at moments near a write; then let it finish.

    Returns:
        how often it was killed: less than asked for where it finished before.
    """
    draw = random.Random(seed)
    done = 0
    changes = [*overrides, f"run_dir={path}", "existing=continue"]
    cfg = compose(*changes)
    while True:
        command = Command(changes, path.parent, cfg=cfg)
        if done == kills:
            assert command.end() == 0, command.said
            return done
        for _ in range(draw.randint(1, 8)):
            before = state(path)
            while command.process.is_alive() and state(path) == before:
                time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.02))
        command.signal(signal.SIGKILL)
        if command.end() == 0:
            return done
        done += 1


def test_a_run_that_is_killed_four_times_ends_as_if_it_had_not_been(reference: Path, tmp_path: Path) -> None:
    assert kill_until_finished(tmp_path / "run", 4, [*TOY, WITH_FIGURES]) > 0
    assert_same_run(reference, tmp_path / "run", CURVES)


def kill_runs(folder: Path, kills: int, overrides: list[str], check: Callable[[Path], None]) -> None:
    """Kill so many times, ten times a run, and check every run at its end."""
    tried = number = 0
    while tried < kills:
        path = folder / str(number) / "run"
        path.parent.mkdir()
        tried += kill_until_finished(path, 10, overrides, seed=number)
        check(path)
        number += 1
    print(f"\n{tried} kills over {number} runs: every run ended as the undisturbed one")


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(reference: Path, tmp_path: Path) -> None:
    kills, same = int(os.environ.get("MFRL_KILLS", "100")), partial(assert_same_run, reference, curves=CURVES)
    kill_runs(tmp_path, kills, [*TOY, WITH_FIGURES], same)


@pytest.fixture(scope="module")
def online_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("online") / "reference"
    changes = [*ONLINE, f"run_dir={path}"]
    train(compose(*changes), changes)
    return path


def assert_same_online(a: Path, b: Path) -> None:
    assert_same_run(a, b, ("eval/return", "train/critic_loss", "online/steps"))
    assert (a / "replay.bin").read_bytes() == (b / "replay.bin").read_bytes()


def test_an_online_run_that_is_killed_ends_as_if_it_had_not_been(online_reference: Path, tmp_path: Path) -> None:
    assert kill_until_finished(tmp_path / "run", 3, ONLINE) > 0
    assert_same_online(online_reference, tmp_path / "run")


@pytest.mark.slow
def test_twenty_kills_of_online_runs_lose_nothing(online_reference: Path, tmp_path: Path) -> None:
    kill_runs(tmp_path, 20, ONLINE, partial(assert_same_online, online_reference))


def killed_at_the_third_evaluation(where: str) -> None:
    """Plant a kill between an evaluation's appearance in the loggers and in ``eval.jsonl``, or before both."""
    from mfrl.runs.loggers import MetricsCSV

    log, open_ = MetricsCSV.log_metrics, Path.open
    seen = []

    def log_or_die(self, metrics, step=None):
        if "eval/w2" in metrics:
            seen.append(step)
            if len(seen) == 3 and where == "loggers":
                os.kill(os.getpid(), signal.SIGKILL)
        log(self, metrics, step)

    def open_or_die(self, mode="r", *args, **kwargs):
        if self.name == "eval.jsonl" and mode == "a" and len(seen) == 3 and where == "eval.jsonl":
            os.kill(os.getpid(), signal.SIGKILL)
        return open_(self, mode, *args, **kwargs)

    MetricsCSV.log_metrics, Path.open = log_or_die, open_or_die


def kill_in_loggers() -> None:
    killed_at_the_third_evaluation("loggers")


def kill_in_file() -> None:
    killed_at_the_third_evaluation("eval.jsonl")


@pytest.mark.parametrize("fault", [kill_in_loggers, kill_in_file])
def test_an_evaluation_is_in_the_file_and_in_every_logger(
    fault: Callable[[], None], reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    command = Command(["train", *TOY, WITH_FIGURES, f"run_dir={path}"], tmp_path, fault)
    assert command.end() == -signal.SIGKILL
    run(path, WITH_FIGURES)
    assert_same_run(reference, path, CURVES)


def test_a_checkpoint_is_written_by_time_too(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = Command(["train", *ENDLESS, f"run_dir={path}", "checkpoint.minutes=0.005"], tmp_path)
    try:
        command.wait_until((path / "checkpoints" / "last.ckpt").exists)
    finally:
        command.signal(signal.SIGKILL, group=True)
    command.end()
    assert 0 < saved_updates(path) < 1_000_000


@pytest.mark.parametrize("value", ["0", "-1", "x", "true", "nan"])
def test_minutes_must_be_positive(value: str) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint.minutes={value}"):
        check_settings(compose(*TOY, f"checkpoint.minutes={value}"))
    check_settings(compose(*TOY, "checkpoint.minutes=null"))


# ---- signals


def test_every_signal_saves_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    rare = ["updates=200", "eval.every=200", "checkpoint.every=1000", WITH_FIGURES]
    arguments = ["train", *TOY, *rare, f"run_dir={path}", "existing=continue"]
    saved = 0
    for number in signals.SIGNALS:
        command = Command(arguments, tmp_path)
        count = len(rows(path)) if (path / "metrics.csv").exists() else 1  # of update 0
        command.wait_until(logged(path, count + 1))
        command.signal(number)
        assert command.end(30.0) == 128 + number, command.said
        assert "Traceback" not in command.said
        update = saved_updates(path)
        assert update > saved
        assert f"update {update:,}" in command.said
        assert f"mfrl train resume={path}" in command.said
        saved = update
    assert saved < 200
    run(path, *rare)
    run(undisturbed, *rare)
    assert_same_run(undisturbed, path, CURVES)


def wait_in_an_update() -> None:
    """Plant an update that says when it has begun, and then takes minutes."""
    from mfrl.callbacks.interruption import Interruption

    look = Interruption.on_train_batch_start

    def look_and_wait(self, *arguments):
        look(self, *arguments)
        Path("begun").touch()
        time.sleep(600.0)

    Interruption.on_train_batch_start = look_and_wait


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = Command(["train", *ENDLESS, f"run_dir={path}"], tmp_path, wait_in_an_update)
    command.wait_until((tmp_path / "begun").exists)
    command.signal(signal.SIGINT)
    time.sleep(1.0)
    assert command.process.is_alive()
    command.signal(signal.SIGINT)
    assert command.end(30.0) == 130
    assert "Traceback" not in command.said
    assert "has to begin anew" in command.said


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As ``nohup`` ignores SIGHUP, and a shell Ctrl-C for what it runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals.forget()
        with signals.handled_by(signals.note):
            signal.raise_signal(signal.SIGHUP)
            assert signals.received() is None
            signal.raise_signal(signal.SIGTERM)
            assert signals.received() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)
        signals.forget()


def test_a_handler_that_a_library_replaces_is_put_back() -> None:
    with signals.handled_by(signals.note):
        with signals.kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signals.note


def import_that_swallows() -> None:
    """As modules in C do: what a handler raises while they are imported becomes an ImportError."""
    import mfrl.app.collect

    def collect(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as error:
            raise ImportError("initialization failed") from error

    mfrl.app.collect.collect = collect


def test_a_signal_in_the_middle_of_an_import_is_no_error(tmp_path: Path) -> None:
    command = Command(["collect", f"env=ogbench/{DATASET}", f"data_dir={tmp_path}"], tmp_path, import_that_swallows)
    assert command.end() == 128 + signal.SIGTERM
    assert command.said == ""


class _Swallows(MetaPathFinder):
    """A signal in the midst of an import that swallows what the handler raises, and goes on as if nothing had been."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.name:
            self.name = ""
            with suppress(BaseException):
                signal.raise_signal(signal.SIGTERM)
            assert signals.received() == signal.SIGTERM


def swallow_in(name: str) -> None:
    sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Swallows(name))


def test_a_signal_that_an_import_swallows_stops_the_command_all_the_same(tmp_path: Path) -> None:
    collecting = ["collect", f"env=ogbench/{DATASET}", f"data_dir={tmp_path / 'data'}", "workers=1"]
    walking = ["collect", "env=minari/pointmaze-large", f"data_dir={tmp_path / 'data'}"]
    training = ["train", *ENDLESS, f"run_dir={tmp_path / 'run'}"]
    for arguments, name in ((collecting, "ogbench"), (walking, "minari"), (training, "mfrl.app.train")):
        command = Command(arguments, tmp_path, partial(swallow_in, name))
        assert command.end(60.0) == 128 + signal.SIGTERM, command.said
        assert command.said == ""
    assert not list(tmp_path.rglob("*.npz"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def evaluating(data_dir: Path, tmp_path: Path) -> tuple[Path, Command]:
    """A run in the middle of an evaluation of some minutes, in processes of their own."""
    path = tmp_path / "run"
    command = Command(["train", *SIMULATED, f"data_dir={data_dir}", f"run_dir={path}"], tmp_path)
    command.wait_until(logged(path), 600.0)
    time.sleep(0.5)
    return path, command


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_leaves_an_evaluation_at_once(
    number: int, evaluating: tuple[Path, Command]
) -> None:
    path, command = evaluating
    assert len(processes_of_group(command.pid)) >= 3
    started = time.monotonic()
    command.signal(number, group=True)
    assert command.end(30.0) == 128 + number, command.said
    assert time.monotonic() - started < 25.0  # Slurm gives 30 seconds
    assert "WorkerError" not in command.said
    assert "Traceback" not in command.said
    assert "update 6" in command.said
    assert "mfrl train resume=" in command.said
    assert saved_updates(path) == 6
    assert not (path / "eval.jsonl").exists()
    nobody_is_left(command.pid)


def test_a_killed_run_leaves_no_process_and_no_memory(evaluating: tuple[Path, Command]) -> None:
    _, command = evaluating
    workers = processes_of_group(command.pid)
    shared = [line for pid in workers for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "mfrl" in line]
    assert any("memfd:mfrl" in line for line in shared)
    assert not any("/dev/shm/" in line for line in shared)
    command.signal(signal.SIGKILL)
    command.end()
    nobody_is_left(command.pid)


def nobody_is_left(group: int, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while left := processes_of_group(group):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_a_run_that_fails_closes_its_simulators_at_once(data_dir: Path, tmp_path: Path) -> None:
    changes = [*SIMULATED, f"data_dir={data_dir}", f"run_dir={tmp_path / 'run'}", "algo.actor_lr=1e30"]
    with pytest.raises(DivergedError) as error:
        train(compose(*changes), changes)
    assert error.value.__traceback__ is not None  # which holds on to everything that is not closed
    assert active_children() == []


# ---- Slurm


def test_slurms_variables_change_nothing(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cwd = tmp_path / "run", tmp_path / "job"
    cwd.mkdir()
    other = tmp_path / "other"
    run(other, "seed=5", "updates=10", "checkpoint.every=10")
    shutil.copy(other / "checkpoints" / "last.ckpt", cwd / "hpc_ckpt_1.ckpt")
    names = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "fault", "SLURM_PROCID": "1"}
    names |= {
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    # A process of its own, since Lightning looks at them as it is imported, too.
    command = [*COMMAND, "train", *TOY, f"run_dir={path}", "existing=continue"]
    settings = {"cwd": cwd, "env": ENVIRONMENT | names, "text": True, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **settings, start_new_session=True)
    STARTED.append(process)
    while process.poll() is None and not logged(path, 2)():
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    said = " ".join(process.communicate(timeout=120)[1].split())
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert f"mfrl train resume={path}" in said
    assert saved_updates(path) < 60
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(cwd)
    run(path)
    assert_same_run(reference, path)
    assert [p.name for p in cwd.iterdir()] == ["hpc_ckpt_1.ckpt"]
    assert not list(path.rglob("hpc_ckpt*"))


# ---- sweeps


def start_sweep(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    changes = [*ENDLESS, "sweep=reformulation", "jobs=2", "variant=residual", "seed=0,1,2", "run_dir=runs/s${seed}"]
    process = subprocess.Popen(
        [*COMMAND, "train", *changes, *overrides],
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    end = time.monotonic() + 600.0
    STARTED.append(process)
    while not all(logged(cwd / "runs" / f"s{seed}", 3)() for seed in (0, 1)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    return process


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGINT, True),  # a terminal sends Ctrl-C to all processes of a job
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),  # `kill`, to one
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_the_jobs_of_a_sweep_that_is_stopped_save(number: int, group: bool, tmp_path: Path) -> None:
    process = start_sweep(tmp_path)
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number, said
    assert "stopped; the same command again does only what is missing" in said
    assert "3 stopped" in said
    assert "Traceback" not in said
    assert all(saved_updates(tmp_path / "runs" / f"s{seed}") > 0 for seed in (0, 1))
    assert not (tmp_path / "runs" / "s2").exists()  # not begun
    nobody_is_left(process.pid)


def test_the_jobs_of_a_sweep_that_is_killed_save_and_end(tmp_path: Path) -> None:
    process = start_sweep(tmp_path)
    process.kill()
    process.communicate(timeout=120)
    nobody_is_left(process.pid)
    assert all(saved_updates(tmp_path / "runs" / f"s{seed}") > 0 for seed in (0, 1))
    assert not (tmp_path / "runs" / "s2").exists()


# ---- files


def test_metrics_are_appended_and_the_last_row_grows_in_its_place(tmp_path: Path) -> None:
    path, log = tmp_path / "metrics.csv", MetricsCSV(tmp_path)
    log.log_metrics({"b": 1.5, "c": 2.0}, step=1)
    first = path.stat().st_ino
    for step in range(2, 50):
        log.log_metrics({"b": 0.5}, step=step)
    log.log_metrics({"c": 0.25}, step=49)
    log.log_metrics({"b": 1e-300, "c": 7.0}, step=49)
    log.log_metrics({"b": 2.0}, step=49)
    assert path.stat().st_ino == first  # never made anew
    log.log_metrics({"a": 3.0}, step=49)
    assert path.stat().st_ino != first
    lines = path.read_text().splitlines()
    assert lines[0] == "updates,a,b,c"
    assert lines[1] == "1,,1.5,2.0"
    assert lines[-1] == "49,3.0,2.0,7.0"
    assert len(lines) == 50
    path.write_text(path.read_text() + "50,1.0,1")  # cut off by a crash
    log = MetricsCSV(tmp_path, 48)
    log.log_metrics({"b": 9.0}, step=60)
    assert path.read_text().splitlines() == [*lines[:-1], "60,,9.0,"]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    errors = []

    def write(k: int) -> None:
        try:
            for _ in range(200):
                write_text(tmp_path / "file.json", f"{k}" * 1000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert len(set((tmp_path / "file.json").read_text())) == 1


def test_what_a_killed_writer_left_goes_at_the_next_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    left = [tmp_path / ".metrics.0123456789abcdef.tmp.csv", folder.checkpoints / ".last.4711.tmp.ckpt"]
    with replacing(folder.checkpoints / "update=10.ckpt") as temporary:
        name = temporary.name
        temporary.touch()
    left.append(folder.checkpoints / name)
    # Somebody else's, or of an evaluation that may be at work.
    kept = [tmp_path / ".notes.tmp", folder.checkpoints / ".evaluation-last-seed=0.0123456789abcdef.tmp.json"]
    for path in (*left, *kept):
        path.touch()
    with folder.locked():
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)


def test_a_folder_of_unfinished_work_outlives_its_process_until_the_next_start(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, ".collect-") as at_work:
        (tmp_path / ".collect-killed").mkdir()
        (tmp_path / ".collect-killed" / "data.npz").touch()
        with temporary_folder(tmp_path, ".collect-") as second:
            assert {path.name for path in tmp_path.glob(".collect-*")} == {at_work.name, second.name}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(NoLocks, match="lies on a file system without locks"), RunFolder(tmp_path / "run").locked():
        pass
    with pytest.raises(OSError, match="choose a folder on another one"), one_at_a_time(tmp_path / "lock"):
        pass


def test_every_checkpoint_is_kept_where_files_have_one_name_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    run(tmp_path / "run", "checkpoint.keep_all=true", "updates=20")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last.ckpt", "update=10.ckpt", "update=20.ckpt"]
    assert (checkpoints / "update=20.ckpt").read_bytes() == (checkpoints / "last.ckpt").read_bytes()
    assert load_checkpoint(checkpoints / "update=10.ckpt")["updates"] == 10


def test_a_maze_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = ogbench.make("pointmaze-medium-singletask-v0")
    assert list(tmp_path.iterdir()) == []
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def test_initial_weights_do_not_depend_on_what_is_drawn_for_the_data(
    reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setup = ToyData.setup

    def drawing(self: ToyData, stage: str | None = None) -> None:
        torch.rand(1000)
        setup(self, stage)

    monkeypatch.setattr(ToyData, "setup", drawing)
    run(tmp_path / "run")
    assert_same_run(reference, tmp_path / "run")
