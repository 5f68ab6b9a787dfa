"""Paths taken as they are, and a sentence instead of a traceback for whatever goes wrong outside the program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny import ENVIRONMENT, TOY, WITH_FIGURES, WITHOUT_FIGURES, compose, mfrl, program

from mfrl.app.cli import run
from mfrl.app.refusals import check_overrides
from mfrl.app.sweep import attempt
from mfrl.app.train import train
from mfrl.collect.minari.runner import collect
from mfrl.data.minari_source import Source
from mfrl.envs.evaluation import Evaluator
from mfrl.envs.minari import change_spec, write_spec
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import VectorEnv, WorkerError
from mfrl.envs.video import write_video
from mfrl.errors import ConfigError, DataError, EnvError, refused_by_system
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.jobs import FAILED
from mfrl.runs.read import FINISHED, read_run
from mfrl.system import signals
from mfrl.system.paths import CONFIG_DIR, pasted, take_as_they_are

NASTY = """R&D größe (1) a[1] {x} "q" it's $HOME ${seed} ~ update=10, a;b"""


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status of a command and what it says, in this process: what it changes of it is put back."""
    before, hook = sys.argv, threading.excepthook
    capsys.readouterr()
    try:
        with signals.handled_by(signals.leave):
            run(list(arguments))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv, threading.excepthook = before, hook
    return status, " ".join(capsys.readouterr().err.split())


def train_toy(folder: Path, *overrides: str) -> dict:
    """A toy run in ``folder``, which has to have an innocent name."""
    changes = [*TOY, f"run_dir={folder}", *overrides]
    return train(compose("train", *changes), changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    train_toy(folder, "checkpoint.keep_all=true")
    return folder


# ---- paths as they are

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda s: s.strip(", ")
)


def as_composed(override: str) -> str:
    """What a command gets to see of an override of one path."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    cfg = OmegaConf.create({"seed": 3})
    OmegaConf.update(cfg, parsed.key_or_group, parsed.value())
    return OmegaConf.select(cfg, parsed.key_or_group)


def quoted_whole(name: str) -> bool:
    return len(name) > 1 and name[0] in "'\"" and name[-1] == name[0]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["ckpt", "resume", "run_dir", "data_dir", "out", "data.cache"]), NAMES)
@example("ckpt", "update=10.ckpt")
@example("ckpt", "a,b")
@example("resume", "${seed}")
@example("data_dir", r"\${seed} \'")
@example("out", "range(1,3)")
@example("run_dir", "3")
@example("run_dir", "a${")
@example("run_dir", " a ")
def test_a_path_reaches_its_command_as_it_was_given(key: str, name: str) -> None:
    if quoted_whole(name) or name.lower() in ("null", "true", "false") or (key == "run_dir" and "}" in name):
        name = f"runs/{name}".replace("}", "")
    assert as_composed(take_as_they_are([f"{key}={name}"])[0]) == name


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["ckpt", "resume", "run_dir", "data_dir"]), NAMES)
@example("ckpt", "'quoted'")
@example("ckpt", "~")
@example("data_dir", "null")
@example("run_dir", "${seed}")
def test_a_printed_command_says_the_same_path_when_it_is_pasted(key: str, name: str) -> None:
    words = shlex.split(pasted("mfrl", "train", **{key: name}))
    assert Path(as_composed(take_as_they_are(words)[2])).expanduser().absolute() == Path(name).absolute()


def test_what_was_quoted_for_hydra_and_what_hydra_reads_anyway_stays_as_it_is() -> None:
    for argument in (
        "run_dir=runs/${algo_name}/x",
        "run_dir='runs/a b'",
        'ckpt="a,b"',
        "data_dir=null",
        "seed=1",
        "-m",
    ):
        assert take_as_they_are([argument]) == [argument]


def test_a_sweep_is_over_checkpoints_and_not_over_folders() -> None:
    arguments = ["ckpt=a/update=1.ckpt,'b,c',d", "run_dir=a,b", "-m"]
    ckpt, run_dir, _ = take_as_they_are(arguments)
    swept = OverridesParser.create().parse_override(ckpt)
    assert [as_composed(f"ckpt={value}") for value in swept.sweep_string_iterator()] == ["a/update=1.ckpt", "b,c", "d"]
    assert as_composed(run_dir) == "a,b"
    assert as_composed(take_as_they_are(arguments[:1])[0]) == "a/update=1.ckpt,'b,c',d"


@pytest.mark.parametrize("override", ["ckpt=", "resume=", "run_dir= ", "data_dir=", "policy=ckpt:"])
def test_an_empty_path_is_not_taken_for_none(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        take_as_they_are([override])


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("", "run_dir="),
        ("''", "run_dir="),
        ("null", "run_dir=null"),
        ("/", "run_dir=/"),
        ("/../.", "root"),
        ("runs/${nothing}", r"run_dir=runs/\$\{nothing\}"),
        ("runs/${algo}", r"run_dir=runs/\$\{algo\}.*\$\{algo_name\}"),
        ("${env}/${seed}", r"\$\{env\}.*\$\{env\.name\}"),
        ("runs/${algo.actor}/1", r"\$\{algo\.actor\}"),
    ],
)
def test_a_run_needs_a_folder_of_its_own(
    run_dir: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = told(capsys, "train", *TOY, f"run_dir={run_dir}")
    assert status == 2
    assert re.search(message, text)
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_folder_of_any_name_is_gone_on_with_by_what_it_printed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every printed command goes through a real shell, and what the shell makes of it through the command line."""
    folder, home = tmp_path / NASTY, NASTY[:10]
    shutil.copytree(trained, folder)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mfrl", "tensorboard"):  # which tell what they are given
        (programs / name).write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def given(command: str) -> list[str]:
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split("\0")[:-1]

    def paste(command: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", sys.argv)
        with signals.handled_by(signals.leave):
            run(given(command))
        return capsys.readouterr().err

    said = paste(f"{pasted('mfrl', 'train', resume=folder)} updates=26")
    shown = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith(("look ", "evaluate ")))
    assert given(shown["look"]) == ["--logdir", str(folder)]
    assert "update 26" in paste(f"{shown['evaluate']} out='~/{home}'")
    assert [path.name for path in (tmp_path / home).iterdir()] == ["evaluation-last-seed=1000-episodes=16.json"]
    assert "update 12" in paste(pasted("mfrl", "eval", ckpt=folder / "checkpoints" / "update=12.ckpt"))
    assert {path.name for path in tmp_path.glob("[!.]*")} == {NASTY, home, "bin"}


# ---- Hydra's own ways


@pytest.fixture(scope="module")
def own_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own configurations: a network, and a group that conf/ does not have."""
    folder = tmp_path_factory.mktemp("my conf=1")
    (folder / "network").mkdir()
    shutil.copy(CONFIG_DIR / "network" / "toy.yaml", folder / "network" / "my_own.yaml")
    (folder / "place").mkdir()
    (folder / "place" / "here.yaml").write_text("# @package _global_\nrun_dir: runs/here\n")
    return folder


def searched(how: str, folder: Path) -> list[str]:
    return ["--config-dir", str(folder)] if how == "flag" else [f"hydra.searchpath=['file://{folder}']"]


@pytest.mark.parametrize("how", ["flag", "searchpath"])
def test_configurations_of_the_users_own_are_found(
    how: str, own_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = told(capsys, "train", "+place=here", "network=my_own", *TOY, *searched(how, own_conf))
    assert status == 0, text
    assert (tmp_path / "runs" / "here" / "result.json").is_file()


@pytest.mark.parametrize("how", ["flag", "searchpath"])
def test_the_users_own_configurations_have_near_names(
    how: str, own_conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = told(capsys, "train", "network=my_won", *TOY, *searched(how, own_conf))
    assert status == 2
    assert re.search("my_won.*my_own", text)
    status, text = told(capsys, "train", "sede=1", *TOY, *searched(how, own_conf))
    assert status == 2
    assert re.search("sede.*seed", text)
    assert "Traceback" not in text


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-r"], ["-c", "hydra"]])
def test_a_flag_of_hydras_does_not_switch_the_near_names_off(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = told(capsys, "train", *flags, "algo.alhpa=1")
    assert status == 2
    assert re.search(r"algo\.alhpa.*algo\.alpha", text)


def test_a_flag_that_shows_the_configuration_asks_for_nothing_else() -> None:
    done = mfrl("eval", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "ckpt: ???" in done.stdout


def test_a_folder_of_configurations_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = told(capsys, "train", "--config-dir", "/no/such")
    assert status == 2
    assert "--config-dir /no/such" in text
    assert "Traceback" not in text


def test_a_sweep_over_many_values_is_checked_in_a_moment_and_all_the_same() -> None:
    began = time.process_time()
    check_overrides("train", ["experiment=quickstart", "seed=range(0,200)"])
    assert time.process_time() - began < 10  # a tenth of a second for each would be more
    for wrong, message in (("seed=0,1,-1,2", "seed=-1"), ("algo.alpha=1,2,x", r"algo\.alpha=x")):
        with pytest.raises(ConfigError, match=message):
            check_overrides("train", ["experiment=quickstart", "variant=residual,velocity", wrong])
    with pytest.raises(ConfigError, match="velocty"):
        check_overrides("train", ["seed=0,1,2,3", "variant=residual,velocity,velocty"])


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "mfrl"], [Path(sys.executable).with_name("mfrl")]], ids=["module", "script"]
)
def test_the_package_is_a_program(command: list[str | Path]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, metadata.version("mfrl"))


def test_what_a_message_advises_to_take_out_can_be_taken_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["experiment=study_pointmaze", "env=minari/pointmaze-umaze", "evaluation=held_out", "collect=null"]
    status, text = told(capsys, "train", *changes)
    assert status == 1
    advised = shlex.split(text.partition("take them out with ")[2])
    assert advised
    assert all(word.startswith("~eval.") for word in advised)
    _, text = told(capsys, "train", *changes, *advised, f"data_dir={tmp_path}")
    assert "is not in" in text  # the data; nothing is wrong with the settings any more
    for needed in ("~algo.alpha", "~seed", "~eval.every"):
        with pytest.raises(ConfigError, match=needed):
            check_overrides("train", [needed])


# ---- no room, no permission


@dataclass
class Disk:
    """A small file system in memory."""

    path: Path

    def leave(self, room: int) -> None:
        """Fill it but for so many KiB."""
        free = os.statvfs(self.path)
        (self.path / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - room * 1024))

    def free(self) -> None:
        (self.path / "filler").unlink()

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


#: KiB that are free: each time for a little more of a run, and never for all of it.
SOME = (12, 100, 400)
ROOMS = [pytest.param(k, marks=() if k in SOME else pytest.mark.slow) for k in (*range(0, 52, 4), *range(60, 620, 20))]


@pytest.mark.parametrize("room", ROOMS)
def test_a_run_that_filled_the_disk_says_so_and_goes_on_to_the_same_weights(
    room: int, disk: Disk, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *TOY, f"run_dir={disk.path}/run", "existing=continue", WITH_FIGURES]
    disk.leave(room)
    status, text = told(capsys, *command)
    assert status == 1
    assert "Traceback" not in text
    assert str(disk.path) in text
    assert "No space left on device (0." in text
    assert text.count("No space left on device") == 1
    saved = (disk.path / "run" / "checkpoints" / "last.ckpt").exists()
    assert (f"mfrl train resume={disk.path}/run" in text) == saved
    disk.free()
    status, text = told(capsys, *(["train", f"resume={disk.path}/run"] if saved else command))
    assert status == 0, text
    assert read_run(disk.path / "run").status == FINISHED, read_run(disk.path / "run").reason
    now, then = weights(disk.path / "run"), weights(trained)
    assert all(torch.equal(now[name], then[name]) for name in now.keys() | then.keys())


def test_a_program_on_a_full_disk_ends_with_a_sentence(disk: Disk) -> None:
    disk.leave(24)
    done = mfrl("train", *TOY, f"run_dir={disk.path}/run", WITH_FIGURES)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_job_of_a_sweep_on_a_full_disk_fails_alone_and_in_one_line(disk: Disk) -> None:
    disk.leave(4)
    changes = [*TOY, f"run_dir={disk.path}/run", "existing=continue"]
    outcome = attempt(compose("train", *changes), changes, own_process=False)
    assert outcome.status == FAILED
    assert "No space left on device" in outcome.note
    assert "see " not in outcome.note


def test_nothing_can_be_written_where_all_is_read_only(
    disk: Disk, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, disk.path / "run")
    disk.read_only()
    for command in (
        ["train", f"resume={disk.path}/run", "updates=30"],
        ["train", *TOY, f"run_dir={disk.path}/run", "existing=continue", "updates=30"],
        ["train", *TOY, f"run_dir={disk.path}/other"],
        ["train", *TOY, f"run_dir={disk.path}/other", "existing=continue"],
        ["train", "-m", *TOY, "seed=0,1", f"hydra.sweep.dir={disk.path}/sweep"],
        ["report", str(disk.path), "--out", f"{disk.path}/report"],
        ["collect", "env=ogbench/pointmaze-medium-explore", f"data_dir={disk.path}/data", "episodes=1"],
        ["collect", "env=minari/pointmaze-umaze", f"data_dir={disk.path}/data", "episodes=1"],
        ["download", "env=ogbench/cube-single-play", f"data_dir={disk.path}/data"],
        ["train", "experiment=quickstart", f"data_dir={disk.path}/data", f"run_dir={disk.path.parent}/run"],
    ):
        status, text = told(capsys, *command)
        assert status == 1, (command, text)
        assert "Traceback" not in text
        assert "Read-only file system" in text
    assert not (disk.path.parent / "run").exists()


def test_a_film_does_not_fit_on_a_full_disk(disk: Disk) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    for name in ("film.mp4", "film.gif"):
        disk.leave(8)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which is told below
            write_video(frames, disk.path / name)
        assert "No space left on device" in str(refused_by_system(caught.value))
        assert [path.name for path in disk.path.iterdir()] == ["filler"]
        disk.free()


# ---- files of a run that are not what was written


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff\xfe\x00updates", id="text"),
        pytest.param(b"\0" * 400, id="nul", marks=pytest.mark.slow),
        pytest.param(b"", id="empty", marks=pytest.mark.slow),
        pytest.param(b"[3]\n", id="other", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "eval.jsonl", "metrics.csv", "result.json"])
def test_a_damaged_file_of_a_run_is_named(
    name: str, content: bytes, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for command in (
        ["report", str(folder), "--out", str(tmp_path / "report")],
        ["train", f"resume={folder}", "updates=26", WITHOUT_FIGURES],
        ["train", *TOY, "checkpoint.keep_all=true", f"run_dir={folder}", "existing=continue"],
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        (folder / name).write_bytes(content)
        status, text = told(capsys, *command)
        assert status == 0 or name in text, (command, text)
        assert "Traceback" not in text


# ---- what a setting asks for and the machine does not have


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "network.actor._target_=mfrl.networks.dit.DTi",
            r"algo\.actor\._target_=mfrl\.networks\.dit\.DTi.*DiT",
        ),
        ("network.actor._target_=mfrl.netwroks.MLP", r"algo\.actor\._target_=mfrl\.netwroks\.MLP"),
        ("network.actor._target_=no_such_package.MLP", "no_such_package"),
        ("network.actor._target_=mfrl.networks.critic.QEnsemble", r"mfrl\.networks\.critic\.QEnsemble"),
        ("+network.actor.hiden=[3]", r"algo\.actor\.hiden.*mfrl\.networks\.mlp\.MLP.*hidden"),
        ("algo._target_=mfrl.algorithms.meanflow_bc.MeanFlowB", "MeanFlowBC"),
    ],
)
def test_a_class_that_is_not_there_or_takes_other_settings_is_named(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = told(capsys, "train", *TOY, override, f"run_dir={tmp_path}/run")
    assert status == 1
    assert re.search(message, text)
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_samples_are_not_chosen_among(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = told(capsys, "eval", f"ckpt={trained}", "num_candidates=2")
    assert status == 1
    assert "num_candidates is no setting of an evaluation of toy/grid" in text


def test_compiling_needs_a_compiler_before_training_begins(tmp_path: Path) -> None:
    done = program(
        "train", *TOY, "compile=true", f"run_dir={tmp_path}/run", env=ENVIRONMENT | {"CXX": "no-such-compiler"}
    )
    assert done.returncode == 1
    assert "compile=true" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# ---- environments and their processes


def strange(name: str) -> EnvSpec:
    return EnvSpec(name, "minari", gym_spec=write_spec(f"strange:{name}"), trust=("strange",))


def test_episodes_without_an_end_are_refused_with_the_setting_that_helps() -> None:
    with pytest.raises(EnvError, match=r"Endless-v0 .*env\.max_episode_steps="):
        strange("Endless-v0").check()
    limited = change_spec(strange("Endless-v0").gym_spec, max_episode_steps=3)
    replace(strange("Endless-v0"), gym_spec=limited).check()


def test_an_environment_that_cannot_be_built_says_something() -> None:
    with pytest.raises(EnvError, match=r"AssertionError.*strange\.py.*\d+.*assert render_mode"):
        strange("Silent-v0").make()


def test_what_cannot_be_filmed_is_told_before_anything_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")  # nothing here needs a renderer
    said = pytest.raises(EnvError, match=r"render\(\).*eval\.videos=0")
    with Evaluator(strange("Blind-v0"), num_envs=1, workers=1) as evaluator, said:
        evaluator.check_filming()


def test_a_worker_that_was_stopped_is_not_waited_for_without_end() -> None:
    with VectorEnv(strange("Blind-v0"), 1, 1, patience=2.0) as env:
        env.reset([0], [0])
        (worker,) = active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=rf"process {worker.pid}.*2 s"):
            env.step(np.zeros((1, 2), np.float32))
        assert not worker.is_alive()


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mfrl.envs.minari import write_spec\n"
        "from mfrl.envs.spec import EnvSpec\n"
        "from mfrl.envs.vector import VectorEnv\n"
        "VectorEnv(EnvSpec('Pendulum-v1', 'minari', gym_spec=write_spec('Pendulum-v1')), 1, 1)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert done.stderr.count('has to stand under  if __name__ == "__main__":') == 2  # in the worker, and of it
    assert "freeze_support" not in done.stderr
    assert "bootstrapping" not in done.stderr


def test_a_dataset_that_is_being_written_is_not_to_be_got_again(tmp_path: Path) -> None:
    collect("my/pendulum-v0", tmp_path, policy="random", gym_id="Pendulum-v1", steps=5, progress=False)
    (file,) = tmp_path.rglob("*.hdf5")
    hold = f"import h5py; file = h5py.File({str(file)!r}, 'a'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(DataError) as caught:
            list(Source.open(tmp_path / "my" / "pendulum-v0", "my/pendulum-v0", None).episodes())
        writer.communicate(b"\n")
    assert str(file.parent) in str(caught.value)
    assert len(list(Source.open(tmp_path / "my" / "pendulum-v0", "my/pendulum-v0", None).episodes())) == 1
