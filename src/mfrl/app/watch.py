"""Builds what watches a run: callbacks and loggers (conf/callbacks, conf/logger), and the evaluation."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import lightning as L
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from mfrl.app.checks import OWN_CALLBACKS
from mfrl.app.parts import processes_within
from mfrl.app.resume import Start, telling_how_to_resume
from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.evaluation import interim_count
from mfrl.callbacks.monitor import Monitor
from mfrl.callbacks.population import Spread
from mfrl.callbacks.progress import Progress
from mfrl.data.module import OfflineData
from mfrl.errors import ConfigError, InterruptedRun, first_line
from mfrl.learning.training import Trained
from mfrl.runs.folder import RunFolder, versions
from mfrl.runs.jobs import FAILED, FINISHED, STOPPED
from mfrl.runs.read import flatten
from mfrl.runs.targets import build, plain_settings
from mfrl.runs.trackers import Tracker
from mfrl.system.paths import literal


@dataclass
class StartedRun:
    """A run that has a folder, with what watches its training and what :func:`mfrl.app.results.finish` needs.

    Attributes:
        cfg, overrides: the configuration, and the user's overrides.
        run: the folder.
        data: the data it trains on.
        callbacks, loggers: by their names in the configuration. The evaluation is the callback ``evaluate``.
        source: where the data come from, as in provenance.json.
        started_at: seconds of :func:`time.perf_counter`.
    """

    cfg: DictConfig
    overrides: list[str]
    run: RunFolder
    data: OfflineData
    callbacks: dict[str, L.Callback]
    loggers: dict[str, Logger]
    source: str
    started_at: float

    @property
    def monitor(self) -> Monitor:
        return cast(Monitor, self.callbacks["monitor"])

    @property
    def checkpoints(self) -> Checkpoint:
        return cast(Checkpoint, self.callbacks["checkpoint"])

    @property
    def evaluate(self) -> L.Callback:
        return self.callbacks["evaluate"]

    def close(self, status: str) -> None:
        """End the run's records in trackers. What a tracker has against it is a warning: the run is what it is.

        Args:
            status: how the run has ended, see :class:`mfrl.runs.jobs.Outcome`.
        """
        for name, logger in self.loggers.items():
            if isinstance(logger, Tracker):
                try:
                    logger.close(status)
                except Exception as error:  # a package of others; the next records are to be closed too
                    said = f"{type(error).__name__}: {first_line(error)}"
                    warnings.warn(f"logger={name}: its record of {self.run.path} was not closed: {said}", stacklevel=2)

    @contextmanager
    def closed_in_the_end(self) -> Iterator[None]:
        """Train a run, and end its records with the status that it ends with."""
        try:
            yield
        except BaseException as error:
            self.close(STOPPED if isinstance(error, InterruptedRun | KeyboardInterrupt) else FAILED)
            raise
        self.close(FINISHED)

    def in_order(self) -> list[L.Callback]:
        """The callbacks in the order in which Lightning calls them: the run's own, then the user's."""
        own = [self.callbacks[name] for name in OWN_CALLBACKS]
        return own + [callback for name, callback in self.callbacks.items() if name not in OWN_CALLBACKS]


def begin_run(
    start: Start,
    overrides: list[str],
    data: OfflineData,
    provenance: dict[str, Any],
    module: Trained,
    progress: Progress | Spread,
    console: Console,
) -> StartedRun:
    """Write a run's configuration and provenance into its folder, and build its callbacks and loggers.

    Args:
        start: what the run starts with; it has a folder.
        overrides: the user's.
        data: the data, after ``setup``.
        provenance: of the data.
        module: what is trained.
        progress: receives the lines on evaluations.
        console: where warnings are printed.

    Raises:
        ConfigError: a callback or logger of the user cannot be built.
    """
    cfg, run = start.cfg, start.run
    assert run is not None
    cfg.run_dir = literal(str(run.path))
    cfg.data_dir = data.data_dir and literal(str(data.data_dir.resolve()))
    run.write_config(cfg, overrides)
    run.write_provenance(provenance)
    config = plain_settings(cfg, resolve=False)
    record = {
        "config": config,
        "spec": data.spec.to_dict(),
        "env": asdict(data.env),
        "action_bounds": data.action_bounds,
        "observation_shapes": data.observation_shapes,
        "provenance": provenance,
        "versions": versions(),
    }
    for_callbacks: dict[str, dict[str, Any]] = {
        "monitor": {"console": console},
        "checkpoint": {"folder": run.checkpoints, "extra": record},
    }
    callbacks = build_watchers(cfg, "callbacks", L.Callback, for_callbacks, leave_out=["progress"])
    callbacks["progress"] = progress
    callbacks["evaluate"] = start.parts["eval"](
        spec=data.env, run_dir=run.path, progress=progress, **worker_setting(cfg)
    )
    for_loggers: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": start.updates + 1 if start.updates else None},
        "csv": {"first_update": start.updates},
    }
    # Lightning takes the rank from a cluster's variables, and only rank 0 logs. Each run here is a process of its own.
    rank_zero_only.rank = 0  # type: ignore[attr-defined]  # missing from Lightning's types
    with telling_how_to_resume(run, module, callbacks["checkpoint"]):
        loggers = build_watchers(cfg, "logger", Logger, for_loggers)
        settings = flatten({**config, "provenance": provenance, "versions": record["versions"]})
        for name in loggers.keys() - for_loggers.keys():
            loggers[name].log_hyperparams(settings)
    return StartedRun(cfg, overrides, run, data, callbacks, loggers, provenance["source"], time.perf_counter())


def build_progress(cfg: DictConfig, console: Console) -> Progress:
    """The progress bar of a run or of a population."""
    share = cfg.eval.episodes / interim_episodes(cfg) if "episodes" in cfg.eval else 1.0
    return build(cfg.callbacks.progress)(final_share=share, console=console)


def build_watchers(
    cfg: DictConfig,
    group: str,
    kind: type,
    added: Mapping[str, Mapping[str, Any]],
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """The callbacks or loggers of a configuration, by their names.

    Args:
        group: ``callbacks`` or ``logger``.
        kind: Lightning's base class.
        added: by name, the arguments that the run adds where the settings are ``_partial_``.
        leave_out: names that are not built.

    Raises:
        ConfigError: one cannot be built from its settings, or is no ``kind``.
    """
    built = {}
    for name, node in cfg[group].items():
        if name in leave_out:
            continue
        key = f"{group}.{name}"
        try:
            part = build(node, plain=True)
        except InstantiationException as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(f"{key} cannot be made of its settings: {reason}") from error
        if name in added and node.get("_partial_"):
            part = part(**added[name])
        if not isinstance(part, kind):
            raise ConfigError(f"{key} makes a {type(part).__name__}, which is no {kind.__name__} of Lightning's")
        built[name] = part
    return built


def interim_episodes(cfg: DictConfig) -> int:
    """The number of episodes of every evaluation before the last."""
    return interim_count(cfg.eval.episodes, cfg.eval.get("interim_episodes"))


def worker_setting(cfg: DictConfig) -> dict[str, int]:
    """The argument ``workers`` for an evaluation that leaves it open: the setting ``threads`` also limits processes."""
    if cfg.threads is None or "workers" not in cfg.eval or cfg.eval.workers is not None:
        return {}
    return {"workers": processes_within(cfg.threads)}
