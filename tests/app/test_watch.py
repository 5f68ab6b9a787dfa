"""Callbacks and loggers of the user's own, by YAML or on the command line; and none out of a checkpoint."""

from __future__ import annotations

import csv
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tiny import ENVIRONMENT, TOY, WITH_FIGURES, mfrl

from mfrl.app.checks import OWN_CALLBACKS
from mfrl.app.train import train
from mfrl.errors import ConfigError, MfrlError
from mfrl.runs.checkpoint import load_checkpoint

compose = partial(tiny.compose, "train")

MINE = '''
from pathlib import Path
import lightning as L

class Diary(L.Callback):
    """Notes each chunk's update, and in what order the run calls its callbacks."""

    def __init__(self, path, words):
        self.path, self.words = Path(path), list(words)

    def on_train_batch_end(self, trainer, pl_module, *_):
        with self.path.open("a") as file:
            file.write(f"{pl_module.updates}\\n")

    def on_train_end(self, trainer, pl_module):
        names = [type(callback).__name__ for callback in trainer.callbacks]
        self.path.with_suffix(".order").write_text(" ".join([*self.words, *names]))
'''


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    changes = [*TOY, f"run_dir={folder}", *overrides]
    return train(compose(*changes), changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that kept the checkpoint halfway."""
    path = tmp_path_factory.mktemp("watching") / "run"
    run(path, "checkpoint.keep_all=true", WITH_FIGURES)
    return path


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The same run, as one is left that was killed after update 12 of 24."""
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "result.json").unlink()
    (path / "checkpoints" / "update=12.ckpt").replace(path / "checkpoints" / "last.ckpt")
    return path


def test_a_callback_and_a_logger_of_the_users_own_by_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "logger").mkdir()
    diary = "diary:\n  _target_: mine.Diary\n  path: ${run_dir}/diary.txt\n  words: [hello, there]\n"
    (tmp_path / "conf" / "callbacks" / "diary.yaml").write_text(diary)
    lightning = "table:\n  _target_: lightning.pytorch.loggers.CSVLogger\n  save_dir: ${run_dir}\n  name: table\n"
    (tmp_path / "conf" / "logger" / "table.yaml").write_text(lightning)
    given = ["--config-dir", "conf", *TOY, "run_dir=run", "callbacks=[default,diary]", "logger=[tensorboard,csv,table]"]
    done = mfrl("train", *given, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": paths(tmp_path)})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert (folder / "diary.txt").read_text().split()[-1] == "24"
    own = "Monitor Interruption Checkpoint EvaluateSamples Progress"
    assert (folder / "diary.order").read_text() == f"hello there {own} Diary"  # the user's come after the run's own
    with (folder / "table" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "metrics.csv").open() as file:
        assert rows[-1]["train/flow_loss"] in {row["train/flow_loss"] for row in csv.DictReader(file)}
    assert "variant.name: residual" in (folder / "table" / "version_0" / "hparams.yaml").read_text()
    assert list(folder.glob("events.out.tfevents.*"))


def paths(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_without_tensorboard_there_are_no_events(tmp_path: Path) -> None:
    run(tmp_path / "run", "logger=[csv]")
    assert not list((tmp_path / "run").glob("events.*"))
    assert (tmp_path / "run" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+callbacks.mine._target_=lightning.pytorch.callbacks.Tmer", ["callbacks.mine", "did you mean Timer"]),
        ("+callbacks.mine={_target_:lightning.pytorch.callbacks.Timer,hours:3}", ["callbacks.mine.hours", "duration"]),
        ("+callbacks.mine={every:3}", ["callbacks.mine._target_="]),
        ("+logger.mine=3", ["logger.mine._target_="]),
        ("+callbacks.mine={_target_:mfrl.reformulation.Reformulation,p:${algo}}", ["callbacks.mine.p", "${algo}"]),
        ("+logger.mine._target_=${algo._target_}", ["logger.mine._target_=", "${algo._target_}"]),
        ("+logger.mine.save_dir=${nowhere}", ["logger", "nowhere"]),
        ("+callbacks.evaluate._target_=lightning.Callback", ["callbacks.evaluate", "evaluation="]),
        ("callbacks=[]", ["callbacks lack monitor, interruption, checkpoint, progress", "callbacks=[default,...]"]),
        ("+logger.mine._target_=lightning.Callback", ["logger.mine", "Callback", "no Logger"]),
        ("+callbacks.mine._target_=lightning.pytorch.callbacks.LambdaCallback", None),
        (
            "+callbacks.mine={_target_:lightning.pytorch.callbacks.ModelCheckpoint,every_n_epochs:-3}",
            ["callbacks.mine", "every_n_epochs"],
        ),
    ],
)
def test_what_cannot_watch_a_run_is_refused_by_name(override: str, told: list[str] | None, tmp_path: Path) -> None:
    if told is None:
        assert run(tmp_path / "run", override)["updates"] == 24
        return
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", override)
    assert [word for word in told if word not in str(caught.value)] == []
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_resumed_run_builds_no_callback_and_no_logger_that_its_checkpoint_names(stopped: Path) -> None:
    path = stopped / "checkpoints" / "last.ckpt"
    saved = load_checkpoint(path)
    harm = {"_target_": "os.mkdir", "_args_": [str(stopped / "harm")]}
    saved["mfrl"]["config"] |= {"callbacks": {"harm": harm}, "logger": {"harm": harm}, "runs": harm}
    torch.save(saved, path)
    assert train(compose(f"resume={stopped}"), [f"resume={stopped}"])["updates"] == 24
    assert not (stopped / "harm").exists()
    config = OmegaConf.load(stopped / "config.yaml")
    assert set(config.callbacks) == {*OWN_CALLBACKS} - {"evaluate"}
    assert set(config.logger) == {"tensorboard", "csv"}


@pytest.mark.parametrize("key", ["checkpoint.keep_all", "log.every", "checkpoint.minutes"])
def test_what_the_callbacks_refer_to_in_a_checkpoint_is_a_number(key: str, stopped: Path) -> None:
    path = stopped / "checkpoints" / "last.ckpt"
    saved = load_checkpoint(path)
    part, name = key.split(".")
    saved["mfrl"]["config"][part][name] = {"_target_": "os.mkdir", "_args_": [str(stopped / "harm")]}
    torch.save(saved, path)
    with pytest.raises(ConfigError, match=rf"{part}.{name}="):
        train(compose(f"resume={stopped}"), [f"resume={stopped}"])
    assert not (stopped / "harm").exists()


def test_a_resumed_run_takes_further_callbacks_and_another_set_of_loggers(stopped: Path) -> None:
    given = [f"resume={stopped}", "logger=[csv]", "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer"]
    before = len(list(stopped.glob("events.*")))
    assert train(compose(*given), given)["updates"] == 24
    assert len(list(stopped.glob("events.*"))) == before
    assert "timer" in OmegaConf.load(stopped / "config.yaml").callbacks


@pytest.mark.parametrize("how", ["resume", "continue"])
def test_a_run_from_before_callbacks_were_settings_goes_on(how: str, stopped: Path) -> None:
    path = stopped / "checkpoints" / "last.ckpt"
    saved = load_checkpoint(path)
    config = OmegaConf.load(stopped / "config.yaml")
    for key in ("callbacks", "logger", "runs", "bf16"):
        del saved["mfrl"]["config"][key], config[key]
    torch.save(saved, path)
    OmegaConf.save(config, stopped / "config.yaml")
    if how == "resume":
        given = [f"resume={stopped}"]
        assert train(compose(*given), given)["updates"] == 24
    else:
        assert run(stopped, "existing=continue", "checkpoint.keep_all=true", WITH_FIGURES)["updates"] == 24
        assert run(stopped, "existing=continue", "checkpoint.keep_all=true", "logger=[csv]")["updates"] == 24


def test_a_callback_that_ends_training_early_finishes_no_run(tmp_path: Path) -> None:
    soon = "+callbacks.timer={_target_:lightning.pytorch.callbacks.Timer,duration:{seconds:0}}"
    with pytest.raises(MfrlError, match=r"ended training early: stopped at update \d+.* begin anew"):
        run(tmp_path / "run", soon)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_pack_says_that_a_callback_of_the_users_watches_one_run(tmp_path: Path) -> None:
    mine = "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer"
    done = mfrl("train", "seeds=2", *TOY, mine, f"runs={tmp_path}", cwd=tmp_path)
    assert done.returncode == 1
    assert "callbacks.timer" in done.stderr
    assert "pack=1" in done.stderr
    assert "Traceback" not in done.stderr
