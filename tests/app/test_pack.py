"""Packs: members of one process leave what runs of their own would, and come and go without disturbing one another."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from processes import Command, shorten_episodes
from tiny import MAZE, mfrl

from mfrl.app.overrides import expand_seeds
from mfrl.app.sweep import packed
from mfrl.errors import ConfigError
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.read import find_runs

SMALL = [
    *MAZE,
    "updates=24",
    "checkpoint.every=6",
    "eval.every=12",
    "eval.episodes=2",
    "eval.interim_episodes=1",
    "eval.num_envs=2",
    "eval.workers=0",
    "existing=continue",
]
FOLDER = "run_dir=r/alpha${algo.alpha}-seed${seed}"
MEMBERS = [(alpha, seed) for alpha in (1.0, 30.0) for seed in (0, 1)]


def start(cwd: Path, *arguments: str) -> CompletedProcess[str]:
    return mfrl("train", *arguments, cwd=cwd, timeout=400, prepare=shorten_episodes)


def folder(cwd: Path, alpha: float, seed: int) -> Path:
    return cwd / "r" / f"alpha{alpha}-seed{seed}"


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two alphas of two seeds each in one pack."""
    cwd = tmp_path_factory.mktemp("pack")
    done = start(cwd, "-m", *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0,30.0", "seed=0,1", "pack=8")
    assert done.returncode == 0, done.stderr
    return cwd, done.stderr


@pytest.fixture(scope="module")
def alone(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last of them as a run of its own."""
    cwd = tmp_path_factory.mktemp("alone")
    done = start(cwd, *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=30.0", "seed=1")
    assert done.returncode == 0, done.stderr
    return cwd


def test_a_pack_is_one_process_that_says_what_its_members_reach(trained: tuple[Path, str]):
    cwd, said = trained
    assert said.count("4 members, ") >= 1
    assert "success 0.00 to" in said
    assert "(4 members, " in said
    assert "4 finished" in said
    assert sorted(run.path.name for run in find_runs([cwd / "r"])) == sorted(
        folder(cwd, *member).name for member in MEMBERS
    )


def test_a_member_leaves_what_a_run_of_its_own_leaves(trained: tuple[Path, str], alone: Path):
    member, run = folder(trained[0], 30.0, 1), folder(alone, 30.0, 1)

    def names(path: Path) -> set[str]:
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
        return {name for name in found if "tfevents" not in name and name != ".lock"}

    assert names(member) == names(run)
    mine, other = (json.loads((path / "result.json").read_text()) for path in (member, run))
    assert mine.keys() == other.keys()
    for key in ("env", "dataset", "algo", "variant", "alpha", "seed", "updates", "compiled", "matmul", "versions"):
        assert mine[key] == other[key], key
    assert mine["final"].keys() == other["final"].keys()
    mine, other = rows(member), rows(run)
    assert mine[0].keys() == other[0].keys()
    for one, same in zip(mine, other, strict=True):
        for key in one:
            if not key.startswith(("perf/", "eval/")):
                assert float(one[key] or 0) == pytest.approx(float(same[key] or 0), rel=5e-3, abs=1e-4), key
    for name, weight in weights(run).items():
        torch.testing.assert_close(weights(member)[name], weight, rtol=1e-2, atol=2e-3, msg=name)
    config, overrides = ((path / "config.yaml").read_text() for path in (member, run))
    assert "members" not in config
    assert [line for line in config.splitlines() if not line.startswith(("run_dir", "pack"))] == [
        line for line in overrides.splitlines() if not line.startswith(("run_dir", "pack"))
    ]


def test_members_differ_in_what_they_are_told_to(trained: tuple[Path, str]):
    found = {(run.config["algo.alpha"], run.seed) for run in find_runs([trained[0] / "r"])}
    assert found == set(MEMBERS)
    first, *others = (weights(folder(trained[0], *member)) for member in MEMBERS)
    for other in others:
        assert not torch.equal(first["actor.network.embed.weight"], other["actor.network.embed.weight"])
    overrides = (folder(trained[0], 30.0, 1) / "overrides.yaml").read_text()
    assert "seed=1" in overrides
    assert "algo.alpha=30.0" in overrides


def test_a_member_is_evaluated_and_goes_on_as_a_run_of_its_own(trained: tuple[Path, str], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(folder(trained[0], 1.0, 1), run)
    said = mfrl("eval", f"ckpt={run}", prepare=shorten_episodes)
    assert said.returncode == 0, said.stderr
    result = json.loads((run / "result.json").read_text())
    (report,) = (json.loads(path.read_text()) for path in run.rglob("eval*.json"))
    assert report["eval/return"] == result["final"]["eval/return"]
    recorded = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    for key in ("seeds", "returns", "lengths", "successes"):  # beside the others', and now alone
        assert report[key] == recorded[key], key
    done = start(tmp_path, f"resume={run}", "updates=30")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["updates"] == 30


def test_finished_members_are_left_alone_and_the_others_are_trained(
    data_dir: Path, trained: tuple[Path, str], tmp_path: Path
):
    (tmp_path / "r").mkdir()
    shutil.copytree(folder(trained[0], 1.0, 0), folder(tmp_path, 1.0, 0))
    before = (folder(tmp_path, 1.0, 0) / "result.json").stat().st_mtime_ns
    done = start(tmp_path, "-m", *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0,30.0", "seed=0,1", "pack=8")
    assert done.returncode == 0, done.stderr
    assert "1 skipped, 3 finished" in done.stderr
    assert (folder(tmp_path, 1.0, 0) / "result.json").stat().st_mtime_ns == before
    for name, weight in weights(folder(trained[0], 30.0, 0)).items():
        torch.testing.assert_close(weights(folder(tmp_path, 30.0, 0))[name], weight, rtol=1e-2, atol=2e-3, msg=name)


def test_a_member_that_diverges_leaves_the_others_to_finish(data_dir: Path, trained: tuple[Path, str], tmp_path: Path):
    done = start(tmp_path, "-m", *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0,1e38", "seed=0,1", "pack=8")
    assert done.returncode == 1
    assert "2 finished, 2 failed" in done.stderr
    assert "diverged" in (tmp_path / "r" / "alpha1e+38-seed1" / "error.txt").read_text()
    assert not (tmp_path / "r" / "alpha1e+38-seed1" / "result.json").exists()
    for name, weight in weights(folder(trained[0], 1.0, 1)).items():
        torch.testing.assert_close(weights(folder(tmp_path, 1.0, 1))[name], weight, rtol=0.0, atol=0.0, msg=name)


def stop_at_the_first_checkpoint() -> None:
    """Plant a watcher that sends the signal: from outside, on a busy machine, it may come when all is done."""
    shorten_episodes()

    def watch() -> None:
        while not (folder(Path(), 30.0, 1) / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_a_pack_that_is_stopped_goes_on_to_the_same_weights(data_dir: Path, trained: tuple[Path, str], tmp_path: Path):
    arguments = ["-m", *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0,30.0", "seed=0,1", "pack=8"]
    command = Command(["train", *arguments], tmp_path, stop_at_the_first_checkpoint)
    assert command.end() == 128 + signal.SIGTERM, command.said
    assert not (folder(tmp_path, 1.0, 0) / "result.json").exists(), "stopped too late to say anything"
    done = start(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for member in MEMBERS:
        for name, weight in weights(folder(trained[0], *member)).items():
            mine = weights(folder(tmp_path, *member))[name]
            torch.testing.assert_close(mine, weight, rtol=0.0, atol=0.0, msg=f"{member} {name}")
        shared = [key for key in rows(folder(tmp_path, *member))[0] if not key.startswith("perf/")]
        for one, same in zip(rows(folder(tmp_path, *member)), rows(folder(trained[0], *member)), strict=True):
            assert {key: one[key] for key in shared} == {key: same[key] for key in shared}


def test_jobs_are_packed_with_those_that_differ_in_seed_and_alpha_alone():
    jobs = [
        ["variant=a", "algo.alpha=1", "seed=0"],
        ["variant=a", "algo.alpha=1", "seed=1"],
        ["variant=b", "algo.alpha=1", "seed=0"],
        ["variant=a", "algo.alpha=3", "seed=0"],
    ]
    own = ["['algo.alpha=1','seed=0']", "['algo.alpha=1','seed=1']", "['algo.alpha=3','seed=0']"]
    assert packed(jobs, 8) == [[*jobs[0], f"+members=[{','.join(own)}]"], jobs[2]]
    assert packed(jobs, 2) == [[*jobs[0], f"+members=[{','.join(own[:2])}]"], jobs[3], jobs[2]]
    assert packed(jobs, 1) == [jobs[0], jobs[1], jobs[3], jobs[2]]
    assert packed([["seed=0"], ["seed=1"]], 4) == [["seed=0", "+members=[['seed=0'],['seed=1']]"]]


def test_seeds_is_short_for_a_packed_multirun():
    assert expand_seeds(["train", "a=1", "seeds=3"]) == ["train", "--multirun", "a=1", "seed=0,1,2", "pack=3"]
    assert expand_seeds(["train", "-m", "seeds=2", "pack=1"]) == ["train", "-m", "pack=1", "seed=0,1"]
    assert expand_seeds(["train", "seed=1"]) == ["train", "seed=1"]
    for wrong in (["train", "seeds=0"], ["train", "seeds=x"], ["train", "seeds=2", "seed=1"]):
        with pytest.raises(ConfigError, match="seeds="):
            expand_seeds(wrong)


@pytest.mark.slow
def test_a_member_that_cannot_begin_leaves_the_others_to(data_dir: Path, tmp_path: Path):
    broken = folder(tmp_path, 1.0, 0)
    start(tmp_path, *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0", "seed=0")
    (broken / "result.json").unlink()
    (broken / "eval.jsonl").write_text("no evaluation\n")
    (folder(tmp_path, 1.0, 1)).mkdir()
    shutil.copytree(broken / "checkpoints", folder(tmp_path, 1.0, 1) / "checkpoints")  # at the same update
    shutil.copy(broken / "config.yaml", folder(tmp_path, 1.0, 1))
    done = start(tmp_path, "-m", *SMALL, f"data_dir={data_dir}", FOLDER, "algo.alpha=1.0", "seed=0,1", "pack=2")
    assert done.returncode == 1
    assert "eval.jsonl is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert "AttributeError" not in done.stderr


@pytest.mark.slow
def test_a_logger_of_one_s_own_for_each_member_does_not_part_them(data_dir: Path, tmp_path: Path):
    table = "+logger.table={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: table}"
    done = start(
        tmp_path, "-m", *SMALL, f"data_dir={data_dir}", FOLDER, "updates=6", "seed=0,1", "pack=2", table, "eval.every=6"
    )
    assert done.returncode == 0, done.stderr
    assert "2 members, " in done.stderr
    for seed in (0, 1):
        assert list((folder(tmp_path, 1.0, seed) / "table").rglob("metrics.csv"))


def test_seeds_that_choose_their_own_part_of_the_data_are_no_population(data_dir: Path, tmp_path: Path):
    options = [*SMALL, f"data_dir={data_dir}", FOLDER, "data.fraction=0.5", "updates=12", "seed=0,1", "pack=2"]
    done = start(tmp_path, "-m", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" → r\n") == 2
    assert "2 finished" in done.stderr


@pytest.mark.parametrize("size", ["0", "2.5"])
def test_a_pack_has_at_least_one_member(size: str, tmp_path: Path):
    done = start(tmp_path, "-m", *SMALL, FOLDER, "seed=0,1", f"pack={size}")
    assert done.returncode != 0
    assert f"pack={size}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_sweep_is_the_same_packed_or_not(data_dir: Path, tmp_path: Path):
    options = [
        "-m",
        *SMALL,
        f"data_dir={data_dir}",
        "updates=12",
        "algo.alpha=1e1,.5",
        "run_dir=r/x${changed:}-${seed}",
    ]
    done = start(tmp_path, *options, "pack=2")
    assert done.returncode == 0, done.stderr
    again = start(tmp_path, *options)
    assert "2 skipped" in again.stderr
