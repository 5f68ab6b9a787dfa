"""`mfrl train`: build data, algorithm, module, callbacks, loggers and trainer, and fit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from mfrl.app.checks import check_existing, check_run
from mfrl.app.parts import (
    build_data,
    build_online,
    build_trainer,
    choose_compiling,
    composed_parts,
    multiplying_as_set,
    run_trainer,
    seeded_algorithm,
)
from mfrl.app.results import announce, finish, summarise
from mfrl.app.resume import (
    Start,
    ending_resumably,
    finished_result,
    refuse_other_data,
    resumed_start,
    unfinished_checkpoint,
)
from mfrl.app.watch import begin_run, build_progress
from mfrl.envs.vector import refuse_unguarded_script
from mfrl.learning.training import Training
from mfrl.runs.folder import RunFolder
from mfrl.runs.jobs import JobConsole
from mfrl.runs.saved import resolve_interpolations
from mfrl.system import signals
from mfrl.system.paths import run_folder


def train(cfg: DictConfig, overrides: list[str], console: Console | None = None) -> dict[str, Any]:
    """Train as configured and return what result.json holds.

    Args:
        cfg: the composed configuration (conf/train.yaml).
        overrides: the user's overrides, for overrides.yaml.
        console: where to print; None prints on stderr.

    Raises:
        ConfigError: a setting cannot be used, or ``run_dir`` holds a run with other settings (RefusedRun).
        CheckpointError: the checkpoint of ``resume=`` is missing, damaged or refused.
        DataError, EnvError: the data or the environment cannot be used.
        DivergedError: training produced a number that is not finite.
        InterruptedRun: a signal stopped training. The message says how to resume.
    """
    refuse_unguarded_script()
    signals.forget()
    console = console or Console(stderr=True)
    resolve_interpolations(cfg)
    check_existing(cfg)
    if cfg.resume:
        start = resumed_start(cfg, overrides, console)
    else:
        check_run(cfg, overrides)
        folder = RunFolder(run_folder(cfg.run_dir)) if cfg.existing == "continue" else None
        start = Start(cfg, composed_parts(cfg, console), folder)
    if start.cfg.threads is not None:
        torch.set_num_threads(start.cfg.threads)
    with ExitStack() as lock:
        if start.run:  # locked before looking at it, so that two processes never both resume it
            lock.enter_context(start.run.locked())
        if start.run and not cfg.resume:
            if result := finished_result(cfg):
                console.print(f"finished before: {escape(str(start.run.path))}", highlight=False, soft_wrap=True)
                return result
            start.saved = unfinished_checkpoint(start.run)
        return fit(start, overrides, console)


def fit(start: Start, overrides: list[str], console: Console) -> dict[str, Any]:
    """Build everything, train and evaluate.

    Args:
        start: what the run starts with. If it has a folder, the caller has locked it.
        overrides, console: see :func:`train`.

    Raises:
        MfrlError: see :func:`train`.
    """
    cfg, parts = start.cfg, start.parts
    data = build_data(cfg, parts, console)
    provenance = data.provenance()
    if start.saved:
        refuse_other_data(start.saved["mfrl"]["provenance"], provenance)
    algorithm = seeded_algorithm(cfg, data, parts)
    why = choose_compiling(cfg)
    module = Training(algorithm, cfg.batch_size, cfg.compile)
    progress = build_progress(cfg, console)

    with ExitStack() as lock:
        if start.run is None:  # made only now: a run that is refused leaves no folder
            start.run = RunFolder.create(cfg.run_dir)
            lock.enter_context(start.run.locked())
        lock.enter_context(multiplying_as_set(cfg))
        started, run = begin_run(start, overrides, data, provenance, module, progress, console), start.run
        lock.enter_context(started.closed_in_the_end())
        trainer = build_trainer(cfg, run.checkpoints, started.in_order(), started.loggers.values())
        module.online = build_online(cfg, data, [algorithm], [run.path], console)
        if module.online is not None:
            lock.callback(module.online.close)
        announce(console, cfg, str(run.path), start.updates, why)
        with ending_resumably(run, module, started.checkpoints):
            run_trainer(trainer, module, data, started.evaluate, start.updates, start.checkpoint)
        result = finish(started, module)
    if not isinstance(console, JobConsole):  # a sweep prints one table for all of its jobs
        summarise(console, run, result)
    return result
