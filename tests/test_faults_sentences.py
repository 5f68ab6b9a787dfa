"""Paths taken as they are, and a sentence instead of a traceback for whatever goes wrong outside the program."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mfrl.cli import check_overrides
from mfrl.config import CONFIG_DIR
from mfrl.errors import ConfigError
from mfrl.paths import pasted, take_as_they_are
from mfrl.train import train

COMMAND = [sys.executable, "-c", "from mfrl.cli import main; main()"]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
TOY = [
    "experiment=toy",
    "network.actor.hidden=[16]",
    "batch_size=8",
    "updates=24",
    "log.every=6",
    "checkpoint.every=12",
    "eval.every=12",
    "eval.samples=16",
    "accelerator=cpu",
]
NASTY = """R&D größe (1) a[1] {x} "q" it's $HOME ${seed} ~ update=10, a;b"""


def mfrl(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    keywords = {"capture_output": True, "text": True, "timeout": 240, "check": False, "env": ENVIRONMENT} | settings
    return subprocess.run([*COMMAND, *arguments], **keywords)


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def train_toy(folder: Path, *overrides: str, console: Console | None = None) -> dict:
    """A toy run in ``folder``, which has to have an innocent name."""
    changes = [*TOY, f"run_dir={folder}", *overrides]
    return train(compose(*changes), changes, console)


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
    with pytest.raises(ConfigError, match=r"is empty: give a path \(is a variable of the shell not set\?\)"):
        take_as_they_are([override])


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("", "run_dir= is empty"),
        ("''", "run_dir= must be a folder for the run"),
        ("null", "run_dir=null must be a folder for the run"),
        ("/", "run_dir=/ is the root of all folders"),
        ("/../.", "is the root of all folders"),
        ("runs/${nothing}", "run_dir=runs/${nothing}"),
    ],
)
def test_a_run_needs_a_folder_of_its_own(run_dir: str, message: str, tmp_path: Path) -> None:
    done = mfrl("train", *TOY, f"run_dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_folder_of_any_name_is_gone_on_with_by_what_it_printed(trained: Path, tmp_path: Path) -> None:
    """Every printed command goes through a real shell."""
    folder = tmp_path / NASTY
    shutil.copytree(trained, folder)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("mfrl", COMMAND[2]), ("tensorboard", "from tensorboard.main import run_main; run_main()")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
        script.chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def paste(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in paste(
        f"{pasted('mfrl', 'train', resume=folder)} updates=26"
    ).splitlines() if line.startswith(("look ", "evaluate "))}  # fmt: skip
    assert "eval/w2" in paste(f"{shown['look']} --inspect")
    assert "update 26" in paste(f"{shown['evaluate']} out='~/{NASTY[:10]}'")
    assert [path.name for path in (tmp_path / NASTY[:10]).iterdir()] == ["evaluation-last-seed=1000-episodes=16.json"]
    assert "update 12" in paste(pasted("mfrl", "eval", ckpt=folder / "checkpoints" / "update=12.ckpt"))
    assert {path.name for path in tmp_path.glob("[!.]*")} == {NASTY, NASTY[:10], "bin"}


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
def test_configurations_of_the_users_own_are_found(how: str, own_conf: Path, tmp_path: Path) -> None:
    done = mfrl("train", "+place=here", "network=my_own", *TOY, *searched(how, own_conf), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "here" / "result.json").is_file()


@pytest.mark.parametrize("how", ["flag", "searchpath"])
def test_the_users_own_configurations_have_near_names(how: str, own_conf: Path) -> None:
    done = mfrl("train", "network=my_won", *TOY, *searched(how, own_conf))
    assert done.returncode == 2
    assert "(did you mean my_own" in done.stderr
    done = mfrl("train", "sede=1", *TOY, *searched(how, own_conf))
    assert done.returncode == 2
    assert "there is no setting 'sede' (did you mean seed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-r"], ["-c", "hydra"]])
def test_a_flag_of_hydras_does_not_switch_the_near_names_off(flags: list[str]) -> None:
    done = mfrl("train", *flags, "algo.alhpa=1")
    assert done.returncode == 2
    assert "there is no setting 'algo.alhpa' (did you mean algo.alpha" in done.stderr


def test_a_flag_that_shows_the_configuration_asks_for_nothing_else() -> None:
    done = mfrl("eval", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "ckpt: ???" in done.stdout


def test_a_folder_of_configurations_that_is_not_there_is_named() -> None:
    done = mfrl("train", "--config-dir", "/no/such")
    assert (done.returncode, done.stderr) == (2, "error --config-dir /no/such is no folder\n")


def test_a_sweep_over_many_values_is_checked_in_a_moment_and_all_the_same() -> None:
    began = time.process_time()
    check_overrides("train", ["experiment=quickstart", "seed=range(0,200)"])
    assert time.process_time() - began < 10  # a tenth of a second for each would be more
    for wrong, message in (("seed=0,1,-1,2", "seed=-1 must be"), ("algo.alpha=1,2,x", "algo.alpha=x must be a number")):
        with pytest.raises(ConfigError, match=message):
            check_overrides("train", ["experiment=quickstart", "variant=residual,velocity", wrong])
    with pytest.raises(ConfigError, match="no 'variant/velocty'"):
        check_overrides("train", ["seed=0,1,2,3", "variant=residual,velocity,velocty"])


def test_the_package_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "mfrl", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, metadata.version("mfrl"))


def test_what_a_message_advises_to_take_out_can_be_taken_out(tmp_path: Path) -> None:
    changes = ["experiment=study_pointmaze", "env=minari/pointmaze-umaze", "evaluation=held_out", "collect=null"]
    refused = mfrl("train", *changes)
    assert refused.returncode == 1
    advised = shlex.split(refused.stderr.partition("take them out with")[2] or refused.stderr.partition("with  ")[2])
    assert advised
    assert all(word.startswith("~eval.") for word in advised)
    done = mfrl("train", *changes, *advised, f"data_dir={tmp_path}")
    assert "is not in" in done.stderr  # the data; nothing is wrong with the settings any more
    for needed in ("~algo.alpha", "~seed", "~eval.every"):
        with pytest.raises(ConfigError, match=f"{needed}: a setting cannot be taken away"):
            check_overrides("train", [needed])
