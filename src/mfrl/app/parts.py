"""Builds the parts of a run: data, algorithm, evaluation and trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from mfrl.algorithms.base import Algorithm
from mfrl.app.checks import phases, total_updates
from mfrl.app.fetch import fetch_missing
from mfrl.data.batch import DataSpec
from mfrl.data.module import OfflineData
from mfrl.errors import ConfigError
from mfrl.learning.compiling import choose, multiplying
from mfrl.learning.online import Online
from mfrl.learning.training import Training
from mfrl.runs.targets import build
from mfrl.study.toys import find_toy

#: Functions that build ``data``, ``algo`` and ``eval``. Hydra builds what the user composed, and never a checkpoint's.
Parts = dict[str, Callable[..., Any]]


def composed_parts(cfg: DictConfig, console: Console) -> Parts:
    """Functions that build the parts of a run from the user's configuration. They fetch missing data if asked to."""

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
    """Build the algorithm of the user's configuration, for data of the given sizes.

    The algorithm of a checkpoint is built by :class:`mfrl.runs.saved.Saved` instead.
    """
    return build(cfg.algo)(spec=spec)


def build_data(cfg: DictConfig, parts: Parts, console: Console) -> OfflineData:
    """Build and read the data of a run, print their warnings, and check that the run can be evaluated.

    Raises:
        DataError: the data are missing, damaged or unusable.
        EnvError: the environment that evaluates cannot be built.
        ConfigError: a setting cannot be used.
    """
    L.seed_everything(cfg.seed, verbose=False)
    data = parts["data"]()
    data.setup()
    for warning in data.warnings:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False)
    # The evaluation itself is built when training starts.
    if "episodes" in cfg.eval or cfg.online.steps:
        data.env.check()
    if "samples" in cfg.eval:
        find_toy(data.env.env_id)
    if data.val is None and cfg.eval._target_ == "mfrl.callbacks.held_out.EvaluateHeldOut":
        raise ConfigError(f"evaluation=held_out: nothing of {data.dataset} is held out; set env.val_fraction=0.05, say")
    return data


def seeded_algorithm(cfg: DictConfig, data: OfflineData, parts: Parts) -> Algorithm:
    """Build the algorithm of a run. Its initial weights depend on the seed, and not on what the data have drawn."""
    L.seed_everything(cfg.seed, verbose=False)
    offline, online = phases(cfg)
    # Without an offline phase, the algorithm's schedules run over the updates of the online phase.
    algorithm = parts["algo"](spec=data.spec, **({} if offline else {"updates": online.updates}))
    if online.steps:
        algorithm.go_online(offline, online.updates, online.alpha)
    return algorithm


def processes_within(threads: int) -> int:
    """The number of processes that step environments where so many threads are allowed; 0: none but this one."""
    return threads if threads > 1 else 0


def build_online(
    cfg: DictConfig, data: OfflineData, algorithms: Sequence[Algorithm], folders: Sequence[Path], console: Console
) -> Online | None:
    """The online phase of a run or of a population; None if there is none.

    Args:
        cfg: the configuration of the run or of the first member.
        data: the offline data.
        algorithms, folders: the algorithm and the run folder of each member.
        console: where warnings are printed.
    """
    offline, online = phases(cfg)
    if not online.steps:
        return None
    if online.workers is None and cfg.threads is not None and online.num_envs * len(algorithms) > 1:
        online = replace(online, workers=processes_within(cfg.threads))

    def warn(sentence: str) -> None:
        data.warnings.append(sentence)
        console.print(f"[bold red]warning[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    return Online(online, algorithms, folders, data, cfg.batch_size, offline, warn)


def trains_on_gpu(cfg: DictConfig) -> bool:
    """Whether the run's trainer takes a CUDA GPU of this machine."""
    accelerator = OmegaConf.select(cfg, "trainer.accelerator", default="auto")
    return torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")


def choose_compiling(cfg: DictConfig) -> str:
    """Decide whether updates are compiled, and write the decision into ``cfg``, where a resumed run will find it.

    Returns:
        the reason, a sentence.
    """
    # Captured updates of pixels and of an online phase have not been compared with others on a GPU.
    tried = not cfg.online.steps and cfg.get("encoder") is None
    cfg.compile, why = choose(cfg.compile, total_updates(cfg), tried and trains_on_gpu(cfg))
    return why


def multiplying_as_set(cfg: DictConfig) -> AbstractContextManager[None]:
    """See :func:`mfrl.learning.compiling.multiplying`, for the settings and the device of a run."""
    return multiplying(trains_on_gpu(cfg), cfg.tf32, cfg.bf16)


def build_trainer(cfg: DictConfig, root: Path, callbacks: list[L.Callback], loggers: Iterable[Logger]) -> L.Trainer:
    """Build a trainer of one process. A cluster's environment variables do not change that.

    Args:
        root: Lightning's root folder. On a cluster Lightning would look for checkpoints to resume from in it.
        callbacks, loggers: in the order in which Lightning calls them.
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
    """Train to the last update. A run that has made all of its updates is only evaluated.

    Args:
        trainer, module, data: Lightning's arguments of ``fit``.
        evaluate: the evaluation, one of the trainer's callbacks.
        first_update: the number of updates that the run starts after.
        checkpoint: the file that the run resumes from; None if it starts at update 0 or is loaded already.
    """
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if first_update == module.total_updates:  # Lightning's loop does not start then
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        try:
            evaluate.on_train_start(trainer, module)
        finally:
            evaluate.teardown(trainer, module, "fit")
