"""What a run is made of: data, algorithm, evaluation, trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from mfrl.algorithms.base import Algorithm
from mfrl.app.checks import phases, total_updates
from mfrl.app.fetch import fetch_missing
from mfrl.data.batch import DataSpec
from mfrl.data.module import OfflineData
from mfrl.errors import ConfigError
from mfrl.learning.compiling import choose
from mfrl.learning.online import Online
from mfrl.learning.training import Training
from mfrl.runs.targets import build
from mfrl.study.toys import find_toy

#: What builds ``data``, ``algo`` and ``eval``: Hydra, of what the user composed; of a checkpoint, never.
Parts = dict[str, Callable[..., Any]]


def composed_parts(cfg: DictConfig, console: Console) -> Parts:
    """What builds the parts of a run that the user composed; data that are not there are fetched, if asked for."""

    def data() -> OfflineData:
        found = build(cfg.data)
        fetch_missing(cfg, found, console)
        return found

    return {
        "data": data,
        "algo": lambda **more: build(cfg.algo)(**more),
        "eval": lambda **more: build(cfg.eval)(**more),
    }


def build_algorithm(cfg: DictConfig, spec: DataSpec) -> Algorithm:
    """The algorithm of a configuration that the user composed, for data of the given spec.

    One out of a checkpoint is built by :class:`mfrl.runs.saved.Saved`.
    """
    return build(cfg.algo)(spec=spec)


def build_data(cfg: DictConfig, parts: Parts, console: Console) -> OfflineData:
    """The data of a run, read and checked, and what it is to be evaluated by looked at.

    Raises:
        DataError, EnvError, ConfigError: of what cannot be.
    """
    L.seed_everything(cfg.seed, verbose=False)
    data = parts["data"]()
    data.setup()
    for warning in data.warnings:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False)
    # What evaluates is built when training starts.
    if "episodes" in cfg.eval:
        data.env.check()
    if "samples" in cfg.eval:
        find_toy(data.env.env_id)
    if data.val is None and cfg.eval._target_ == "mfrl.callbacks.held_out.EvaluateHeldOut":
        raise ConfigError(f"evaluation=held_out: nothing of {data.dataset} is held out; set env.val_fraction=0.05, say")
    return data


def seeded_algorithm(cfg: DictConfig, data: OfflineData, parts: Parts) -> Algorithm:
    """The algorithm of a run. Its initial weights do not depend on what was drawn for the data."""
    L.seed_everything(cfg.seed, verbose=False)
    offline, online = phases(cfg)
    # What begins online has the schedules of its offline updates there.
    algorithm = parts["algo"](spec=data.spec, **({} if offline else {"updates": online.updates}))
    if online.steps:
        algorithm.go_online(offline, online.updates, online.alpha)
    return algorithm


def build_online(
    cfg: DictConfig, data: OfflineData, algorithms: Sequence[Algorithm], folders: Sequence[Path], console: Console
) -> Online | None:
    """The online phase of a run, or of the members of a population with their run folders; None without one."""
    offline, online = phases(cfg)
    if not online.steps:
        return None
    if online.workers is None and cfg.threads is not None and online.num_envs * len(algorithms) > 1:
        online = replace(online, workers=cfg.threads if cfg.threads > 1 else 0)

    def warn(sentence: str) -> None:
        data.warnings.append(sentence)
        console.print(f"[bold red]warning[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    return Online(online, algorithms, folders, data, cfg.batch_size, offline, warn)


def choose_arithmetic(cfg: DictConfig) -> str:
    """Settle in ``cfg`` whether updates are compiled, for good: a resumed run goes on as it began. Returns why."""
    cfg.compile, why = choose(cfg.compile, total_updates(cfg))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.tf32
    return why


def build_trainer(cfg: DictConfig, root: Path, callbacks: list[L.Callback], loggers: Iterable[Logger]) -> L.Trainer:
    """A trainer of one process, whatever a cluster's variables say.

    With them Lightning also takes up what it finds in its root.
    """
    alone = {"plugins": LightningEnvironment(), "default_root_dir": root}
    return build(cfg.trainer)(callbacks=callbacks, logger=list(loggers), **alone)


def run_trainer(
    trainer: L.Trainer,
    module: Training,
    data: OfflineData,
    evaluate: L.Callback,
    first_update: int,
    checkpoint: Path | None = None,
) -> None:
    """Train to the last update, from a checkpoint where there is one; from the last update on only evaluate."""
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if first_update == module.total_updates:  # stopped after its last update: Lightning's loop does not start
        module.to(trainer.strategy.root_device)  # from where Lightning has put it
        try:
            evaluate.on_train_start(trainer, module)
        finally:
            evaluate.teardown(trainer, module, "fit")
