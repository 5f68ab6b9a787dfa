"""Sweeps on a cluster: Ray of two nodes and Slurm of two nodes, both started here, with jobs that are killed.

`make test-cluster` runs those that start a cluster.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from processes import Command
from tiny import ENVIRONMENT, TOY, mfrl

from hydra_plugins.mfrl_ray_launcher import RayLauncher
from hydra_plugins.mfrl_slurm_launcher import SlurmLauncher
from mfrl.app.cluster import carried
from mfrl.errors import ConfigError
from mfrl.runs.read import find_runs

ROOT = Path(__file__).parents[2]
PORT = 26379
SWEEP = ["train", "sweep=reformulation", "variant=residual", *TOY]


def runs_of(folder: Path) -> dict[int, Path]:
    """The folders of a sweep's runs by seed."""
    return {run.seed: run.path for run in find_runs([folder / "runs"])}


def saved(folder: Path, *seeds: int) -> Callable[[], bool]:
    """Whether the runs of these seeds have a checkpoint."""
    return lambda: all(list(folder.glob(f"runs/**/seed{seed}/checkpoints/last.ckpt")) for seed in seeds)


def final(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["final"]


def hide(package: str) -> None:
    """Make Python find no such package."""
    sys.modules[package] = None  # type: ignore[assignment]


# ---- before anything is sent


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_missing_is_named_with_its_command(launcher: str, package: str, tmp_path: Path) -> None:
    prepare = partial(hide, package)
    done = mfrl(*SWEEP, f"hydra/launcher={launcher}", "seed=0", cwd=tmp_path, prepare=prepare)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"pip install {package}" in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("launcher", "settings", "named"),
    [
        (RayLauncher, {"gpus_per_job": 1.5}, "gpus_per_job=1.5"),
        (RayLauncher, {"gpus_per_job": "all"}, "gpus_per_job=all"),
        (RayLauncher, {"cpus_per_job": -1}, "cpus_per_job=-1"),
        (SlurmLauncher, {"gpus_per_job": 0.4}, "gpus_per_job=0.4"),
        (SlurmLauncher, {"warning": 0}, "warning=0"),
    ],
)
def test_settings_that_no_cluster_can_grant_are_refused(launcher: type, settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"hydra.launcher.{named}")):
        launcher(**settings).check()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["-m", "hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:9"], "127.0.0.1:9: .*refused"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm starts the jobs of a sweep: add -m"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.minuts=5"], r"did you mean hydra\.launcher\.minutes"),
    ],
)
def test_a_launcher_that_cannot_be_used_so_is_refused_at_once(given: list[str], told: str, tmp_path: Path) -> None:
    if "127" in told and not importlib.util.find_spec("ray"):
        pytest.skip("without ray, that is what is told")
    done = mfrl("train", *given, *TOY, cwd=tmp_path, timeout=60)
    assert done.returncode in (1, 2)
    assert re.search(told, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_job_carries_the_surroundings_of_the_sweep_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "local-0123")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert carried().items() >= {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "http://tracking:5000"}.items()
    assert "WANDB_API_KEY" not in carried()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:word@tracking/runs")
    assert "MLFLOW_TRACKING_URI" not in carried()


@pytest.mark.parametrize(("gpus", "jobs"), [(0, 1), (1, 1), (2, 1), (0.5, 2), (0.33, 3), (0.25, 4), (0.125, 8)])
def test_jobs_that_share_a_gpu_are_tasks_of_one_job_of_slurms(gpus: float, jobs: int) -> None:
    launcher = SlurmLauncher(gpus_per_job=gpus)
    launcher.check()
    assert launcher.beside == jobs


# ---- Ray


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that find a Ray of two nodes, a core each, one of which pretends to have two GPUs."""
    assert importlib.util.find_spec("ray"), "pip install ray, as make test-cluster does"
    folder = Path("/tmp") / f"mfrl-ray-{os.getpid()}"  # paths of sockets below it must be short
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    program = [
        Path(sys.executable).parent / "ray",
        "start",
        "--block",
        "--num-cpus=1",
        "--object-store-memory=80000000",
    ]
    head = ["--head", f"--port={PORT}", f"--temp-dir={folder}", "--include-dashboard=false"]
    nodes: list[subprocess.Popen] = []

    def start(*options: str) -> None:
        log = tmp_path_factory.mktemp("ray") / "log"
        with log.open("w") as file:
            settings = {"env": environment, "cwd": ROOT, "stdout": file, "stderr": file, "start_new_session": True}
            nodes.append(subprocess.Popen([*program, *options], **settings))
        until(lambda: "runtime started" in log.read_text() or nodes[-1].poll() is not None, "Ray")

    try:
        for options in (head, [f"--address=127.0.0.1:{PORT}", "--num-gpus=2"]):
            start(*options)
            while nodes[-1].poll() is not None and len(nodes) < 6:  # Ray gives a node no more than 30 seconds to start
                start(*options)
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{PORT}"}
    finally:
        for node in reversed(nodes):
            node.terminate()  # which ends what it started
        for node in nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def until(happened: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what}: nothing happened"
        time.sleep(0.1)


def workers(cwd: Path, job: int) -> list[int]:
    """The processes of Ray's that run a job of the sweep in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = (process / "cmdline").read_bytes().startswith(f"ray::job {job}".encode())
            if named and os.readlink(process / "cwd") == str(cwd.resolve()):
                found.append(int(process.name))
    return found


@pytest.mark.cluster
def test_a_job_of_rays_that_is_killed_goes_on_elsewhere_to_the_same_numbers(
    ray: dict[str, str], tmp_path: Path
) -> None:
    changes = ["updates=900", "eval.every=900", "checkpoint.every=50", "seed=0,1"]
    command = Command([*SWEEP, "hydra/launcher=ray", *changes], tmp_path, environment=ray)
    left = {0: signal.SIGKILL, 1: signal.SIGTERM}  # as a machine that fails does, and one that is shut down
    while left:  # each as soon as it has saved: it takes seconds, and the other may start much later
        command.wait_until(lambda: any(saved(tmp_path, job)() for job in left), 300)
        for job in [job for job in left if saved(tmp_path, job)()]:
            (worker,) = workers(tmp_path, job)
            os.kill(worker, left.pop(job))
    assert command.end(600) == 0, command.said
    assert "2 finished" in command.said
    assert "its machines: 2" in command.said
    assert len(re.findall(r"updates after [\d,]+ of batch", command.said)) >= 2, command.said
    alone = [o for o in changes if "seed" not in o]
    done = mfrl("train", *TOY, *alone, "variant=residual", "seed=1", "threads=1", "run_dir=alone", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert final(runs_of(tmp_path)[1]) == final(tmp_path / "alone")


@pytest.mark.cluster
def test_a_sweep_on_ray_that_is_stopped_saves_and_goes_on(ray: dict[str, str], tmp_path: Path) -> None:
    changes = ["updates=100000", "eval.every=100000", "checkpoint.every=100000", "checkpoint.minutes=60"]
    changes += ["seed=0,1", "pack=2", "hydra/launcher=ray"]
    command = Command([*SWEEP, *changes], tmp_path, environment=ray)
    command.wait_until(lambda: "updates/s" in command.said or "update 0" in command.said, 300)
    command.signal(signal.SIGTERM)
    assert command.end(300) == 128 + signal.SIGTERM, command.said
    assert "2 stopped" in command.said
    assert "the same command again does only what is missing" in command.said
    assert saved(tmp_path, 0, 1)(), command.said


@pytest.mark.cluster
def test_jobs_on_ray_take_the_gpus_that_they_are_given_and_no_other(ray: dict[str, str], tmp_path: Path) -> None:
    folder = [
        "run_dir='runs/gpu${oc.env:CUDA_VISIBLE_DEVICES,all}/seed${seed}'",
        "hydra.launcher.options={num_cpus:0.5}",
    ]
    for gpus, expected in ((1, {"gpu0", "gpu1"}), (0.25, {"gpu0"}), (0, {"gpu"})):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        settings = ["hydra/launcher=ray", f"hydra.launcher.gpus_per_job={gpus}", "seed=0,1", *folder]
        done = mfrl(*SWEEP, *settings, cwd=tmp_path, env=ray, timeout=600)
        assert done.returncode == 0, done.stderr
        assert {path.parent.name for path in runs_of(tmp_path).values()} == expected


# ---- Slurm


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of commands that find a Slurm of two nodes, each of which pretends to have a GPU."""
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons are started by root")
    assert importlib.util.find_spec("submitit"), "pip install submitit, as make test-cluster does"
    folder = Path("/tmp") / f"mfrl-slurm-{os.getpid()}"
    script = ROOT / "scripts" / "slurm_on_one_machine.sh"
    environment = ENVIRONMENT | {"SLURM_TRIAL": str(folder), "SLURM_TRIAL_PORT": "27817"}
    try:
        subprocess.run([script, "start"], env=environment, check=True, timeout=600)
        yield environment | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT / "src")}
    finally:
        subprocess.run([script, "stop"], env=environment, check=False, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


def lines(cwd: Path) -> str:
    """What the jobs of a sweep on Slurm said, on one line."""
    return " ".join(" ".join(path.read_text().split()) for path in sorted(cwd.glob("runs/**/slurm/*_log.out")))


@pytest.mark.cluster
def test_packs_on_slurm_share_a_gpu_and_come_back_into_one_table(slurm: dict[str, str], tmp_path: Path) -> None:
    folder = "run_dir='runs/gpu${oc.env:CUDA_VISIBLE_DEVICES,all}-${oc.env:SLURM_JOB_ID,none}/seed${seed}'"
    settings = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_job=0.5", "seed=0,1,2,3", "pack=2", folder]
    done = mfrl(*SWEEP, *settings, cwd=tmp_path, env=slurm, timeout=900)
    assert done.returncode == 0, done.stderr + lines(tmp_path)
    assert "4 finished" in done.stderr
    (shared,) = {path.parent.name for path in runs_of(tmp_path).values()}  # two packs, one job of Slurm's, one GPU
    assert re.fullmatch(r"gpu0-\d+", shared)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.cluster
def test_what_slurm_refuses_is_told_and_leaves_nothing(slurm: dict[str, str], tmp_path: Path) -> None:
    settings = ["hydra/launcher=slurm", "hydra.launcher.sbatch={partition:none}", "seed=0"]
    done = mfrl(*SWEEP, *settings, cwd=tmp_path, env=slurm)
    assert done.returncode == 1
    assert re.search("Slurm takes no job: .*partition", done.stderr)
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.glob("runs/**/slurm/*") if path.is_file()]


@pytest.mark.cluster
def test_a_job_of_slurms_whose_time_is_up_goes_on_and_stops_with_its_sweep(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    changes = ["updates=1000000", "eval.every=1000000", "checkpoint.every=1000000", "checkpoint.minutes=60"]
    limit = ["hydra/launcher=slurm", "hydra.launcher.minutes=3", "hydra.launcher.warning=30"]
    command = Command([*SWEEP, *changes, *limit, "seed=0,1", "pack=2"], tmp_path, environment=slurm)
    # The first checkpoint is the one that Slurm's warning makes.
    command.wait_until(lambda: re.search(r"updates after [\d,]+ of batch", lines(tmp_path)), 1500)
    assert "stopped" in lines(tmp_path)
    command.signal(signal.SIGTERM)
    assert command.end(300) == 128 + signal.SIGTERM, command.said
    assert "2 stopped" in command.said
    assert subprocess.run(["squeue", "-h"], env=slurm, capture_output=True, check=True).stdout == b""
